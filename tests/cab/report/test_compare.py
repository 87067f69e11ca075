"""Two folders side by side: equal ones have no change, a changed value is found, what has no counterpart is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cab.report.compare import CHANGED, Side, certificates, compare, counterparts, to_markdown
from cab.report.evidence import read_evidence
from cab.report.make import report
from cab.schema import Report as Config

NS = "noncausal_self"


def side(path: Path) -> Side:
    return Side.of(read_evidence(path), "sdpa")


def texts(first: Path, second: Path) -> list[str]:
    tables = [grid.table() for grid in compare(side(first), side(second))]
    return [cell.text for table in tables for row in table.rows for cell in row.cells]


@pytest.fixture
def twice(filled: Any, tmp_path: Path) -> tuple[Path, Path]:
    other = tmp_path / "later" / "quick" / "test-2-cores"
    shutil.copytree(filled.path, other)
    return filled.path, other


def rewrite(path: Path, change: Any) -> None:
    for file in (path / "records").glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().split("\n") if line]
        file.write_text("".join(json.dumps(change(row)) + "\n" for row in rows))


def test_a_folder_against_itself_has_no_change(twice: tuple[Path, Path]) -> None:
    found = texts(*twice)
    assert sum("→" in text for text in found) > 50
    assert not any(CHANGED in text for text in found)
    assert "0 of " in to_markdown(side(twice[0]), side(twice[1]))


def test_a_slower_mechanism_and_a_lost_run_are_told(twice: tuple[Path, Path]) -> None:
    first, second = twice

    def change(row: dict[str, Any]) -> dict[str, Any]:
        if row["setting"] == "linear" and row["metric"] == "ratio" and row["pattern"] == NS:
            return row | {"value": 2 * row["value"]}
        if row["setting"] == "performer" and row["task"] == "recall":
            return row | {"status": "diverged", "value": None, "reason": "made so"}
        return row

    rewrite(second, change)
    tables = {grid.anchor: grid.table() for grid in compare(side(first), side(second))}
    times = {row.head.text: row.cells for row in tables["NS-time-0"].rows}
    assert all(cell.text.endswith(CHANGED) for cell in times["linear"])
    assert not any(cell.text.endswith(CHANGED) for cell in times["performer"])
    # Twice the time, so the difference is as large as the first value was.
    assert times["linear"][0].sort == pytest.approx(2.2 * 1.0, rel=0.1)
    quality = {row.head.text: row.cells for row in tables["NS-quality"].rows}
    assert quality["performer"][0].kind == "gap"
    assert quality["performer"][0].text.endswith("→ none")


def test_a_lost_certificate_is_told(twice: tuple[Path, Path]) -> None:
    path = twice[1] / "certificates" / "linear.json"
    content = json.loads(path.read_text())
    content["patterns"][NS]["mark"] = "failed"
    content["patterns"][NS]["passed"] = False
    path.write_text(json.dumps(content))
    table = certificates(side(twice[0]), side(twice[1]))
    assert table is not None
    assert [row.head.text for row in table.rows] == ["linear"]
    assert table.rows[0].cells[0].text == f"certified → failed {CHANGED}"


def test_the_verb_pairs_folders_and_writes_into_the_second(
    twice: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = twice
    report(Config(results=[str(first.parents[1]), str(second.parents[1])]))
    assert capsys.readouterr().out.strip() == str(second / "comparison.md")
    once = (second / "comparison.md").read_bytes()
    assert not (first / "comparison.md").exists()
    report(Config(results=[str(first.parents[1]), str(second.parents[1])]))
    assert (second / "comparison.md").read_bytes() == once


def test_one_protocol_on_two_machines_belongs_together(tmp_path: Path) -> None:
    a, b = tmp_path / "a" / "quick", tmp_path / "b" / "quick"
    assert counterparts([a / "gpu"], [b / "cpu"]) == [(a / "gpu", b / "cpu")]
    assert counterparts([a / "gpu", a / "cpu"], [b / "cpu"]) == [(a / "cpu", b / "cpu")]
    with pytest.raises(ValueError, match="which belong together"):
        counterparts([a / "gpu", a / "tpu"], [b / "cpu"])
    with pytest.raises(ValueError, match="nothing to compare: the first has the protocols quick, the second zoo"):
        counterparts([a / "gpu"], [tmp_path / "b" / "zoo" / "cpu"])


@pytest.mark.parametrize("results", [[], ["a"], ["a", "b", "c"], ["a", 1]])
def test_other_than_two_folders_is_one_line(results: list[Any]) -> None:
    with pytest.raises(ValueError, match="one folder, or two to compare"):
        report(Config(results=results))


def test_values_without_intervals_change_where_they_differ(folder: Any, tmp_path: Path) -> None:
    folder.certificate("sdpa", {NS: "certified"}, exact=True)
    folder.task("recall", [NS])
    folder.quality("sdpa", NS, "recall", np.array([0.5, 0.7]))
    other = tmp_path / "later" / "quick" / "test-2-cores"
    shutil.copytree(folder.path, other)
    rewrite(other, lambda row: row | {"value": row["value"] + 1e-9})
    for units in (other / "units").glob("*.npz"):
        units.unlink()
    assert texts(folder.path, other)[0].endswith(CHANGED)
