"""An encoder of self-attention blocks over masked tokens, as RoBERTa (Liu et al., 2019), here pre-norm.

Positions start as sinusoids whose longest wave is of the order of the sequence, and are then learned: from random
positions, a short training does not find the neighbours of a mask. Embeddings start at unit scale, like the positions.
The head (dense, GELU, norm, output) is computed at the selected tokens only, as in RoBERTa.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.layers import LearnedPositions, SelfAttentionBlock, sinusoids


class Encoder(nn.Module):
    """Tokens ``[B, L]`` to logits ``[S, V]`` at the S selected ones (in the order of ``tokens[selected]``)."""

    def __init__(
        self,
        slots: Slots,
        *,
        tokens: int,
        classes: int,
        width: int,
        heads: int,
        hidden: int,
        layers: int,
        max_length: int,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        self.positions = LearnedPositions(max_length, width, initial=sinusoids(max_length, width, longest=max_length))
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=max_length), hidden)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), nn.Linear(width, classes))

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        selected: Bool[Tensor, "B L"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "S V"]:
        x = self.positions(self.embedding(tokens))
        for block in self.blocks:
            x = block(x, key_padding_mask=key_padding_mask)
        return self.head(self.norm(x)[selected])
