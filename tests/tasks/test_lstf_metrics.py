"""Floors and errors per unit, against loops."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.lstf.metrics import FLOORS, UnitErrors

HOURS = np.datetime64("2000-01-01T00", "h") + np.arange(1000) * np.timedelta64(1, "h")


def test_floors_against_loops():
    inputs = np.random.default_rng(1).normal(size=(3, 48, 2))
    forecasts = {name: floor(inputs, 50, 24) for name, floor in FLOORS.items()}
    for step in range(50):
        past = 48 + step  # the same hour of the last day that is wholly known
        while past >= 48:
            past -= 24
        np.testing.assert_array_equal(forecasts["repeat_last"][:, step], inputs[:, 47])
        np.testing.assert_array_equal(forecasts["daily_naive"][:, step], inputs[:, past])
        np.testing.assert_array_equal(forecasts["input_mean"][:, step], inputs.mean(axis=1))


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_units_partition_all_errors_and_their_weighted_mean_is_the_mean_over_windows(batch):
    rng = np.random.default_rng(2)
    first = np.arange(100, 100 + 60)  # windows of 11 steps, one after each step, in the part 100..175
    forecast, target = rng.normal(size=(2, 60, 11, 3))
    errors = UnitErrors((100, 175), rows_per_unit=20)
    for start in range(0, 60, batch):
        rows = slice(start, start + batch)
        errors.add(first[rows], forecast[rows], target[rows])
    scores = errors.scores(HOURS)
    # 75 steps are three units of 20, the last of which takes the 15 left over.
    assert scores.units == [str(HOURS[row]) for row in (100, 120, 140)]
    weights = scores.weights["mse"]
    # Sums of 660 terms of unit scale in float64.
    assert np.average(scores.values["mse"], weights=weights) == pytest.approx(
        ((forecast - target) ** 2).mean(), rel=1e-12
    )
    assert np.average(scores.values["mae"], weights=weights) == pytest.approx(
        np.abs(forecast - target).mean(), rel=1e-12
    )

    by_unit: list[list[float]] = [[], [], []]
    for window, row in enumerate(first):
        for step in range(11):
            unit = min((row + step - 100) // 20, 2)
            by_unit[unit].append(float(((forecast - target)[window, step] ** 2).mean()))
    np.testing.assert_allclose(scores.values["mse"], [np.mean(unit) for unit in by_unit], rtol=1e-12)
    np.testing.assert_allclose(weights, np.array([len(unit) for unit in by_unit]) / 220, rtol=1e-12)


def test_unit_without_a_forecast_is_left_out():
    errors = UnitErrors((0, 60), rows_per_unit=20)
    for row in (0, 45):
        errors.add(np.array([row]), np.ones((1, 5, 1)), np.zeros((1, 5, 1)))
    assert errors.scores(HOURS).units == [str(HOURS[0]), str(HOURS[40])]


def test_part_shorter_than_a_unit_is_one_unit():
    errors = UnitErrors((10, 15), rows_per_unit=20)
    errors.add(np.array([10]), np.full((1, 5, 2), 3.0), np.zeros((1, 5, 2)))
    scores = errors.scores(HOURS)
    assert (scores.units, scores.values["mse"].tolist(), scores.values["mae"].tolist()) == (
        [str(HOURS[10])],
        [9.0],
        [3.0],
    )
