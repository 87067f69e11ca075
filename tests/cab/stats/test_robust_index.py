"""The robust index: against scipy's MAD, unmoved by one failed method, the same way up as the metric."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cab.stats.intervals import Interval
from cab.stats.robust_index import SMALLEST, Reference, reference_set

VALUES = st.lists(st.floats(1.0, 100.0), min_size=SMALLEST, max_size=30)


def of(values: list[float], *, higher_is_better: bool = True, logarithmic: bool = False) -> Reference:
    found = Reference.of(values, higher_is_better=higher_is_better, logarithmic=logarithmic)
    assert found is not None
    return found


def z(reference: Reference, value: float) -> float:
    return reference.standardise(Interval(value, None, None, 0.95, "n too small", 1)).value


@given(VALUES, st.booleans())
def test_middle_and_spread_are_scipy_s(values: list[float], logarithmic: bool) -> None:
    t = np.log(values) if logarithmic else np.array(values)
    found = Reference.of(values, higher_is_better=True, logarithmic=logarithmic)
    spread = stats.median_abs_deviation(t, scale="normal")
    if found is None:
        assert spread == 0
    else:
        # scipy's factor has more digits than the usual 1.4826
        assert found.spread == pytest.approx(spread, rel=2e-5)
        assert found.median == pytest.approx(np.median(t))


def test_the_middle_of_the_set_is_zero_and_one_is_a_deviation_of_a_normal_set() -> None:
    values = np.random.default_rng(0).normal(5, 2, 10_001).tolist()
    reference = of(values)
    assert z(reference, float(np.median(values))) == 0
    # 3 %: two standard errors of a MAD of 10,000 are 1.2 sqrt(1 / 5,000)
    assert z(reference, 7.0) == pytest.approx(1.0, abs=0.03)


@given(VALUES, st.floats(1.0, 100.0), st.floats(1.0, 100.0), st.booleans(), st.booleans())
def test_better_is_larger(values: list[float], a: float, b: float, higher: bool, logarithmic: bool) -> None:
    reference = Reference.of(values, higher_is_better=higher, logarithmic=logarithmic)
    if reference is not None and a < b:
        assert (z(reference, a) <= z(reference, b)) == higher or z(reference, a) == z(reference, b)


@pytest.mark.parametrize("failed", [1e3, 1e6, 1e300])
def test_one_failed_method_moves_nobody_s_index_by_more_than_its_rank(failed: float) -> None:
    good = [10.0, 11.0, 12.0, 13.0, 14.0, 15.0]
    first, second = (of([*good, worst], higher_is_better=False, logarithmic=True) for worst in (100.0, failed))
    for value in good:
        assert z(first, value) == z(second, value)


def test_ends_of_an_interval_stay_in_order_and_hold_the_value() -> None:
    for higher in (True, False):
        reference = of([1.0, 2.0, 4.0, 8.0, 16.0], higher_is_better=higher, logarithmic=True)
        found = reference.standardise(Interval(4.0, 2.0, 8.0, 0.95, "bca_bootstrap", 30))
        assert found.value == 0
        assert found.low is not None
        assert found.high is not None
        assert (found.low, found.high) == pytest.approx((-1 / 1.4826, 1 / 1.4826))


def test_a_set_that_is_small_or_of_one_value_is_none() -> None:
    assert Reference.of([1.0] * (SMALLEST - 1), higher_is_better=True, logarithmic=False) is None
    assert Reference.of([1.0] * 9 + [2.0], higher_is_better=True, logarithmic=False) is None


def test_a_perplexity_of_zero_is_infinitely_far_and_not_an_error() -> None:
    reference = of([1.0, 2.0, 4.0, 8.0, 16.0], higher_is_better=False, logarithmic=True)
    assert z(reference, 0.0) == math.inf


def test_a_version_that_is_not_there_is_empty() -> None:
    assert reference_set(10**6) == {}
