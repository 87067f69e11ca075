"""Many settings against one baseline: how surprising a gain would be without a difference, corrected for their number.

Of m comparisons at 5 %, one in twenty is expected to look like a difference where none is. Holm's step-down method
keeps the chance of even one such mistake under 5 %: with p_(1) <= ... <= p_(m) the adjusted value is

    p'_(i) = max_(j <= i) min(1, (m - j + 1) p_(j))

(S. Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 6(2), 1979). It
needs nothing of how the comparisons depend on each other, and a decision never depends on settings that are not there.
"""

from __future__ import annotations

from collections.abc import Sequence

from scipy import special

from cab.stats.intervals import Interval


def p_value(interval: Interval) -> float | None:
    """Two-sided p of "the value is zero", by the interval's own distribution: below 1 - level where it leaves out zero.

    With h the distance from the value to the end of the interval that is nearer to zero, and t_nu the quantile that its
    width is of, the statistic is t_nu |value| / h, of Student's t with nu degrees of freedom. None without an interval.
    """
    if interval.low is None or interval.high is None:
        return None
    towards_zero = interval.value - interval.low if interval.value > 0 else interval.high - interval.value
    if towards_zero == 0.0:
        return 1.0 if interval.value == 0.0 else 0.0
    quantile = (1 + interval.level) / 2
    statistic = special.stdtrit(interval.degrees, quantile) * abs(interval.value) / towards_zero
    return float(2 * special.stdtr(interval.degrees, -statistic))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Adjusted p values in the order given; what has none is no comparison, and stays without."""
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted
