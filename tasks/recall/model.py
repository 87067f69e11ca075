"""The recall backbone: blocks of one pattern over tokens that are the sum of a key and a value embedding.

Self patterns see source and target as one sequence; cross patterns see the target as queries and the source as keys
and values, and have no self attention over the target: the attention under test is all that can find an answer. Source
and target share their embeddings. Pairs of two tokens need positions, and in the cross patterns one encoder block that
joins a value to its key.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.layers import CrossAttentionBlock, LearnedPositions, SelfAttentionBlock, sinusoids


class Symbols(nn.Module):
    """Adds the embeddings of a token's key and value symbols, and of its position where ``positions`` is set."""

    def __init__(self, vocabulary: int, width: int, max_length: int, *, positions: bool) -> None:
        super().__init__()
        self.keys = nn.Embedding(vocabulary + 1, width)
        self.values = nn.Embedding(vocabulary + 1, width)
        initial = sinusoids(max_length, width, longest=max_length)
        self.positions = LearnedPositions(max_length, width, initial=initial) if positions else nn.Identity()

    def forward(self, keys: Int[Tensor, "B L"], values: Int[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        return self.positions(self.keys(keys) + self.values(values))


class SelfRecall(nn.Module):
    """Source and target as one sequence of length L; logits ``[B, L/2, V]`` for the target half."""

    def __init__(
        self,
        slots: Slots,
        pattern: Pattern,
        *,
        vocabulary: int,
        width: int,
        heads: int,
        layers: int,
        length: int,
        positions: bool,
    ) -> None:
        super().__init__()
        self.symbols = Symbols(vocabulary, width, length, positions=positions)
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(slots[pattern](width, heads, max_length=length)) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary)

    def forward(
        self,
        source_keys: Int[Tensor, "B T"],
        source_values: Int[Tensor, "B T"],
        target_keys: Int[Tensor, "B T"],
    ) -> Float[Tensor, "B T V"]:
        keys = torch.cat((source_keys, target_keys), dim=1)
        x = self.symbols(keys, torch.cat((source_values, torch.zeros_like(target_keys)), dim=1))
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x[:, source_keys.shape[1] :]))


class CrossRecall(nn.Module):
    """The target attends to the source; logits ``[B, T, V]``."""

    def __init__(
        self,
        slots: Slots,
        pattern: Pattern,
        *,
        vocabulary: int,
        width: int,
        heads: int,
        layers: int,
        half: int,
        positions: bool,
    ) -> None:
        super().__init__()
        self.symbols = Symbols(vocabulary, width, half, positions=positions)
        self.encoder = nn.ModuleList(
            SelfAttentionBlock(slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=half)) for _ in range(positions)
        )
        self.source_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            CrossAttentionBlock(slots[pattern](width, heads, max_length=half, max_length_key=half))
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, vocabulary)

    def forward(
        self,
        source_keys: Int[Tensor, "B T"],
        source_values: Int[Tensor, "B T"],
        target_keys: Int[Tensor, "B T"],
    ) -> Float[Tensor, "B T V"]:
        source = self.symbols(source_keys, source_values)
        for block in self.encoder:
            source = block(source)
        source = self.source_norm(source)
        x = self.symbols(target_keys, torch.zeros_like(target_keys))
        for block in self.blocks:
            x = block(x, source)
        return self.output(self.norm(x))
