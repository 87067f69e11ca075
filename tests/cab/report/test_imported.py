"""The page of numbers from papers: printed and recomputed side by side, blanks and errors with their reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from cab.cli import main
from cab.report import imported
from cab.report.patterns import PATTERNS

NS, CS, NC, CC = PATTERNS


def test_the_page_holds_every_board_and_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "source=published", f"results={tmp_path}"]) == 0
    path = tmp_path / "published" / "leaderboard.md"
    assert str(path) in capsys.readouterr().out
    text = path.read_text()
    for pattern in PATTERNS:
        assert f"## {pattern.title} ({pattern.short}): CAB's compositional index" in text
    files = {path.name for path in Path(__file__).parents[3].glob("results/published/*.csv")}
    shown = {name for name in files if f"`{name}`" in text or f"`results/published/{name}`" in text}
    assert files - shown == {"cab2023-index-constants.csv"}
    main(["report", "source=published", f"results={tmp_path}"])
    assert path.read_text() == text


def test_a_blank_of_cab_is_blank_here_too() -> None:
    for pattern in PATTERNS:
        for row in imported.leaderboard(pattern).rows:
            for printed, made in zip(row.cells[::2], row.cells[1::2], strict=True):
                assert (printed.kind == "gap") == (made.kind == "blank"), row.head.text
                if printed.kind == "gap":
                    assert printed.note == imported.BLANK_IN_CAB


def test_known_errors_stand_beside_the_printed_value() -> None:
    table = imported.task_metrics(NC)
    titles = [column.title for column in table.columns]
    vanilla = next(row for row in table.rows if row.head.text == "vanilla")
    swapped = vanilla.cells[titles.index("LSTF ECL_MSE")]
    assert (swapped.text, swapped.sort) == ("0.478 (rather 0.449)", 0.478)
    assert swapped.note.startswith("D1")
    assert vanilla.cells[titles.index("LSTF ETT_MAE")].note.startswith("D2")
    abc = next(row for row in imported.task_metrics(CS).rows if row.head.text == "ABC")
    assert abc.cells[-1].text == "29.13 (rather 31.53)"


def test_an_unknown_source_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "source=publishd"]) == 2
    assert "did you mean 'published'" in capsys.readouterr().err
