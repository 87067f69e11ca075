"""Errors per unit of held-out time, and the forecasts that need no model.

A unit is a stretch of ``rows_per_unit`` consecutive steps of the held-out part. Its value is the mean error of all
forecasts of its steps, its weight how many there are, so that the weighted mean over units is the mean over all windows
and steps: the published figure where windows follow each other step by step (Informer, section 4.2). No step is in two
units; the rest of the part after the last whole unit belongs to that.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from jaxtyping import Float, Int

from tasks.contract import Scores

Inputs = Float[np.ndarray, "N L C"]
Forecast = Float[np.ndarray, "N H C"]


def repeat_last(inputs: Inputs, horizon: int, day: int) -> Forecast:
    """The last known value at every step."""
    return np.repeat(inputs[:, -1:], horizon, axis=1)


def daily_naive(inputs: Inputs, horizon: int, day: int) -> Forecast:
    """The value at the same time of the last known day, of ``day`` steps. Needs L >= day."""
    return inputs[:, -day + np.arange(horizon) % day]


def input_mean(inputs: Inputs, horizon: int, day: int) -> Forecast:
    """The mean over the input, at every step."""
    return np.repeat(inputs.mean(axis=1, keepdims=True), horizon, axis=1)


FLOORS: Mapping[str, Callable[[Inputs, int, int], Forecast]] = {
    "repeat_last": repeat_last,
    "daily_naive": daily_naive,
    "input_mean": input_mean,
}


class UnitErrors:
    """Sums of squared and absolute errors per unit, added window by window.

    Args:
        part: first row and the row after the last, of the held-out part.
        rows_per_unit: of each unit but the last, which is longer by the rest; a shorter part is one unit.
    """

    def __init__(self, part: tuple[int, int], rows_per_unit: int) -> None:
        self.begin, end = part
        self.rows_per_unit = rows_per_unit
        self.count = max(1, (end - self.begin) // rows_per_unit)
        self.sums = np.zeros((3, self.count))  # squared errors, absolute errors, (window, step) pairs

    def add(self, first: Int[np.ndarray, " N"], forecast: Forecast, target: Forecast) -> None:
        """Forecasts whose first steps are the rows ``first``; errors are means over channels."""
        error = forecast.astype(np.float64) - target
        rows = first[:, None] + np.arange(error.shape[1])
        unit = np.minimum((rows - self.begin) // self.rows_per_unit, self.count - 1).ravel()
        for total, values in zip(
            self.sums, ((error**2).mean(axis=2), np.abs(error).mean(axis=2), np.ones(rows.shape)), strict=True
        ):
            total += np.bincount(unit, values.ravel(), minlength=self.count)

    def scores(self, times: np.ndarray) -> Scores:
        """``mse`` and ``mae`` of the units that any forecast reached, named after the times of their first rows."""
        reached = np.flatnonzero(self.sums[2])
        squared, absolute, pairs = self.sums[:, reached]
        weights = pairs / pairs.mean()
        return Scores(
            units=[str(times[self.begin + self.rows_per_unit * unit]) for unit in reached],
            values={"mse": squared / pairs, "mae": absolute / pairs},
            weights={"mse": weights, "mae": weights},
        )
