"""How much one list of scores says of another: Pearson's r of the values, Spearman's of their ranks.

CAB asks with it whether a method that is good in one pattern, or task, is good in another (ICML 2023, section 5.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import stats

FEWEST = 4  # shared methods; the correlation of three points is mostly chance


@dataclass(frozen=True)
class Correlation:
    """Over ``methods`` shared methods; both None where these are fewer than four, or one list is of one value."""

    methods: int
    pearson: float | None
    spearman: float | None


def correlation(first: Mapping[str, float], second: Mapping[str, float]) -> Correlation:
    """Of the values by method, over the methods that both have."""
    shared = sorted(first.keys() & second.keys())
    x, y = (np.array([values[name] for name in shared], dtype=np.float64) for values in (first, second))
    if len(shared) < FEWEST or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        return Correlation(len(shared), None, None)
    return Correlation(len(shared), float(stats.pearsonr(x, y).statistic), float(stats.spearmanr(x, y).statistic))
