"""Efficiency length: CAB's published vectors to the digit, and crossings that are known by construction."""

from __future__ import annotations

import numpy as np
import pytest

from cab.stats.efficiency_length import efficiency_length, fit_cab2023
from cab.stats.published import published_rows

LENGTHS = [256, 512, 1024, 2048, 4096, 8192]


def published(attention: str, cost: str, scale: float = 1.0) -> list[float]:
    """CAB's shipped raw data, from our copy of them."""
    every = published_rows("cab2023-efficiency-raw.csv")
    rows = [row for row in every if (row["attention"], row["cost"]) == (attention, cost)]
    assert [int(row["length"]) for row in rows] == LENGTHS
    return [scale * float(row["value"]) for row in rows]


# CAB's script fits microseconds and MiB.
VANILLA_TIME, ABC_TIME = (published(name, "time", 1000.0) for name in ("vanilla", "ABC"))
VANILLA_MEMORY, ABC_MEMORY = (published(name, "memory") for name in ("vanilla", "ABC"))


def test_cab_time_fit_to_the_digit() -> None:
    fit = fit_cab2023(LENGTHS, VANILLA_TIME, ABC_TIME, "time")
    assert fit.efficiency_length == 1877
    # The printed digits of the worked vector.
    assert fit.roots == pytest.approx((473.6, 1877.2584), abs=0.05)
    assert fit.roots[1] == pytest.approx(1877.2584, abs=5e-5)
    assert fit.quadratic == pytest.approx((3.466003018e-4, -0.6966679642, 856.5270833), rel=1e-9)
    assert fit.line == pytest.approx((0.1181404360, 548.375), rel=1e-9)
    assert (fit.r_squared_vanilla, fit.r_squared_efficient) == pytest.approx((0.99947665, 0.96464144), abs=1e-8)
    assert len(fit.residuals_vanilla) == 6
    assert len(fit.residuals_efficient) == 5


def test_cab_memory_fit_to_the_digit() -> None:
    fit = fit_cab2023(LENGTHS, VANILLA_MEMORY, ABC_MEMORY, "memory")
    assert fit.efficiency_length == 70
    assert fit.roots[-1] == pytest.approx(69.5066, abs=5e-5)
    assert fit.quadratic == pytest.approx((8.125237592561976e-4, 0.09382003824, 3.870833333), rel=1e-9)
    assert fit.line == pytest.approx((0.1484375, 4.0), rel=1e-12)
    assert (fit.r_squared_vanilla, fit.r_squared_efficient) == pytest.approx((1.0, 1.0), abs=1e-10)
    assert sum(fit.residuals_vanilla) == pytest.approx(0.0, abs=1e-9)


def test_curves_that_do_not_meet_have_no_root() -> None:
    cost = [float(length) ** 2 for length in LENGTHS]
    fit = fit_cab2023(LENGTHS, cost, [length - 1e9 for length in LENGTHS], "memory")
    assert fit.roots == ()
    assert fit.efficiency_length is None


def test_the_points_of_cab_cross_at_457() -> None:
    ratios = [[a / v] for a, v in zip(ABC_TIME, VANILLA_TIME, strict=True)]
    measured = efficiency_length(LENGTHS, ratios)
    assert measured.kind == "crossing"
    assert round(measured.value) == 457
    assert (measured.low, measured.high, measured.method) == (None, None, "n too small")


def test_a_power_law_crosses_where_it_does_by_construction() -> None:
    # ratio = (700 / L)^0.8 is linear in log-log, so that interpolation is exact up to rounding.
    ratios = [[(700 / length) ** 0.8 * factor for factor in (0.99, 1.0, 1 / 0.99)] for length in LENGTHS]
    measured = efficiency_length(LENGTHS, ratios)
    assert measured.value == pytest.approx(700, rel=1e-9)
    assert measured.low is not None
    assert measured.high is not None
    assert 512 < measured.low < 700 < measured.high < 1024
    assert measured.text == f"700 [{measured.low:,.0f}, {measured.high:,.0f}]"


