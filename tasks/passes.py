"""Training examples in shuffled passes: one endless sequence that can be entered anywhere."""

from __future__ import annotations

import numpy as np


def shuffled_passes(positions: np.ndarray, count: int, stream: int, seed: int) -> np.ndarray:
    """Which of ``count`` examples stand at ``positions`` of the sequence: pass after pass, each in an order of its own.

    Args:
        positions: [N] whole numbers from 0.
        stream: the task's own constant, so that two tasks with one seed do not share their orders.
    """
    passes, within = np.divmod(positions, count)
    orders = {index: np.random.default_rng((stream, seed, index)).permutation(count) for index in set(passes)}
    return np.array([orders[index][place] for index, place in zip(passes, within, strict=True)])
