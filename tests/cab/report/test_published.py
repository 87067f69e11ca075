"""What CAB published beside what was measured: its own figures from its own raw data, and ours in columns apart."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cab.report.book import build_book
from cab.report.evidence import read_evidence
from cab.report.published import raw_table
from cab.report.tables import Row, Table

NS = "noncausal_self"
LENGTHS = (256, 512, 1024, 2048)


def row_of(table: Table, head: str) -> dict[str, str]:
    row: Row = next(row for row in table.rows if row.head.text == head)
    titles = [f"{column.title} {column.subtitle}".strip() for column in table.columns]
    return {title: cell.text for title, cell in zip(titles, row.cells, strict=True)}


def test_the_fit_on_cabs_raw_data_gives_cabs_figures_and_the_points_give_others() -> None:
    table = raw_table("raw")
    time, memory = row_of(table, "ABC, time"), row_of(table, "ABC, memory")
    assert (time["CAB printed tokens"], time["CAB's fit tokens"]) == ("1,877", "1,877")
    assert (memory["CAB printed tokens"], memory["CAB's fit tokens"]) == ("70", "70")
    assert time["Where the fits cross tokens"] == "474, 1,877"
    assert time["Where the points cross tokens"] == "457"
    assert memory["Where the points cross tokens"] == "from 256 or less"
    assert (time["R² of the parabola"], time["R² of the line"]) == ("0.9995", "0.9646")
    # The parabola at 256 is 700.9 us by the printed coefficients, measured were 472.
    assert time["Worst residual, parabola of the cost"] == "-48.5% at 256"


def measured(folder: Any, *, level: str = "layer") -> None:
    """ABC's two settings against softmax: equal in time at 700, in memory at 1,400."""
    for setting in ("softmax", "abc", "abc_cab", "linear"):
        folder.certificate(setting, {NS: "failed" if setting == "abc" else "certified"})
    for length in LENGTHS:
        for setting, attention in (("softmax", "softmax"), ("abc", "abc"), ("abc_cab", "abc"), ("linear", "linear")):
            exact = setting == "softmax"
            about = {"attention": attention, "level": level}
            folder.cost(setting, NS, length, "time_s", length**2 / 700 if exact else float(length), **about)
            folder.cost(setting, NS, length, "peak_extra_bytes", length**2 / 1400 if exact else float(length), **about)
            if not exact:
                folder.cost(setting, NS, length, "ratio", 700 / length, baseline="softmax", **about)


def compared(folder: Any) -> list[Table]:
    tables = build_book(read_evidence(folder.path), "cab2023").sections[0].tables
    return [table for table in tables if "published efficiency lengths" in table.caption]


def test_printed_fitted_and_measured_stand_in_columns_of_their_own(folder: Any) -> None:
    measured(folder)
    (table,) = compared(folder)
    # Linear attention was not in CAB, and abc's own setting has no certificate here.
    assert [row.head.text for row in table.rows] == ["ABC (abc_cab)"]
    shown = row_of(table, "ABC (abc_cab)")
    assert shown["Time: CAB printed tokens, ÷ vanilla"] == "1,877"
    assert shown["Time: CAB's fit here tokens, ÷ softmax"] == "700"
    assert shown["Time: measured here tokens, ÷ softmax"] == "700"
    assert shown["Memory: CAB printed tokens, ÷ vanilla"] == "70"
    assert shown["Memory: CAB's fit here tokens, ÷ softmax"] == "1,400"
    assert shown["Memory: measured here tokens, ÷ softmax"] == "1,400"


def test_cab_measured_a_layer_so_no_other_level_stands_beside_it(folder: Any) -> None:
    measured(folder, level="op")
    assert compared(folder) == []


@pytest.mark.parametrize(("recorded", "shown"), [("cab2023", True), ("measured", False), (None, False)])
def test_a_report_shows_what_the_measuring_command_asked_for(folder: Any, recorded: str | None, shown: bool) -> None:
    measured(folder)
    older = {"id": "a", "command": "cab leaderboard", "config": {"fit": "cab2023" if not shown else "measured"}}
    newer = {"id": "b", "command": "cab leaderboard", "config": {"fit": recorded}}
    (folder.path / "manifests").mkdir()
    for manifest in (older, newer) if recorded else (newer,):
        (folder.path / "manifests" / f"{manifest['id']}.json").write_text(json.dumps(manifest))
    book = build_book(read_evidence(folder.path))
    assert any("published" in table.caption for table in book.sections[0].tables) is shown
