"""The data sets of Informer's experiments, read from the CSV files in which they were published.

Each file is a table: ``date`` and one column per series, a row per step. The published files have neither gaps nor
missing values, so whatever does not read as a number, or at its step, means a damaged or different file: an error.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

import numpy as np
import pandas as pd

from tasks.lstf.data import Months, Series, Shares
from tasks.published import ETT
from tasks.sources import DataUnavailable, shown

TIME = "date"
TIME_FORMATS = ("%Y-%m-%d %H:%M:%S", "%Y/%m/%d %H:%M")  # as published, and as spreadsheets save it

_ETT = ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
_WTH = (
    "Visibility",
    "DryBulbFarenheit",
    "DryBulbCelsius",
    "WetBulbFarenheit",
    "DewPointFarenheit",
    "DewPointCelsius",
    "RelativeHumidity",
    "WindSpeed",
    "WindDirection",
    "StationPressure",
    "Altimeter",
    "WetBulbCelsius",
)
_ETT_SPLIT = {"paper": Months(12, 4, 4)}
_CODE_SPLIT = Shares(train=0.7, test=0.2)


@dataclass(frozen=True)
class Layout:
    """A published file.

    Attributes:
        name: of the data set.
        folder: of its data root under ``<cache>/original``.
        file: path in the data root.
        columns: that it must have beside ``date``.
        channels: how many series it has.
        target: the series of the univariate form; the last channel of the multivariate one.
        step: minutes from row to row.
        rows: how many it has.
        splits: by name; the first is the default.
        published: where the file is to be had.
        source, licence, citation: for the card; the citation of the data where it is not Informer.
    """

    name: str
    folder: str
    file: str
    columns: tuple[str, ...]
    channels: int
    target: str
    step: int
    rows: int
    splits: Mapping[str, Months | Shares]
    published: str
    source: str
    licence: str
    citation: str = ""


def _ett(name: str, step: int, rows: int) -> Layout:
    return Layout(
        name=name,
        folder="ETDataset",
        file=f"ETT-small/{name}.csv",
        columns=_ETT,
        channels=len(_ETT),
        target="OT",
        step=step,
        rows=rows,
        splits=_ETT_SPLIT,
        published="https://github.com/zhouhaoyi/ETDataset",
        source=f"{name}: load and oil temperature of an electricity transformer, 2016-07 to 2018-06, {rows:,} rows,"
        " from github.com/zhouhaoyi/ETDataset",
        licence="CC BY-ND 4.0",
    )


ETTH1 = _ett("ETTh1", 60, 17_420)
ETTH2 = _ett("ETTh2", 60, 17_420)
ETTM1 = _ett("ETTm1", 15, 69_680)
ECL = Layout(
    name="ECL",
    folder="ECL",
    file="ECL.csv",
    columns=("MT_320",),
    channels=321,
    target="MT_320",
    step=60,
    rows=26_304,
    splits={"paper": Months(15, 3, 4), "code": _CODE_SPLIT},
    published="the Google Drive folder that the README of https://github.com/zhouhaoyi/Informer2020 links",
    source="ECL: electricity consumption of 321 clients, hourly, 2012-01 to 2014-12, 26,304 rows, as distributed with"
    " Informer2020; from ElectricityLoadDiagrams20112014 of the UCI repository",
    licence="CC BY 4.0 (UCI)",
    citation="; Trindade, ElectricityLoadDiagrams20112014, UCI, doi:10.24432/C58C86",
)
WTH = Layout(
    name="Weather (WTH)",
    folder="WTH",
    file="WTH.csv",
    columns=_WTH,
    channels=len(_WTH),
    target="WetBulbCelsius",
    step=60,
    rows=35_064,
    splits={"paper": Months(28, 10, 10), "code": _CODE_SPLIT},
    published="the Google Drive folder that the README of https://github.com/zhouhaoyi/Informer2020 links",
    source="Weather: local climatological data of one US station (NOAA), hourly, 2010 to 2013, 35,064 rows, as"
    " distributed with Informer2020",
    licence="US government work (NOAA), public domain",
)


def unavailable(layout: Layout, folder: Path, reason: str) -> DataUnavailable:
    path = folder / layout.file
    return DataUnavailable(
        f"{layout.name}: {reason}; get {layout.file} from {layout.published} and put it at {shown(path)}"
        " (another folder: task.data_root=FOLDER)"
    )


def load(layout: Layout, folder: Path) -> Series:
    """The data set, from ``<folder>/<file>``; fetched into the cache where its publisher serves it.

    Raises:
        DataUnavailable: the file is not there, and cannot be fetched.
        ValueError: it is not the published file; see :func:`parse`.
    """
    path = folder / layout.file
    if layout.name in ETT:
        ETT[layout.name].into(folder)
    if not path.is_file():
        raise unavailable(layout, folder, f"no file {shown(path)}")
    series = parse(path.read_bytes(), layout, str(path))
    if len(series.times) != layout.rows:
        raise ValueError(f"{path}: {len(series.times):,} rows, but the published file has {layout.rows:,}")
    return series


def parse(content: bytes, layout: Layout, name: str) -> Series:
    """The table of a file; the target is the last channel, as in Informer's code.

    Raises:
        ValueError: in one line, with the file and the line in it: a column is missing or too many, a cell is no finite
            number, a time is none, times do not follow each other at the data set's step.
    """
    frame = _table(content, name)
    wanted, found = (TIME, layout.target, *layout.columns), list(map(str, frame.columns))
    for column in wanted:
        if column not in found:
            near = get_close_matches(column, [other for other in found if other not in wanted], n=1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(f"{name}: no column {column!r}{hint}; it has {', '.join(found)}")
    names = [str(column) for column in frame.columns if column not in (TIME, layout.target)] + [layout.target]
    if len(names) != layout.channels:
        raise ValueError(f"{name}: {len(names)} series, but {layout.name} has {layout.channels}")
    if frame.empty:
        raise ValueError(f"{name}: no row after the header")
    times = _times(frame[TIME].astype(str), layout.step, name)
    return Series(times, _numbers(frame[names], name), tuple(names), layout.step)


def _table(content: bytes, name: str) -> pd.DataFrame:
    try:
        return pd.read_csv(io.BytesIO(content), encoding="utf-8-sig", low_memory=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: not a CSV table: {' '.join(str(error).split())}") from error


def _times(text: pd.Series[str], step: int, name: str) -> np.ndarray:
    times = max(
        (pd.to_datetime(text, format=form, errors="coerce") for form in TIME_FORMATS),
        key=lambda parsed: int(parsed.notna().sum()),
    )
    if times.isna().any():
        row = int(np.argmax(times.isna()))
        raise ValueError(f"{name}, line {row + 2}: {text.iloc[row]!r} is not a time such as 2016-07-01 00:00:00")
    minutes = times.to_numpy().astype("datetime64[m]")
    irregular = np.diff(times.to_numpy().astype("datetime64[s]").astype(np.int64)) != 60 * step
    if irregular.any():
        row = int(np.argmax(irregular))
        raise ValueError(
            f"{name}, line {row + 3}: {times.iloc[row + 1]} follows {times.iloc[row]}, expected {step} minutes later"
        )
    return minutes


def _numbers(frame: pd.DataFrame, name: str) -> np.ndarray:
    values = frame.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    wrong = ~np.isfinite(values)
    if wrong.any():
        row, column = (int(index) for index in np.argwhere(wrong)[0])
        cell = frame.iloc[row, column]
        raise ValueError(
            f"{name}, line {row + 2}, column {frame.columns[column]!r}: {str(cell)!r} is not a finite number"
        )
    return values.astype(np.float32)
