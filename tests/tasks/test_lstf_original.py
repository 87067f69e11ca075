"""The published files' readers, on small files in their layouts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tasks.lstf import original
from tasks.lstf.original import ECL, ETTH1, ETTH2, ETTM1, WTH, Layout
from tasks.sources import DataUnavailable

LAYOUTS = [ETTH1, ETTH2, ETTM1, ECL, WTH]
BY_NAME = pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.name)


def header(layout: Layout) -> list[str]:
    """As published: the clients of ECL are numbered."""
    return ["date", *(layout.columns if layout is not ECL else (f"MT_{number:03d}" for number in range(321)))]


def table(layout: Layout, rows: int = 6) -> list[list[str]]:
    """Header and rows; the value in row r and series c is r + c / 1000."""
    times = np.datetime64("2016-07-01T00:00:00") + np.arange(rows) * np.timedelta64(layout.step * 60, "s")
    lines = [header(layout)]
    for number, time in enumerate(times.astype(str)):
        lines.append([time.replace("T", " "), *(f"{number + series / 1000}" for series in range(layout.channels))])
    return lines


def csv(lines: list[list[str]]) -> bytes:
    return "".join(",".join(line) + "\n" for line in lines).encode()


@BY_NAME
def test_layout_is_read_from_its_folder(layout, tmp_path):
    path = tmp_path / layout.file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(csv(table(layout)))
    series = original.load(replace(layout, rows=6), tmp_path)
    assert series.values.shape == (6, layout.channels)
    assert series.values.dtype == np.float32
    assert series.step == layout.step
    assert series.names == tuple(header(layout)[1:])  # the published target is the last column
    assert series.names[-1] == layout.target
    expected = np.arange(6)[:, None] + np.arange(layout.channels) / 1000
    np.testing.assert_array_equal(series.values, expected.astype(np.float32))
    assert series.times[0] == np.datetime64("2016-07-01T00:00")
    assert np.unique(np.diff(series.times)).tolist() == [np.timedelta64(layout.step, "m")]


@BY_NAME
def test_absent_file_is_one_line_that_says_where_it_goes(layout, tmp_path):
    with pytest.raises(DataUnavailable) as error:
        original.load(layout, tmp_path)
    message = str(error.value)
    assert "\n" not in message
    assert message.startswith(f"{layout.name}: no file {tmp_path / layout.file}")
    assert layout.published in message


def test_target_becomes_the_last_channel():
    lines = [[line[0], line[-1], *line[1:-1]] for line in table(ETTH1)]
    series = original.parse(csv(lines), ETTH1, "x.csv")
    assert series.names == original.parse(csv(table(ETTH1)), ETTH1, "x.csv").names
    np.testing.assert_array_equal(series.values, original.parse(csv(table(ETTH1)), ETTH1, "x.csv").values)


def test_times_of_a_spreadsheet_are_read():
    lines = table(WTH)
    for number in range(6):
        lines[number + 1][0] = f"2010/1/1 {number}:00"
    assert original.parse(csv(lines), WTH, "x.csv").times[5] == np.datetime64("2010-01-01T05:00")


def damaged(change: str) -> list[list[str]]:
    lines = table(ETTH1)
    if change == "missing column":
        lines = [[*line[:3], *line[4:]] for line in lines]
    elif change == "renamed column":
        lines[0][7] = "OTT"
    elif change == "extra column":
        lines = [[*line, "x" if line is lines[0] else "1"] for line in lines]
    elif change == "column twice":
        lines = [[*line, line[7]] for line in lines]
    elif change == "no date":
        lines = [line[1:] for line in lines]
    elif change == "gap":
        del lines[3]
    elif change == "wrong order":
        lines[3], lines[4] = lines[4], lines[3]
    elif change == "row twice":
        lines.insert(3, lines[3])
    elif change == "off the hour":
        lines[3][0] = "2016-07-01 02:00:30"
    elif change == "no time":
        lines[3][0] = "yesterday"
    elif change == "cut row":
        lines[-1] = lines[-1][:4]
    elif change == "long row":
        lines[3].append("1")
    elif change == "long rows":
        lines = [lines[0], *([*line, "1"] for line in lines[1:])]
    elif change == "no rows":
        del lines[1:]
    else:  # a cell
        lines[4][2] = change
    return lines


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing column", "'MUFL'"),
        ("renamed column", "'OT'.*did you mean 'OTT'"),
        ("extra column", "8 series, but ETTh1 has 7"),
        ("column twice", "8 series, but ETTh1 has 7"),
        ("no date", "'date'"),
        ("gap", "line 4: 2016-07-01 03:00:00 follows 2016-07-01 01:00:00, expected 60 minutes later"),
        ("wrong order", "line 4: 2016-07-01 03:00:00 follows 2016-07-01 01:00:00"),
        ("row twice", "line 5: 2016-07-01 02:00:00 follows 2016-07-01 02:00:00"),
        ("off the hour", "line 4: 2016-07-01 02:00:30 follows"),
        ("no time", "line 4: 'yesterday' is not a time"),
        ("cut row", "line 7, column 'MULL': 'nan' is not a finite number"),
        ("long row", "not a CSV table"),
        ("long rows", "line 2: '0.0' is not a time"),
        ("no rows", "no row after the header"),
        ("", "line 5, column 'HULL': 'nan' is not a finite number"),
        ("NaN", "line 5, column 'HULL': 'nan' is not a finite number"),
        ("inf", "line 5, column 'HULL': 'inf' is not a finite number"),
        ("5.8x", "line 5, column 'HULL': '5.8x' is not a finite number"),
    ],
)
def test_damaged_file_is_one_line(change, message, tmp_path):
    path = tmp_path / ETTH1.file
    path.parent.mkdir()
    path.write_bytes(csv(damaged(change)))
    with pytest.raises(ValueError, match=message) as error:
        original.load(ETTH1, tmp_path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\x00", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n"]
)
def test_file_that_is_no_table_is_one_line(content):
    with pytest.raises(ValueError, match=r"x\.csv") as error:
        original.parse(content, ETTH1, "x.csv")
    assert "\n" not in str(error.value)


def test_wrong_number_of_rows_is_one_line(tmp_path):
    path = tmp_path / ETTM1.file
    path.parent.mkdir()
    path.write_bytes(csv(table(ETTM1)))
    with pytest.raises(ValueError, match="6 rows, but the published file has 69,680"):
        original.load(ETTM1, tmp_path)


def test_missing_client_is_noticed():
    lines = [[*line[:5], *line[6:]] for line in table(ECL)]
    with pytest.raises(ValueError, match="320 series, but ECL has 321"):
        original.parse(csv(lines), ECL, "x.csv")
