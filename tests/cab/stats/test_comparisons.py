"""p values that agree with their intervals, and Holm's correction against its definition and a table of the paper."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cab.stats.comparisons import holm, p_value
from cab.stats.intervals import Interval, interval_over_units

PROBABILITIES = st.lists(st.floats(0, 1), max_size=12)


@pytest.mark.parametrize("n", [3, 8, 19])
def test_a_mean_of_few_units_has_the_p_of_student_s_test(n: int) -> None:
    values = np.random.default_rng(n).normal(0.4, 1.0, n)
    expected = stats.ttest_1samp(values, 0.0).pvalue
    assert p_value(interval_over_units(values)) == pytest.approx(expected, rel=1e-9)


@given(st.floats(-5, 5), st.floats(0.01, 5), st.floats(0.01, 5), st.sampled_from(["student_t", "bca_bootstrap"]))
def test_p_is_below_five_percent_just_where_the_interval_leaves_out_zero(
    value: float, below: float, above: float, method: str
) -> None:
    interval = Interval(value, value - below, value + above, 0.95, method, 12)
    p = p_value(interval)
    assert p is not None
    assert 0 <= p <= 1
    if abs(p - 0.05) > 1e-9:
        assert (p < 0.05) == (not interval.holds(0.0))


def test_without_an_interval_there_is_no_p() -> None:
    assert p_value(interval_over_units([0.3, 0.4])) is None


def test_without_scatter_zero_is_certain_or_impossible() -> None:
    assert p_value(interval_over_units([0.0] * 5)) == 1.0
    assert p_value(interval_over_units([0.5] * 5)) == 0.0


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03, 0.005]) == pytest.approx([0.03, None, 0.06, 0.06, 0.02])


@given(PROBABILITIES)
def test_holm_keeps_the_order_and_lies_between_none_and_bonferroni(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted, strict=True):
        assert q is not None
        assert p <= q <= min(1.0, len(p_values) * p)
    order = np.argsort(p_values, kind="stable")
    assert np.all(np.diff(np.array([adjusted[i] for i in order], dtype=float)) >= 0)


@given(PROBABILITIES, st.floats(0.001, 0.5))
def test_holm_rejects_as_the_step_down_procedure_does(p_values: list[float], level: float) -> None:
    rejected = set()
    for step, place in enumerate(np.argsort(p_values, kind="stable")):
        if (len(p_values) - step) * p_values[place] > level:
            break
        rejected.add(int(place))
    assert {place for place, q in enumerate(holm(p_values)) if q is not None and q <= level} == rejected


def test_one_false_alarm_in_a_family_is_as_rare_as_promised() -> None:
    """2,000 families of ten comparisons without any difference; of 5 %, 1.96 standard errors are 1 %."""
    rng = np.random.default_rng(0)
    alarms = 0
    for values in rng.normal(size=(2000, 10, 8)):
        p = [p_value(interval_over_units(row)) for row in values]
        alarms += min(q for q in holm(p) if q is not None) < 0.05
    assert alarms / 2000 == pytest.approx(0.05, abs=0.012)
