"""The robust index of each setting in a pattern, by task and over tasks; and the making of its reference sets.

A new version is made from the records of a board, ``python -m cab.report.indices FOLDER VERSION``, and never changed.
"""

from __future__ import annotations

import csv
import sys
from pathlib import Path

from cab.report import numbers
from cab.report.cells import CellMaker, range_of
from cab.report.certificates import card
from cab.report.evidence import read_evidence, sections
from cab.report.patterns import PATTERNS, PatternText
from cab.report.quality import Column as TaskColumn
from cab.report.quality import Quality
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.intervals import Interval, mean_of_independent
from cab.stats.robust_index import FIELDS, LATEST, Key, Reference, reference_set


def index_table(make: CellMaker, pattern: PatternText, size: str, anchor: str) -> Table | None:
    """None where the reference set knows none of the pattern's tasks at the size."""
    quality, known = make.quality, reference_set()
    columns = quality.columns(pattern.name)
    references = [known.get(Key(size, pattern.name, column.task, column.metric)) for column in columns]
    settings = make.admitted(pattern.name)
    if not settings or not any(references):
        return None
    rows = []
    for name in settings:
        found = []
        for column, reference in zip(columns, references, strict=True):
            score = quality.score(pattern.name, column, name)
            found.append(None if score is None or reference is None else reference.standardise(score.interval))
        whole = [interval for interval in found if interval is not None]
        mean = mean_of_independent(whole) if len(whole) == len(columns) else None
        gap = Cell(f"{len(whole)}/{len(columns)}", kind="gap", note="tasks with an index; the mean needs all of them")
        cells = [BLANK if interval is None else _cell(interval) for interval in found]
        rows.append((mean.value if mean else None, Row(Cell(name, name), (_cell(mean) if mean else gap, *cells))))
    rows.sort(key=lambda pair: (pair[0] is None, -(pair[0] or 0.0), pair[1].head.text))
    heads = [_head(column, reference) for column, reference in zip(columns, references, strict=True)]
    remark = (
        f"Robust index, reference set {LATEST}: 0 is the median of its settings, 1 is 1.4826 times their median "
        "absolute deviation, logarithms for perplexities and errors; larger is better. CAB's own index "
        "(`cab report source=published`) takes mean and deviation, which one failed method can blow up."
    )
    title = f"{pattern.title} ({pattern.short}): robust index"
    columns_ = (Column("Mean", f"of tasks, v{LATEST} ↑", "mean over the pattern's tasks, all equally"), *heads)
    return Table(anchor, title, "Setting", columns_, tuple(row for _, row in rows), (), (remark,))


def _cell(interval: Interval) -> Cell:
    text = numbers.signed(interval.value, interval.half_width)
    return Cell(text, interval.value, details=(("interval", range_of(interval)),))


def _head(column: TaskColumn, reference: Reference | None) -> Column:
    if reference is None:
        return Column(
            column.task, "no reference", "fewer than five settings in the reference set, or they were not told apart"
        )
    return Column(column.task, column.metric, f"against {reference.settings} settings of the reference set")


def make_reference(folder: Path) -> list[dict[str, str]]:
    """From the certified settings of a board a row per size, pattern and task that tells them apart."""
    evidence = read_evidence(folder)
    rows = []
    for section in sections(evidence.rows):
        quality = Quality(evidence, section.rows, "sdpa")
        make = CellMaker(evidence, quality)
        size = next((str(row["size"]) for row in section.rows if row.get("task")), "")
        for pattern in PATTERNS:
            settings = [
                name
                for name in make.admitted(pattern.name)
                if card(evidence.certificates, name).get("family") != "floor"
            ]
            for column in quality.columns(pattern.name):
                scores = [quality.score(pattern.name, column, name) for name in settings]
                values = [score.value for score in scores if score is not None]
                logarithmic = not column.higher_is_better and all(value > 0 for value in values)
                reference = Reference.of(values, higher_is_better=column.higher_is_better, logarithmic=logarithmic)
                if reference is not None and reference.tells_apart([s.interval for s in scores if s is not None]):
                    scale = "log" if reference.logarithmic else "linear"
                    ends = (reference.sign, scale, reference.median, reference.spread, reference.settings)
                    line = (size, pattern.name, column.task, column.metric, *ends)
                    rows.append(dict(zip(FIELDS, map(str, line), strict=True)))
    return rows


def main(folder: Path, version: int) -> None:
    """Writes ``index-v<version>.csv`` beside the protocols' folders; an existing version is never changed."""
    path = folder.parents[1] / f"index-v{version}.csv"
    with path.open("x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(make_reference(folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
