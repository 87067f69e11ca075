"""Questions of the CAB paper to our own records: does attention pay, how far does a model reach, is a mechanism steady.

* Benefit of attention (CAB, section 5.4): exact attention against ``identity``, which passes each position on alone.
* Length (section 5.6): the perplexity of language models at shorter and longer contexts than they were trained with.
* Consistency: one task that every pattern has, ``recall``, so that a mechanism's forms can be set side by side.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from cab.report import numbers
from cab.report.cells import CellMaker, range_of
from cab.report.patterns import PATTERNS, PatternText
from cab.report.quality import Column as TaskColumn
from cab.report.tables import BLANK, Cell, Column, Row, Table

NOTHING = "identity"
EVERYWHERE = "recall"
_AT_LENGTH = re.compile(r"perplexity_at_(\d+)")


def analyses(make: CellMaker, anchor: str) -> list[Table | None]:
    """The tables for which there are records."""
    return [
        benefit_of_attention(make, f"{anchor}-benefit"),
        *(by_length(make, pattern, f"{anchor}-{pattern.short}-by-length") for pattern in PATTERNS),
        consistency(make, f"{anchor}-consistency"),
    ]


def benefit_of_attention(make: CellMaker, anchor: str) -> Table | None:
    """A row per pattern and task with both; the gain of exact attention over none."""
    quality, rows = make.quality, []
    for pattern in PATTERNS:
        for column in quality.columns(pattern.name):
            ours, theirs = (quality.score(pattern.name, column, name) for name in (quality.baseline, NOTHING))
            loss = quality.gain(pattern.name, column, NOTHING)
            if ours is None or theirs is None or loss is None:
                continue
            value = numbers.signed(-loss.value, loss.half_width)
            benefit = Cell(value, -loss.value, details=(("interval of identity's gain", range_of(loss)),))
            cells = (
                Cell(pattern.short, pattern.short),
                Cell(f"{column.metric} {column.arrow}"),
                make.quality_cell(pattern.name, column, quality.baseline),
                make.quality_cell(pattern.name, column, NOTHING),
                benefit,
            )
            rows.append(Row(Cell(column.task, column.task), cells))
    columns = (
        Column("Pattern", numeric=False),
        Column("Metric", numeric=False),
        Column(quality.baseline, "exact"),
        Column(NOTHING, "no mixing"),
        Column("Benefit", "gain ↑", f"of {quality.baseline} over {NOTHING}, in the units of the gains above"),
    )
    remark = (
        "Where the benefit's interval reaches zero, the task does not tell attention from none in that slot, and says "
        "little of mechanisms there."
    )
    caption = "Does attention pay? Exact attention against none in the slot under test"
    return Table(anchor, caption, "Task", columns, tuple(rows), (), (remark,)) if rows else None


def by_length(make: CellMaker, pattern: PatternText, anchor: str) -> Table | None:
    """Perplexity at the contexts of ``task.evaluation_lengths``, shortest first, beside that of training."""
    quality = make.quality
    for column in quality.columns(pattern.name):
        measured = quality.every_metric(column)[1:]
        lengths = sorted((int(m[1]), other) for other in measured if (m := _AT_LENGTH.fullmatch(other.metric)))
        if lengths:
            return _by_length(make, pattern, column, lengths, anchor)
    return None


def _by_length(
    make: CellMaker, pattern: PatternText, column: TaskColumn, lengths: Sequence[tuple[int, TaskColumn]], anchor: str
) -> Table:
    rows = []
    for name in make.admitted(pattern.name):
        cells = [make.quality_cell(pattern.name, each, name) for each in (column, *(other for _, other in lengths))]
        rows.append(Row(Cell(name, name), tuple(cells)))
    heads = [Column(column.metric, f"as trained {column.arrow}")]
    heads += [Column(f"at {length:,}", f"{column.metric} {column.arrow}") for length, _ in lengths]
    remark = (
        "Each context scores about as much of each document. Positions beyond the trained context keep their initial "
        "values, so what is lost there is lost by position and mechanism together."
    )
    caption = f"{column.task} at other contexts than it was trained with"
    return Table(anchor, caption, "Setting", tuple(heads), tuple(rows), (), (remark,))


def consistency(make: CellMaker, anchor: str) -> Table | None:
    """``recall`` in all patterns, and the distance from the best to the worst of them."""
    quality = make.quality
    columns = {
        pattern: column for pattern in PATTERNS for column in quality.columns(pattern.name) if column.task == EVERYWHERE
    }
    if len(columns) < 2:
        return None
    certified = {pattern: set(make.admitted(pattern.name)) for pattern in columns}
    rows = []
    for name in sorted(set().union(*certified.values())):
        cells, values = [], []
        for pattern, column in columns.items():
            score = quality.score(pattern.name, column, name) if name in certified[pattern] else None
            values += [score.value] if score is not None else []
            cells.append(make.quality_cell(pattern.name, column, name) if name in certified[pattern] else BLANK)
        spread = max(values) - min(values) if len(values) > 1 else None
        cells.append(BLANK if spread is None else Cell(numbers.plain(spread), spread))
        rows.append(Row(Cell(name, name), tuple(cells)))
    heads = [Column(p.short, f"{column.metric} {column.arrow}", p.title) for p, column in columns.items()]
    heads.append(Column("Spread", "best - worst", "over the patterns that the mechanism has a form for"))
    remark = "The patterns of recall differ in length and layout, so a spread is of mechanism and task together."
    caption = f"Is a mechanism steady? {EVERYWHERE} in every pattern"
    return Table(anchor, caption, "Setting", tuple(heads), tuple(rows), (), (remark,))
