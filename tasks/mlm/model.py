"""An encoder of self-attention blocks over masked tokens: RoBERTa (Liu et al., 2019, arXiv:1907.11692).

As published where ``tied``: post-norm blocks behind a normalised embedding, learned positions from N(0, 0.02^2), and a
head (dense, GELU, norm, output) whose output matrix is the embedding's. Otherwise blocks are pre-norm, the output has
weights of its own, embeddings start at unit scale, and positions start as sinusoids whose longest wave is of the order
of the sequence and are then learned: from random positions, a short training does not find the neighbours of a mask.
The head is computed at the selected tokens only, as in RoBERTa.
"""

from __future__ import annotations

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.decoding import SteppedBlock
from tasks.layers import LearnedPositions, sinusoids


class Encoder(nn.Module):
    """Tokens ``[B, L]`` to logits ``[S, V]`` at the S selected ones (in the order of ``tokens[selected]``).

    Args:
        slots: asked for NS.
        tokens: rows of the embedding, the mask's included.
        classes: V, what a logit stands for: all ``tokens`` where ``tied``.
        width, heads, hidden, layers: of the blocks.
        max_length: the longest L.
        tied: as published, see above.
        dropout: probability.
    """

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
        tied: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width)
        if tied:
            nn.init.normal_(self.embedding.weight, std=0.02)
        initial = None if tied else sinusoids(max_length, width, longest=max_length)
        self.positions = LearnedPositions(max_length, width, initial=initial)
        self.embedding_norm = nn.LayerNorm(width) if tied else nn.Identity()
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            SteppedBlock(
                slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=max_length), hidden, dropout, norm_first=not tied
            )
            for _ in range(layers)
        )
        self.norm = nn.Identity() if tied else nn.LayerNorm(width)
        output = nn.Linear(width, tokens if tied else classes)
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.LayerNorm(width), output)
        if tied:
            output.weight = self.embedding.weight
            nn.init.zeros_(output.bias)

    def forward(
        self,
        tokens: Int[Tensor, "B L"],
        selected: Bool[Tensor, "B L"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "S V"]:
        x = self.dropout(self.embedding_norm(self.positions(self.embedding(tokens))))
        for block in self.blocks:
            x = block(x, key_padding_mask=key_padding_mask)
        return self.head(self.norm(x)[selected])
