"""Records of every schema that was ever written still load, and mean what they meant."""

import math
import shutil
from pathlib import Path

import pytest

from cab.records import SCHEMA_VERSION, RecordStore
from cab.report.evidence import read_evidence
from cab.report.make import make_report
from cab.report.study import build_study

SCHEMAS = Path(__file__).parents[1] / "schemas"


def test_there_is_a_fixture_of_every_schema() -> None:
    assert {path.name for path in SCHEMAS.iterdir()} == {str(version) for version in range(1, SCHEMA_VERSION + 1)}


@pytest.mark.parametrize("version", sorted(path.name for path in SCHEMAS.iterdir()))
def test_every_line_is_read(version: str) -> None:
    problems: list[str] = []
    rows = list(RecordStore(SCHEMAS / version).lines(problems))
    files = (SCHEMAS / version / "records").iterdir()
    written = [line for path in files for line in path.read_text().splitlines() if line]
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


def test_schema_2_gives_the_study_that_it_gave(tmp_path: Path) -> None:
    folder = tmp_path / "first_token" / "intel-xeon-2-cores"
    shutil.copytree(SCHEMAS / "2", folder)
    study = build_study(read_evidence(folder))
    assert study is not None
    (table,) = study.tables
    shown = {str(row.head.text): [cell.text for cell in row.cells] for row in table.rows}
    rows = list(RecordStore(folder).lines())
    errors = {row["setting"]: row["value"] for row in rows if row["metric"] == "output_error"}
    place = [column.title for column in table.columns].index("Output error")
    assert len(errors) == 3
    for setting, error in errors.items():
        assert float(shown[setting][place]) == pytest.approx(error, rel=0.5, abs=5e-4)  # as it is rounded
    assert {row["phase"] for row in rows} >= {"evaluate", "evaluate_exact", "fidelity"}
