"""Learning-rate schedules of the papers, as factors of the peak rate by step 0, 1, ..., after a linear warm-up.

During a warm-up of W steps the factor is (t + 1) / W in all of them; below t is the step and T the number of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol


class Schedule(Protocol):
    """The factor of the peak rate at a step behind the warm-up."""

    def __call__(self, step: int, warmup: int, total: int) -> float: ...


def cosine(step: int, warmup: int, total: int) -> float:
    """(1 + cos(pi u)) / 2 with u = (t - W) / (T - W): from 1 to 0 (Loshchilov and Hutter, 2017, eq. 5, one period)."""
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def inverse_square_root(step: int, warmup: int, total: int) -> float:
    """sqrt(W / (t + 1)) (Vaswani et al., 2017, eq. 3): CAB's speech, summarisation and language models."""
    return math.sqrt(max(1, warmup) / max(1, warmup, step + 1))


def linear(step: int, warmup: int, total: int) -> float:
    """(T - t) / (T - W): from 1 to 0 (BERT, RoBERTa: polynomial decay of power 1)."""
    return max(0.0, (total - step) / max(1, total - warmup))


def constant(step: int, warmup: int, total: int) -> float:
    """1."""
    return 1.0


@dataclass(frozen=True)
class Staircase:
    """max(floor, factor^floor(t / every)): PoinTr (every 21 epochs), Informer (every epoch)."""

    every: int
    factor: float
    floor: float = 0.0

    def __call__(self, step: int, warmup: int, total: int) -> float:
        return max(self.floor, self.factor ** (step // self.every))
