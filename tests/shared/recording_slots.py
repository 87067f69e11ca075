"""Slots for backbones under test: each builds one mechanism and remembers what it was asked for."""

from __future__ import annotations

from attention_zoo.contract import Attention, Pattern
from attention_zoo.registry import build


class Slot:
    """``asked`` are width, heads and the two lengths of each layer, in the order in which a backbone asked for them."""

    def __init__(self, pattern: Pattern, mechanism: str) -> None:
        self.pattern, self.mechanism = pattern, mechanism
        self.asked: list[tuple[int, int, int, int | None]] = []

    @property
    def lengths(self) -> list[tuple[int, int | None]]:
        return [(length, source) for _, _, length, source in self.asked]

    def __call__(
        self, embed_dim: int, num_heads: int, *, max_length: int, max_length_key: int | None = None
    ) -> Attention:
        self.asked.append((embed_dim, num_heads, max_length, max_length_key))
        lengths = {"max_length": max_length, "max_length_key": max_length_key}
        return build(self.mechanism, embed_dim, num_heads, self.pattern, **lengths)


def slots(mechanism: str = "softmax", **by_pattern: str) -> dict[Pattern, Slot]:
    """One mechanism in all slots, but for those named by their two letters."""
    return {pattern: Slot(pattern, by_pattern.get(pattern.short, mechanism)) for pattern in Pattern}
