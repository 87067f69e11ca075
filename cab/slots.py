"""Fills the attention slots of a backbone: the mechanism under test in one pattern, exact attention in the others.

Each layer is built under a random state of its own, seeded by (seed, pattern, count), and torch's global generator is
put back after it. So parameters outside the mechanism are the same for every mechanism, and so are the projections
inside it, which are drawn first.
"""

from __future__ import annotations

import zlib
from typing import Literal

import torch

from attention_zoo.contract import Attention, Pattern
from cab.settings import Setting
from tasks.contract import SlotFactory, Slots


class _SeededFactory:
    def __init__(self, setting: Setting, pattern: Pattern, seed: int) -> None:
        self.setting = setting
        self.pattern = pattern
        self.seed = seed
        self.built = 0

    def __call__(
        self, embed_dim: int, num_heads: int, *, max_length: int, max_length_key: int | None = None
    ) -> Attention:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, self.pattern, self.built))
            self.built += 1
            return self.setting.build(
                embed_dim, num_heads, self.pattern, max_length=max_length, max_length_key=max_length_key
            )


def derived_seed(seed: int, *parts: object) -> int:
    """A seed for one part of a run: equal parts give equal seeds on every machine."""
    return zlib.crc32(":".join(map(str, (seed, *parts))).encode())


def fill(
    setting: Setting, baseline: Setting, pattern: Pattern, *, seed: int, slots: Literal["one", "all"] = "one"
) -> Slots:
    """Slots by pattern: ``setting`` under test in ``pattern`` (``one``) or wherever it is supported (``all``)."""

    def choose(slot: Pattern) -> SlotFactory:
        tested = slot is pattern or (slots == "all" and slot in setting.card.supports)
        return _SeededFactory(setting if tested else baseline, slot, seed)

    return {slot: choose(slot) for slot in Pattern}
