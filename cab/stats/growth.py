"""Growth exponents: how fast a cost grows with the length, measured and claimed.

**Measured.** With y(L) the mean over replicates of the log cost, the exponent is the least-squares slope of y on log L,

    b = sum_k w_k y_k,    w_k = (x_k - mean x) / sum_j (x_j - mean x)^2,    x = log L.

Its variance is sum_k w_k^2 s_k^2 / n_k from the scatter s_k of the n_k replicates at each length, and its interval
Student's t with the degrees of freedom of Welch and Satterthwaite. It says how well the slope is known, not that the
cost is a power law. Costs that do not scatter, such as counted bytes of one replicate, have no interval.

**Claimed.** An order such as ``L log L`` or ``L^2`` has, over the same lengths, the same slope of its own logarithm:
a little above 1 for ``L log L``. So a measured exponent is compared with what the claim means at these lengths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
from scipy import stats

from cab.stats.intervals import SMALLEST_N, Interval

Array = npt.NDArray[np.float64]
_ORDER = re.compile(r"^(?:1|L(?:\^(?P<power>\d+(?:\.\d+)?))?(?: log(?:\^(?P<logs>\d+))? L)?)$")


def growth_exponent(lengths: Sequence[int], costs: Sequence[Sequence[float]], level: float = 0.95) -> Interval:
    """The slope of log cost on log length.

    Args:
        lengths: at least two different ones.
        costs: per length those of the replicates, positive, in any unit.

    Raises:
        ValueError: fewer than two lengths, or a cost that is not positive.
    """
    slopes = _weights(np.log(np.asarray(lengths, dtype=np.float64)))
    logs = [np.log(np.asarray(values, dtype=np.float64)) for values in costs]
    if len(logs) != len(slopes) or any(not log.size or not np.isfinite(log).all() for log in logs):
        raise ValueError(f"each of {len(slopes)} lengths needs positive costs, got {[list(c) for c in costs]}")
    value = float(sum(w * log.mean() for w, log in zip(slopes, logs, strict=True)))
    fewest = min(len(log) for log in logs)
    if fewest < SMALLEST_N:
        return Interval(value, None, None, level, "n too small", fewest)
    parts = np.array([w**2 * log.var(ddof=1) / len(log) for w, log in zip(slopes, logs, strict=True)])
    variance = float(parts.sum())
    if variance == 0.0:
        return Interval(value, value, value, level, "student_t", fewest)
    freedom = variance**2 / float(sum(p**2 / (len(log) - 1) for p, log in zip(parts, logs, strict=True)))
    half = float(stats.t.ppf((1 + level) / 2, freedom)) * variance**0.5
    return Interval(value, value - half, value + half, level, "student_t", fewest)


def claimed_exponent(order: str, lengths: Sequence[int]) -> float:
    """The slope of log order(L) on log L over ``lengths``.

    ``order`` is ``1`` or ``L``, with a power (``L^1.5``) and a logarithm (``L log L``, ``L log^2 L``); another one is
    a ``ValueError``.
    """
    function = order_of(order)
    x = np.log(np.asarray(lengths, dtype=np.float64))
    return float(_weights(x) @ np.log([function(length) for length in lengths]))


def order_of(order: str) -> Callable[[float], float]:
    """The function that an order such as ``L log L`` names."""
    found = _ORDER.match(order)
    if found is None:
        raise ValueError(f"order {order!r} is none of 1, L, L^p, L log L, L log^k L, L^p log^k L")
    if order == "1":
        return lambda length: 1.0
    power, logs = float(found["power"] or 1), int(found["logs"] or 1) if "log" in order else 0
    return lambda length: float(length**power * np.log(length) ** logs)


def _weights(x: Array) -> Array:
    centred = x - x.mean()
    spread = float((centred**2).sum())
    if len(x) < 2 or spread == 0.0:
        raise ValueError("a growth exponent needs at least two different lengths")
    return centred / spread
