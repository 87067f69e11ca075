"""Tables outside of the page: the values in full for programs, and text that LaTeX takes letter by letter."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pandas as pd
from hypothesis import given
from hypothesis import strategies as st

from cab.report.book import build_book
from cab.report.evidence import read_evidence
from cab.report.exports import latex, tables_of, to_csv, to_latex
from cab.report.make import make_report
from cab.report.tables import Cell, Column, Row, Table

NS = "noncausal_self"
TABLE = Table(
    "t",
    "A table, with 100 % of {everything}",
    "Setting",
    (Column("Error_rate", "÷ sdpa ↓"), Column("Kind", numeric=False)),
    (
        Row(Cell("a_b"), (Cell("0.12 ± 0.01", 0.123456789), Cell("R&D"))),
        Row(Cell("c"), (Cell("out of memory", kind="gap", note="50 % of $RAM, so it says"), Cell("x"))),
        Row(Cell("floor: d"), (Cell("0.9", 0.9, below_floor=True), Cell("–", kind="blank")), "floor"),
    ),
)


def test_a_program_reads_values_in_full_and_the_reason_of_a_gap() -> None:
    frame = pd.read_csv(io.StringIO(to_csv(TABLE)))
    assert frame["kind"].tolist() == ["entry", "entry", "floor"]
    assert frame["Setting"].tolist() == ["a_b", "c", "floor: d"]
    values = frame["Error_rate ÷ sdpa ↓"]
    assert values.isna().tolist() == [False, True, False]
    assert values[0] == 0.123456789
    assert frame["Error_rate ÷ sdpa ↓, as shown"].tolist() == ["0.12 ± 0.01", "50 % of $RAM, so it says", "0.9"]
    assert frame["Kind"].tolist() == ["R&D", "x", "–"]


def test_latex_has_a_line_per_row_and_the_reasons_below() -> None:
    lines = to_latex(TABLE).splitlines()
    assert lines[1] == r"\begin{tabular}{lrl}"
    assert lines[3] == r"Setting & \shortstack{Error\_rate \\ $\div$ sdpa $\downarrow$} & Kind \\"
    assert lines[5] == r"a\_b & 0.12 $\pm$ 0.01 & R\&D \\"
    assert lines[6] == r"c & out of memory$^{1}$ & x \\"
    assert lines[7:9] == [r"\midrule", r"floor: d & 0.9 $\triangledown$ & -- \\"]
    assert lines[-1] == r"\par\footnotesize 1: 50 \% of \$RAM, so it says"


@given(st.text())
def test_no_letter_of_a_text_is_a_command_of_latex(text: str) -> None:
    said = latex(text)
    # What stays after all that we write for special letters has none.
    said = re.sub(r"\\(text(backslash|asciitilde|asciicircum)\{\}|ldots\{\}|textsuperscript\{2\})", "", said)
    said = re.sub(r"\\[&%$#_{}]|\$(<|>|\||-|\\[a-z]+)\$", "", said)
    assert not re.search(r"[\\&%$#_{}~^\n]", said)


def test_every_table_of_the_page_is_exported_and_those_of_before_go(folder: Any) -> None:
    folder.certificate("sdpa", {NS: "certified"}, exact=True)
    folder.task("recall", [NS])
    folder.quality("sdpa", NS, "recall", np.linspace(0.8, 1.0, 30))
    stale = folder.path / "tables" / "of-before.csv"
    stale.parent.mkdir()
    stale.write_text("")
    made = make_report(folder.path)
    anchors = {table.anchor for table in tables_of(build_book(read_evidence(folder.path)))}
    assert {path.stem for path in (folder.path / "tables").iterdir()} == anchors
    assert {path for path in made.paths if path.parent.name == "tables"} == {*(folder.path / "tables").iterdir()}
    main = pd.read_csv(folder.path / "tables" / "main-NS.csv")
    values = main.filter(like="recall").iloc[:, 0]
    np.testing.assert_allclose(values[main["Setting"].str.contains("sdpa")], 0.9, rtol=1e-12)
