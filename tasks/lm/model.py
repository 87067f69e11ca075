"""A decoder of causal self-attention blocks over tokens, as GPT-2 (Radford et al., 2019), pre-norm.

Positions start as sinusoids whose longest wave is of the order of the sequence, and are then learned: from random
positions, a short training does not get past what the last byte says. Embeddings start at unit scale, like the
positions; the output layer has weights of its own.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.layers import LearnedPositions, SelfAttentionBlock, sinusoids


class Decoder(nn.Module):
    """Tokens ``[B, L]`` to logits ``[B, L, V]`` of the next token; all attention is causal self attention."""

    def __init__(
        self, slots: Slots, *, vocabulary: int, width: int, heads: int, hidden: int, layers: int, max_length: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.positions = LearnedPositions(max_length, width, initial=sinusoids(max_length, width, longest=max_length))
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(slots[Pattern.CAUSAL_SELF](width, heads, max_length=max_length), hidden)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary)

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        x = self.positions(self.embedding(tokens))
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x))
