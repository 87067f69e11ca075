"""Many series in time as one matrix: parts, windows, standardisation and calendar. Knows neither files nor models.

A forecast is made at a row: the ``input_length`` rows before it are known, the ``horizon`` rows from it on are wanted.
Row and step mean the same: one hour, or a quarter of an hour.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32, Int

from tasks.contract import Split

MINUTES_PER_DAY = 24 * 60
DAYS_PER_MONTH = 30  # of the published splits, which count months in the released code as 30 days
Borders = Mapping[Split, tuple[int, int]]  # per part its first row and the row after its last


@dataclass(frozen=True)
class Series:
    """Values in time.

    Attributes:
        times: [T] datetime64[m], strictly rising; where two follow each other by more than ``step``, there is a gap.
        values: [T, C] float32, finite.
        names: of the C channels.
        step: minutes from row to row.
    """

    times: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]
    step: int = 60

    def window_starts(self, part: tuple[int, int], input_length: int, horizon: int, stride: int) -> np.ndarray:
        """First rows of the windows whose targets lie in the part and that cross no gap, every ``stride`` rows.

        The input may reach back into the part before, which is known by then; the first part has nothing before it.
        In a part without gaps the first target is the part's first row, or row ``input_length`` of the series. After a
        gap the windows begin anew.
        """
        begin, end = part
        gaps = 1 + np.flatnonzero(np.diff(self.times.astype("datetime64[m]").astype(np.int64)) != self.step)
        runs = pairwise([0, *gaps.tolist(), len(self.times)])
        return np.concatenate(
            [
                np.arange(max(start, begin - input_length), min(stop, end) - (input_length + horizon) + 1, stride)
                for start, stop in runs
            ]
        )


@dataclass(frozen=True)
class Months:
    """Parts of so many months of 30 days, one after another from the first row on; what is left over is not used."""

    train: int
    validation: int
    test: int

    def borders(self, rows: int, step: int) -> Borders:
        """Raises ``ValueError`` where the series is shorter than the parts together."""
        month = DAYS_PER_MONTH * MINUTES_PER_DAY // step
        edges = np.cumsum([0, self.train * month, self.validation * month, self.test * month]).tolist()
        if rows < edges[-1]:
            raise ValueError(f"{rows:,} rows are too few for {self}: it takes {edges[-1]:,}")
        return {"train": (0, edges[1]), "validation": (edges[1], edges[2]), "test": (edges[2], edges[3])}

    def __str__(self) -> str:
        return f"a split into {self.train}, {self.validation} and {self.test} months"


@dataclass(frozen=True)
class Shares:
    """The first ``train`` of the rows and the last ``test`` of them, each rounded down; validation between."""

    train: float
    test: float

    def borders(self, rows: int, step: int) -> Borders:
        first, last = int(rows * self.train), rows - int(rows * self.test)
        return {"train": (0, first), "validation": (first, last), "test": (last, rows)}

    def __str__(self) -> str:
        return f"a split of {self.train:.0%} for training and {self.test:.0%} for the test"


@dataclass(frozen=True)
class Scale:
    """``(x - mean) / std`` per channel, with mean and std of the training part alone; both are [C] float32."""

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def of(cls, series: Series, train: tuple[int, int]) -> Scale:
        """Raises ``ValueError`` where a channel is constant in the training part."""
        values = series.values[slice(*train)]
        mean, std = values.mean(axis=0, dtype=np.float64), values.std(axis=0, dtype=np.float64)
        if not (std > 0).all():
            raise ValueError(f"series {series.names[int(np.argmin(std))]!r} is constant in the training part")
        return cls(mean.astype(np.float32), std.astype(np.float32))

    def standardise(self, values: Float[np.ndarray, "*N C"]) -> Float32[np.ndarray, "*N C"]:
        return (values - self.mean) / self.std

    def undo(self, standardised: Float[np.ndarray, "*N C"]) -> Float[np.ndarray, "*N C"]:
        return standardised * self.std + self.mean


def calendar_features(step: int) -> int:
    """How many columns :func:`calendar` has at ``step`` minutes."""
    return 4 if step >= 60 else 5


def calendar(times: np.ndarray, step: int) -> Float32[np.ndarray, "T K"]:
    """Hour of the day, day of the week, of the month and of the year, each from -1/2 to 1/2; known for the future too.

    The time features that Informer's code uses by default. Below an hour the minute of the hour comes first.
    """
    index = pd.DatetimeIndex(times)
    columns = [index.hour / 23, index.day_of_week / 6, (index.day - 1) / 30, (index.day_of_year - 1) / 365]
    if step < 60:
        columns.insert(0, index.minute / 59)
    return np.stack([column.to_numpy(dtype=np.float64) for column in columns], axis=1).astype(np.float32) - 0.5


def gather(array: np.ndarray, starts: Sequence[int] | Int[np.ndarray, " N"], length: int) -> np.ndarray:
    """Rows ``start .. start + length - 1`` for each start: [N, length, ...]."""
    return array[np.asarray(starts)[:, None] + np.arange(length)]
