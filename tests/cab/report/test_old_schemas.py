"""Records of every schema that was ever written still load, and mean what they meant."""

import math
import shutil
from pathlib import Path

import pytest

from cab.records import SCHEMA_VERSION, RecordStore
from cab.report.make import make_report

SCHEMAS = Path(__file__).parents[1] / "schemas"


def test_there_is_a_fixture_of_every_schema() -> None:
    assert {path.name for path in SCHEMAS.iterdir()} == {str(version) for version in range(1, SCHEMA_VERSION + 1)}


@pytest.mark.parametrize("version", sorted(path.name for path in SCHEMAS.iterdir()))
def test_every_line_is_read(version: str) -> None:
    problems: list[str] = []
    rows = list(RecordStore(SCHEMAS / version).lines(problems))
    written = [line for path in (SCHEMAS / version / "records").iterdir() for line in path.read_text().splitlines()]
    assert problems == []
    assert len(rows) == len(written) > 0
    assert {row["schema_version"] for row in rows} == {int(version)}


def test_schema_1_gives_the_report_that_it_gave(tmp_path: Path) -> None:
    folder = tmp_path / "quick" / "intel-xeon-2-cores"
    shutil.copytree(SCHEMAS / "1", folder)
    report = make_report(folder, figures=False)
    (section,) = report.book.sections
    (part,) = (part for part in section.patterns if part.pattern.short == "CS")
    shown = {str(row.head.text): [cell.text for cell in row.cells] for row in part.main.rows}
    ratios = [0.7862784775683973, 0.739991348661479, 0.9202008369858136]
    assert any(text.startswith(f"{math.prod(ratios) ** (1 / 3):.2f} ±") for text in shown["linear"])
    assert any(text.startswith("0.213") for text in shown["linear"])
