"""Intervals: identities against scipy, properties, and coverage in simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from cab.stats.comparisons import p_value
from cab.stats.intervals import (
    Interval,
    interval_over_units,
    mean_of_independent,
    paired_difference,
    ratio_interval,
)

FINITE = st.floats(-1e3, 1e3)


def test_below_three_units_there_is_no_interval() -> None:
    for values in ([4.0], [1.0, 3.0]):
        interval = interval_over_units(values)
        assert (interval.low, interval.high, interval.method) == (None, None, "n too small")
        assert interval.value == np.mean(values)


def test_few_equal_weights_give_the_textbook_t_interval() -> None:
    values = [1.0, 2.0, 4.0, 9.0, 3.5]
    low, high = stats.t.interval(0.9, 4, loc=np.mean(values), scale=stats.sem(values))
    interval = interval_over_units(values, level=0.9)
    assert interval.method == "student_t"
    # Both are the same formula; rounding only.
    assert (interval.low, interval.high) == pytest.approx((low, high), rel=1e-12)


def test_bca_agrees_with_scipy_on_a_large_skewed_sample() -> None:
    values = np.random.default_rng(3).gamma(1.0, size=400)
    ours = interval_over_units(values)
    theirs = stats.bootstrap((values,), np.mean, method="BCa", n_resamples=20_000, rng=np.random.default_rng(1))
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.method == "bca_bootstrap"
    # 2,000 resamples place a 2.5 % quantile within about 4 % of the width (one standard error).
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.12 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.12 * width)


@pytest.mark.parametrize("n", [5, 40])
def test_the_weighted_mean_is_a_ratio_of_sums_and_zero_weights_do_not_count(n: int) -> None:
    rng = np.random.default_rng(0)
    x, w = rng.normal(size=n), rng.gamma(1.0, size=n)
    interval = interval_over_units(x, w)
    assert interval.value == pytest.approx((x * w).sum() / w.sum(), rel=1e-12)
    assert interval_over_units([*x, 1e9], [*w, 0.0]) == interval


@given(st.lists(FINITE, min_size=3, max_size=30), st.floats(0.1, 10.0), FINITE)
@settings(max_examples=30, deadline=None)
def test_intervals_move_and_stretch_with_the_values(values: list[float], scale: float, shift: float) -> None:
    base = interval_over_units(values)
    moved = interval_over_units(np.asarray(values) * scale + shift)
    assert base.low is not None
    assert base.high is not None
    assert base.low <= base.value + 1e-9
    # Rounding of sums of at most 30 numbers up to 1e4.
    assert moved.value == pytest.approx(base.value * scale + shift, abs=1e-7)
    if base.high - base.low > 1e-6:
        assert (moved.low, moved.high) == pytest.approx((base.low * scale + shift, base.high * scale + shift), abs=1e-6)


@pytest.mark.parametrize("n", [6, 60])
def test_a_perplexity_is_the_exponential_of_the_mean_and_of_its_interval(n: int) -> None:
    x = np.random.default_rng(1).normal(2.0, 0.3, size=n)
    mean, perplexity = interval_over_units(x), interval_over_units(x, aggregate="exp_mean")
    assert mean.low is not None
    assert mean.high is not None
    expected = np.exp([mean.value, mean.low, mean.high])
    assert (perplexity.value, perplexity.low, perplexity.high) == pytest.approx(tuple(expected), rel=1e-12)


@pytest.mark.parametrize("n", [6, 60])
@pytest.mark.parametrize("aggregate", ["mean", "exp_mean"])
def test_a_paired_difference_does_not_see_what_the_units_share(n: int, aggregate: str) -> None:
    rng = np.random.default_rng(2)
    shared = rng.normal(scale=0.5, size=n)
    better, worse = shared, shared + 0.1 + rng.normal(scale=0.01, size=n)
    paired = paired_difference(better, worse, aggregate=aggregate)  # type: ignore[arg-type]
    assert not paired.holds(0.0)
    assert interval_over_units(better).holds(float(worse.mean()))
    assert paired_difference(better, better, aggregate=aggregate).holds(0.0)  # type: ignore[arg-type]


def test_the_same_input_gives_the_same_interval() -> None:
    x = np.random.default_rng(5).normal(size=50)
    assert interval_over_units(x) == interval_over_units(x)


def test_a_ratio_and_its_inverse_have_inverse_intervals() -> None:
    ratios = np.array([1.9, 2.2, 2.05])
    there, back = ratio_interval(ratios), ratio_interval(1 / ratios)
    assert there.low is not None
    assert there.high is not None
    assert (back.low, back.value, back.high) == pytest.approx(
        (1 / there.high, 1 / there.value, 1 / there.low), rel=1e-12
    )


def test_two_copies_of_one_op_tie_and_a_slower_one_does_not() -> None:
    rng = np.random.default_rng(0)
    ties = [ratio_interval(np.exp(rng.normal(0.0, 0.02, size=5))).holds(1.0) for _ in range(200)]
    slower = [ratio_interval(1.1 * np.exp(rng.normal(0.0, 0.02, size=5))).holds(1.1) for _ in range(200)]
    # 95 % of 200 is 190 with a standard deviation of 3.1: three of them either way.
    assert 180 <= sum(ties) <= 200
    assert 180 <= sum(slower) <= 200
    assert not ratio_interval([1.09, 1.10, 1.11, 1.10, 1.10]).holds(1.0)


@pytest.mark.parametrize(
    ("values", "weights"), [([], None), ([1.0, np.nan, 2.0], None), ([1.0, 2.0], [1.0]), ([1.0, 2.0], [1.0, -1.0])]
)
def test_what_has_no_mean_is_refused(values: list[float], weights: list[float] | None) -> None:
    with pytest.raises(ValueError):
        interval_over_units(values, weights)
    with pytest.raises(ValueError, match="positive"):
        ratio_interval([1.0, 0.0])


def test_equal_values_have_an_interval_of_no_width() -> None:
    for n in (4, 40):
        assert interval_over_units([0.5] * n) == Interval(
            0.5, 0.5, 0.5, 0.95, "student_t" if n == 4 else "bca_bootstrap", n
        )


@pytest.mark.slow
@pytest.mark.parametrize(("n", "weighted"), [(3, False), (10, False), (19, True), (20, False), (40, False), (40, True)])
def test_coverage(n: int, weighted: bool) -> None:
    """Of 1,500 intervals of a mildly skewed sample (gamma of shape 4), about 95 % hold the mean."""
    rng = np.random.default_rng(n)
    hits = 0
    for _ in range(1500):
        weights = rng.gamma(4.0, size=n) if weighted else None
        hits += interval_over_units(rng.gamma(4.0, size=n), weights).holds(4.0)
    # Binomial standard error 0.6 %; small skewed samples lose up to 3 % by theory (first-order Edgeworth term).
    assert 0.91 <= hits / 1500 <= 0.975


@pytest.mark.parametrize("sizes", [(3, 5), (4, 12), (15, 15)])
def test_the_mean_of_independent_intervals_is_welch_s(sizes: tuple[int, int]) -> None:
    rng = np.random.default_rng(sizes[0])
    x, y = rng.normal(2.0, 1.0, sizes[0]), rng.normal(1.0, 4.0, sizes[1])
    mean = mean_of_independent([interval_over_units(x), interval_over_units(-y)])
    theirs = stats.ttest_ind(x, y, equal_var=False)
    low, high = theirs.confidence_interval(0.95)
    # Half of the difference of the means; the same formula, rounding only.
    assert (mean.low, mean.high) == pytest.approx((low / 2, high / 2), rel=1e-12)
    assert mean.degrees == pytest.approx(theirs.df, rel=1e-12)
    assert p_value(mean) == pytest.approx(theirs.pvalue, rel=1e-9)


@pytest.mark.parametrize("n", [5, 40])
def test_the_mean_of_one_interval_is_that_interval(n: int) -> None:
    one = interval_over_units(np.random.default_rng(4).gamma(1.0, size=n))
    mean = mean_of_independent([one])
    assert (mean.value, mean.low, mean.high, mean.degrees) == pytest.approx((one.value, one.low, one.high, n - 1))


def test_a_mean_with_an_estimate_without_an_interval_has_none() -> None:
    mean = mean_of_independent([interval_over_units([1.0, 2.0, 3.0]), interval_over_units([4.0])])
    assert (mean.value, mean.low, mean.method) == (3.0, None, "n too small")


def test_a_baseline_against_itself_is_zero_without_width() -> None:
    mean = mean_of_independent([interval_over_units([0.0] * 4)] * 3)
    assert (mean.low, mean.value, mean.high) == (0.0, 0.0, 0.0)
    assert p_value(mean) == 1.0
