"""Efficiency length: the sequence length from which a mechanism costs less than the baseline.

**Measured.** At each length of the grid there are paired ratios r = cost / baseline's cost, one per process, with
geometric mean R(L). Between neighbouring lengths log R is taken as linear in log L; where it falls through 0 between
(L_0, x_0) and (L_1, x_1), the crossing is

    log L* = log L_0 + (log L_1 - log L_0) x_0 / (x_0 - x_1),        x = log R.

Nothing is extrapolated: a mechanism that is cheaper at every length pays ``from the shortest length``, one that is
cheaper at none pays ``never up to L``, and where the advantage comes and goes (or only goes) there are ``several``.

**As CAB did it (2023).** A least-squares quadratic through the baseline's costs, a line through the mechanism's, and
the larger root of their difference; for time the line leaves out the first length. CAB (ICML 2023), section 5, and its
efficiency script. For comparison only: it extrapolates, and it hides how badly the curves fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import stats

from cab.stats.intervals import BOOTSTRAP_FROM_N, RESAMPLES, SMALLEST_N

Array = npt.NDArray[np.float64]
Kind = Literal["crossing", "from the shortest length", "never up to L", "several"]


@dataclass(frozen=True)
class EfficiencyLength:
    """From which length a mechanism pays.

    Attributes:
        kind: see the module.
        value: the crossing; the shortest or the longest length of the grid for ``from the shortest length`` and
            ``never up to L``; the last crossing for ``several``.
        low, high: interval of the length from which the mechanism pays for good, within the lengths of the grid.
            ``low`` None: at or below the shortest length; ``high`` None: beyond the longest. Both are None where
            ``method`` is ``n too small``.
        crossings: all lengths at which R(L) passes 1, in order.
        level, method: of the interval.
    """

    kind: Kind
    value: float
    low: float | None
    high: float | None
    crossings: tuple[float, ...]
    level: float
    method: str

    @property
    def text(self) -> str:
        """A cell of a table, such as ``812 [640, 1,101]``; other kinds show what of their interval says otherwise."""
        uncertain = self.method != "n too small"
        if self.kind == "from the shortest length":
            late = self.high is None or self.high > self.value
            return f"from {self.value:,.0f} or less" + (f" [to {self._high}]" if uncertain and late else "")
        if self.kind == "never up to L":
            early = self.low is None or self.low < self.value
            return f"never up to {self.value:,.0f}" + (f" [from {self._low}]" if uncertain and early else "")
        if self.kind == "several" and len(self.crossings) == 1:
            return f"only up to {self.value:,.0f}"
        text = "; ".join(f"{crossing:,.0f}" for crossing in self.crossings)
        text = f"several: {text}" if self.kind == "several" else text
        return f"{text} [{self._low}, {self._high}]" if uncertain else text

    @property
    def _low(self) -> str:
        return "shortest" if self.low is None else f"{self.low:,.0f}"

    @property
    def _high(self) -> str:
        return "beyond" if self.high is None else f"{self.high:,.0f}"


def efficiency_length(
    lengths: Sequence[int],
    ratio_samples_per_length: Sequence[Sequence[float]],
    level: float = 0.95,
    seed: int = 0,
) -> EfficiencyLength:
    """The measured crossing, with an interval over processes.

    The interval is of percentiles of the crossing over 2,000 draws of the mean log ratios, independent between lengths
    (each process measures one). From 20 processes on the draws are resamples; below, where resamples are too
    few and too narrow, they are Student's t with the standard error of the mean; below 3 there is none.

    Args:
        lengths: increasing.
        ratio_samples_per_length: per length the ratios of the processes, positive.
    """
    grid = np.asarray(lengths, dtype=np.float64)
    if len(grid) != len(ratio_samples_per_length) or not len(grid):
        raise ValueError(f"{len(grid)} lengths with {len(ratio_samples_per_length)} lists of ratios")
    if (grid <= 0).any() or (np.diff(grid) <= 0).any():
        raise ValueError(f"lengths have to be positive and increasing, got {list(lengths)}")
    samples = [np.asarray(ratios, dtype=np.float64) for ratios in ratio_samples_per_length]
    for length, ratios in zip(lengths, samples, strict=True):
        if not ratios.size or not (np.isfinite(ratios) & (ratios > 0)).all():
            raise ValueError(f"length {length} needs positive ratios, got {ratios.tolist()}")
    logs = [np.log(ratios) for ratios in samples]
    means = np.array([log.mean() for log in logs])
    crossings = _crossings(np.log(grid), means)
    kind, value = _kind(grid, means, crossings)
    fewest = min(len(log) for log in logs)
    if fewest < SMALLEST_N:
        return EfficiencyLength(kind, value, None, None, crossings, level, "n too small")
    rng = np.random.default_rng(seed)
    draws = np.stack([_draws(log, rng) for log in logs], axis=1)
    pays_from = _pays_from(np.log(grid), draws)
    # Percentiles of order statistics: interpolating towards an infinite neighbour would be meaningless.
    low, high = np.quantile(pays_from, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    method = "bootstrap" if fewest >= BOOTSTRAP_FROM_N else "student_t_draws"
    first, last = float(grid[0]), float(grid[-1])
    low, high = min(float(low), last), max(float(high), first)
    return EfficiencyLength(kind, value, _finite(low), _finite(high), crossings, level, method)


def _draws(logs: Array, rng: np.random.Generator) -> Array:
    """2,000 draws of the mean of the log ratios."""
    n = len(logs)
    if n >= BOOTSTRAP_FROM_N:
        return logs[rng.integers(n, size=(RESAMPLES, n))].mean(axis=1)
    error = logs.std(ddof=1) / np.sqrt(n)
    return logs.mean() + error * stats.t.rvs(n - 1, size=RESAMPLES, random_state=rng)


def _crossings(log_lengths: Array, x: Array) -> tuple[float, ...]:
    """Where the broken line through (log L, x) changes sign, as lengths; a point on 0 counts as not yet paying."""
    at = np.flatnonzero((x[:-1] < 0) != (x[1:] < 0))
    return tuple(float(length) for length in _between(log_lengths, x, at))


def _between(log_lengths: Array, x: Array, at: npt.NDArray[np.intp]) -> Array:
    """The lengths where the segments that begin at the points ``at`` meet 0; ``x`` is [..., K], ``at`` [...]."""
    x0 = np.take_along_axis(x, at, axis=-1)
    x1 = np.take_along_axis(x, at + 1, axis=-1)
    return np.exp(log_lengths[at] + (log_lengths[at + 1] - log_lengths[at]) * x0 / (x0 - x1))


def _kind(grid: Array, means: Array, crossings: tuple[float, ...]) -> tuple[Kind, float]:
    if not crossings:
        cheaper = means[0] < 0
        return ("from the shortest length", float(grid[0])) if cheaper else ("never up to L", float(grid[-1]))
    if len(crossings) == 1 and means[-1] < 0:
        return "crossing", crossings[0]
    return "several", crossings[-1]


def _pays_from(log_lengths: Array, draws: Array) -> Array:
    """Per draw [R, K] the length from which x stays below 0: the last crossing; -inf where there is none as x always
    is below, inf where x ends above."""
    above = draws >= 0
    last = draws.shape[1] - 1 - np.argmax(above[:, ::-1], axis=1)
    pays_from = np.where(above.any(axis=1), np.inf, -np.inf)
    crosses = above.any(axis=1) & (last < draws.shape[1] - 1)
    pays_from[crosses] = _between(log_lengths, draws[crosses], last[crosses, None])[:, 0]
    return pays_from


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


@dataclass(frozen=True)
class CAB2023Fit:
    """CAB's fit of two cost curves.

    Attributes:
        quadratic: (a, b, c) of the baseline's a L^2 + b L + c.
        line: (d, e) of the mechanism's d L + e.
        r_squared_vanilla, r_squared_efficient: of the two fits.
        residuals_vanilla, residuals_efficient: measured less fitted, at the lengths that each fit uses.
        roots: lengths at which the two fits cross, increasing; none where they do not.
        efficiency_length: the larger root, rounded, as CAB prints it; None where there is no root.
    """

    quadratic: tuple[float, float, float]
    line: tuple[float, float]
    r_squared_vanilla: float
    r_squared_efficient: float
    residuals_vanilla: tuple[float, ...]
    residuals_efficient: tuple[float, ...]
    roots: tuple[float, ...]
    efficiency_length: int | None


def fit_cab2023(
    lengths: Sequence[int],
    vanilla: Sequence[float],
    efficient: Sequence[float],
    kind: Literal["time", "memory"] = "time",
) -> CAB2023Fit:
    """CAB's published procedure, unchanged: any unit of cost, the same for both curves."""
    if not len(lengths) == len(vanilla) == len(efficient):
        raise ValueError(f"{len(lengths)} lengths with {len(vanilla)} and {len(efficient)} costs")
    if len(lengths) < 4:
        raise ValueError(f"CAB's fit needs at least 4 lengths, got {len(lengths)}")
    x, y = np.asarray(lengths, dtype=np.float64), np.asarray(vanilla, dtype=np.float64)
    start = 1 if kind == "time" else 0
    x_line, y_line = x[start:], np.asarray(efficient, dtype=np.float64)[start:]
    a, b, c = (float(value) for value in np.polyfit(x, y, 2))
    d, e = (float(value) for value in np.polyfit(x_line, y_line, 1))
    residuals = y - np.polyval([a, b, c], x)
    residuals_line = y_line - np.polyval([d, e], x_line)
    roots = np.roots([a, b - d, c - e])
    real = tuple(sorted(float(root.real) for root in roots if np.isreal(root)))
    return CAB2023Fit(
        (a, b, c),
        (d, e),
        _r_squared(y, residuals),
        _r_squared(y_line, residuals_line),
        tuple(residuals.tolist()),
        tuple(residuals_line.tolist()),
        real,
        round(real[-1]) if real else None,
    )


def _r_squared(y: Array, residuals: Array) -> float:
    return float(1 - (residuals**2).sum() / ((y - y.mean()) ** 2).sum())