def test_nothing_is_extrapolated() -> None:
    always = efficiency_length(LENGTHS, [[0.5, 0.51, 0.49]] * 6)
    never = efficiency_length(LENGTHS, [[1.5, 1.51, 1.49]] * 6)
    assert (always.kind, always.value, always.low) == ("from the shortest length", 256, None)
    assert (never.kind, never.value, never.high) == ("never up to L", 8192, None)
    assert never.text == "never up to 8,192"


def test_what_is_not_sure_shows_how_far_it_may_be_off() -> None:
    sure, wide = [0.5, 0.51, 0.49], [0.8, 1.0, 1.2]  # whose mean log ratio is below 0, by less than its error
    assert efficiency_length([256, 512], [sure, sure]).text == "from 256 or less"
    unsure = efficiency_length([256, 512, 1024], [wide, sure, sure])
    assert unsure.high is not None
    assert unsure.text == f"from 256 or less [to {unsure.high:,.0f}]"
    above = [[1 / ratio for ratio in ratios] for ratios in (sure, sure, wide)]
    late = efficiency_length([256, 512, 1024], above)
    assert late.low is not None
    assert late.text == f"never up to 1,024 [from {late.low:,.0f}]"
    lost = efficiency_length([256, 512], [sure, [2.0, 2.1, 1.9]])
    assert lost.text.startswith("only up to ")
    back = efficiency_length([256, 512, 1024, 2048], [sure, [1.2, 1.0, 1.1], sure, sure])
    assert back.text.startswith("several: ")
    assert back.text.endswith("]")


@pytest.mark.parametrize(
    "means", [[1.2, 0.8, 1.2, 0.8, 0.7, 0.6], [0.8, 0.9, 1.1, 1.2, 1.3, 1.4], [0.9, 1.1, 0.9, 0.8, 0.7, 0.6]]
)
def test_an_advantage_that_comes_and_goes_is_called_several(means: list[float]) -> None:
    measured = efficiency_length(LENGTHS, [[m] * 3 for m in means])
    assert measured.kind == "several"
    signs = np.sign(np.log(means))
    assert len(measured.crossings) == int((signs[1:] != signs[:-1]).sum())


def test_a_tie_has_an_interval_that_reaches_both_ends() -> None:
    measured = efficiency_length(LENGTHS, [[0.95, 1.0, 1 / 0.95]] * 6)
    assert measured.high is None
    assert efficiency_length([256, 512], [[0.95, 1.0, 1 / 0.95]] * 2).low is None


def test_one_length_and_many_processes() -> None:
    ratios = np.exp(np.random.default_rng(0).normal(-0.5, 0.05, size=(2, 25)))
    measured = efficiency_length([256, 512], ratios.tolist())
    assert (measured.kind, measured.method) == ("from the shortest length", "bootstrap")
    assert efficiency_length([256], [[1.2, 1.3, 1.2]]).kind == "never up to L"


@pytest.mark.parametrize(
    ("lengths", "ratios"),
    [([], []), ([256], []), ([512, 256], [[1.0], [1.0]]), ([256], [[]]), ([256], [[-1.0]]), ([256], [[np.inf]])],
)
def test_what_is_not_a_grid_of_ratios_is_refused(lengths: list[int], ratios: list[list[float]]) -> None:
    with pytest.raises(ValueError):
        efficiency_length(lengths, ratios)


def test_coverage_of_the_crossing() -> None:
    """Three processes with 5 % noise per length: the interval holds the true crossing about as often as it says."""
    rng = np.random.default_rng(7)
    truth = [(900 / length) ** 0.7 for length in LENGTHS]
    hits = 0
    for _ in range(200):
        ratios = [(m * np.exp(rng.normal(0.0, 0.05, size=3))).tolist() for m in truth]
        measured = efficiency_length(LENGTHS, ratios)
        hits += (measured.low or 0.0) <= 900 <= (measured.high or np.inf)
    # At least 95 % less three standard errors (1.5 % each); t at 2 degrees of freedom errs on the wide side.
    assert hits >= 181
