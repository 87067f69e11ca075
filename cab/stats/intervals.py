"""Intervals of smooth functions of sums over resampling units: weighted means, their exponentials, paired differences.

An estimate is g(S) with S = sum_i c_i over the units' contributions c_i: a weighted mean has c_i = (w_i x_i, w_i) and
g(S) = S_1 / S_2, the usual ratio estimator. With g_(i) the estimate without unit i and g_() their mean:

* n < 3: no interval (``n too small``);
* 3 <= n < 20: Student t with n - 1 degrees of freedom and the jackknife's standard error
  sqrt((n - 1) / n sum_i (g_(i) - g_())^2), which for equal weights is s / sqrt(n)
  (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, equation 11.5);
* n >= 20: the BCa bootstrap over units, 2,000 resamples (the same, section 14.3), from an own seeded generator, with
  the normal quantile widened to sqrt(n / (n - 1)) t_(n-1), as the bootstrap's distribution is too narrow by as much
  (Hesterberg, The American Statistician 69(4), 2015, section 4.2: expanded percentiles).

All are deterministic, and the interval of exp(g) is the exponential of the interval of g.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt
from scipy import special

Array = npt.NDArray[np.float64]
Aggregate = Literal["mean", "exp_mean"]

SMALLEST_N = 3
BOOTSTRAP_FROM_N = 20
RESAMPLES = 2000
_CHUNK = 2_000_000  # drawn indices held at a time
_CACHED_N = 600  # units up to which the draws are kept: at most 16 x 10 MB


@dataclass(frozen=True)
class Interval:
    """An estimate over ``n`` units with a confidence interval; ``low`` and ``high`` are None where n is too small.

    ``method`` is ``student_t``, ``bca_bootstrap``, ``welch_satterthwaite`` (a mean of intervals),
    ``clopper_pearson`` (equal units) or ``n too small``.
    """

    value: float
    low: float | None
    high: float | None
    level: float
    method: str
    n: int
    effective_degrees: float | None = None

    @property
    def degrees(self) -> float:
        """Degrees of freedom of Student's t that the interval's width is of: n - 1, but for a mean of intervals."""
        return self.effective_degrees if self.effective_degrees is not None else max(1, self.n - 1)

    @property
    def half_width(self) -> float | None:
        """Half of high - low."""
        return None if self.low is None or self.high is None else (self.high - self.low) / 2

    def holds(self, value: float) -> bool:
        """Whether ``value`` lies in the interval; without an interval nothing is excluded."""
        return self.low is None or self.high is None or self.low <= value <= self.high


def interval_over_units(
    values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    aggregate: Aggregate = "mean",
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """f(sum_i w_i x_i / sum_i w_i) over the units, f the identity (``mean``) or exp (``exp_mean``).

    Units of weight zero do not count. ``ValueError`` for no units, non-finite values or negative weights.
    """
    x, w = _units(values, weights)
    interval = _of_function(np.stack([w * x, w], axis=1), _weighted_mean, level, seed)
    return _exponential(interval) if aggregate == "exp_mean" else interval


def paired_difference(
    a_values: npt.ArrayLike,
    b_values: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    aggregate: Aggregate = "mean",
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """f(mean of a) - f(mean of b) over the same units in the same order, resampled together.

    Zero outside the interval: the two differ. See :func:`interval_over_units` for ``weights`` and f.
    """
    a, w = _units(a_values, weights)
    b, _ = _units(b_values, weights)
    if a.shape != b.shape:
        raise ValueError(f"a paired difference needs the same units: {a.size} against {b.size}")
    if aggregate == "mean":
        return _of_function(np.stack([w * (a - b), w], axis=1), _weighted_mean, level, seed)

    def difference(sums: Array) -> Array:
        return np.exp(sums[..., 0] / sums[..., 2]) - np.exp(sums[..., 1] / sums[..., 2])

    return _of_function(np.stack([w * a, w * b, w], axis=1), difference, level, seed)


def ratio_interval(ratios: npt.ArrayLike, level: float = 0.95, seed: int = 0) -> Interval:
    """The geometric mean of positive ``ratios``, one per process; the interval is that of the mean log ratio.

    On the log scale a ratio and its inverse have the same interval, and one slow process cannot dominate.
    """
    r = np.asarray(ratios, dtype=np.float64)
    if not (np.isfinite(r) & (r > 0)).all():
        raise ValueError(f"ratios have to be positive and finite, got {r.tolist()}")
    return interval_over_units(np.log(r), None, "exp_mean", level, seed)


def without_spread(interval: Interval, lowest: float, highest: float) -> Interval:
    """What n equal units in [lowest, highest] say of their mean: not that it is theirs exactly.

    A share of up to q = 1 - (alpha / 2)^(1 / n) of the population may be of a kind that none of the n units shows (the
    bound of Clopper and Pearson, Biometrika 26, 1934, at no occurrence), so the mean may lie q (value - lowest) below
    and q (highest - value) above. Intervals with a width, and those of fewer than three units, stay as they are.
    """
    if interval.low is None or interval.low != interval.high:
        return interval
    q = 1 - ((1 - interval.level) / 2) ** (1 / interval.n)
    low, high = interval.value - q * (interval.value - lowest), interval.value + q * (highest - interval.value)
    return replace(interval, low=low, high=high, method="clopper_pearson")


def not_closer_than(interval: Interval, resolution: float) -> Interval:
    """The interval, reaching at least ``resolution`` further on both sides: what arithmetic does not tell apart."""
    if interval.low is None or interval.high is None:
        return interval
    return replace(interval, low=interval.low - resolution, high=interval.high + resolution)


def mean_of_independent(intervals: Sequence[Interval]) -> Interval:
    """The mean of estimates that have nothing to do with each other, such as gains in tasks with own test sets.

    With h_i the half-widths, nu_i their degrees of freedom and s_i = h_i / t_(nu_i) the standard errors, the half-width
    of the mean of T is t_nu sqrt(sum_i s_i^2) / T with

        nu = (sum_i s_i^2)^2 / sum_i (s_i^4 / nu_i)

    (B. L. Welch, "The Generalization of 'Student's' Problem when Several Different Population Variances are Involved",
    Biometrika 34, 1947). The two sides are put together by themselves, with one nu. ``n`` is the number of estimates;
    no interval where one of them has none.
    """
    if len({interval.level for interval in intervals}) != 1:
        raise ValueError("a mean needs intervals of one level, and at least one")
    count, level = len(intervals), intervals[0].level
    value = sum(interval.value for interval in intervals) / count
    sides = [(i.value - i.low, i.high - i.value) for i in intervals if i.low is not None and i.high is not None]
    if len(sides) < count:
        return Interval(value, None, None, level, "n too small", count)
    degrees = np.array([interval.degrees for interval in intervals])
    errors = np.array(sides) / special.stdtrit(degrees, (1 + level) / 2)[:, None]
    squares = errors.mean(axis=1) ** 2
    if not squares.sum():
        return Interval(value, value, value, level, "welch_satterthwaite", count, float(degrees.sum()))
    effective = float(squares.sum() ** 2 / (squares**2 / degrees).sum())
    below, above = special.stdtrit(effective, (1 + level) / 2) * np.sqrt((errors**2).sum(axis=0)) / count
    low, high = value - float(below), value + float(above)
    return Interval(value, low, high, level, "welch_satterthwaite", count, effective)


def _units(values: npt.ArrayLike, weights: npt.ArrayLike | None) -> tuple[Array, Array]:
    x = np.asarray(values, dtype=np.float64).ravel()
    w = np.ones_like(x) if weights is None else np.asarray(weights, dtype=np.float64).ravel()
    if x.shape != w.shape:
        raise ValueError(f"{x.size} values with {w.size} weights")
    if not np.isfinite(w).all() or (w < 0).any():
        raise ValueError("weights have to be finite and not negative")
    x, w = x[w > 0], w[w > 0]
    if not x.size:
        raise ValueError("an interval needs at least one unit of positive weight")
    if not np.isfinite(x).all():
        raise ValueError(f"{int((~np.isfinite(x)).sum())} of {x.size} values are not finite")
    return x, w


def _weighted_mean(sums: Array) -> Array:
    return sums[..., 0] / sums[..., 1]


def _exponential(interval: Interval) -> Interval:
    def exp(value: float) -> float:
        with np.errstate(over="ignore"):
            return float(np.exp(value))

    if interval.low is None or interval.high is None:
        return replace(interval, value=exp(interval.value))
    return replace(interval, value=exp(interval.value), low=exp(interval.low), high=exp(interval.high))


def _of_function(contributions: Array, function: Callable[[Array], Array], level: float, seed: int) -> Interval:
    """The interval of ``function`` of the column sums of ``contributions`` [n, k]."""
    if not 0 < level < 1:
        raise ValueError(f"level={level} is not between 0 and 1")
    n = len(contributions)
    total = contributions.sum(axis=0)
    value = float(function(total))
    if n < SMALLEST_N:
        return Interval(value, None, None, level, "n too small", n)
    without = function(total - contributions)
    deviations = without.mean() - without
    if n < BOOTSTRAP_FROM_N:
        error = float(np.sqrt((n - 1) / n * (deviations**2).sum()))
        half = float(special.stdtrit(n - 1, (1 + level) / 2)) * error
        return Interval(value, value - half, value + half, level, "student_t", n)
    low, high = _bca(_replicates(contributions, function, seed), value, deviations, level)
    return Interval(value, low, high, level, "bca_bootstrap", n)


def _replicates(contributions: Array, function: Callable[[Array], Array], seed: int) -> Array:
    n = len(contributions)
    if n <= _CACHED_N:
        return function(_counts(n, seed) @ contributions)
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // n)
    parts = []
    for start in range(0, RESAMPLES, rows):
        drawn = rng.integers(n, size=(min(rows, RESAMPLES - start), n))
        sums = np.stack([column[drawn].sum(axis=1) for column in contributions.T], axis=-1)
        parts.append(function(sums))
    return np.concatenate(parts)


@functools.lru_cache(maxsize=16)
def _counts(n: int, seed: int) -> Array:
    """How often each unit is drawn in each resample, ``[RESAMPLES, n]``: the same for all estimates over n units."""
    drawn = np.random.default_rng(seed).integers(n, size=(RESAMPLES, n))
    counts = np.zeros((RESAMPLES, n))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], drawn), 1.0)
    return counts


def _bca(replicates: Array, value: float, deviations: Array, level: float) -> tuple[float, float]:
    """Bias-corrected and accelerated percentiles; ``deviations`` are those of the jackknife."""
    squares = float((deviations**2).sum())
    if squares == 0.0:
        return value, value
    below = float((replicates < value).mean() + (replicates == value).mean() / 2)
    # At a share of 0 or 1 the correction would be infinite; half a resample away is as far as they can tell.
    bias = special.ndtri(np.clip(below, 0.5 / RESAMPLES, 1 - 0.5 / RESAMPLES))
    acceleration = float((deviations**3).sum()) / (6 * squares**1.5)
    n = len(deviations)
    z = bias + np.sqrt(n / (n - 1)) * special.stdtrit(n - 1, [(1 - level) / 2, (1 + level) / 2])
    low, high = np.quantile(replicates, special.ndtr(bias + z / (1 - acceleration * z)))
    return float(low), float(high)
