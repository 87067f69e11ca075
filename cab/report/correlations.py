"""Which patterns and tasks agree on what is good: correlations of the gains of the settings that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cab.report import numbers
from cab.report.cells import CellMaker
from cab.report.patterns import PATTERNS
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.correlation import FEWEST, Correlation, correlation

REMARK = (
    "Pearson's r of the gains, Spearman's of their ranks behind the stroke, in brackets the settings that both have."
    " Exact attention and identity count as settings. Test examples and seeds move these numbers; no interval is given."
)


def agreement(make: CellMaker, anchor: str) -> list[Table | None]:
    """Correlations of the patterns by mean gain, and of the tasks of each pattern by gain."""
    standings = {pattern: make.quality.standings(pattern.name, make.admitted(pattern.name)) for pattern in PATTERNS}
    means = {
        pattern.short: {standing.setting: standing.mean.value for standing in rows if standing.mean is not None}
        for pattern, rows in standings.items()
        if any(standing.mean is not None for standing in rows)
    }
    tables = [correlation_table(f"{anchor}-patterns-agree", "Do patterns agree on what is good?", "Pattern", means)]
    for pattern, rows in standings.items():
        tasks = {
            column.task: {s.setting: s.gains[column.task].value for s in rows if column.task in s.gains}
            for column in make.quality.columns(pattern.name)
        }
        caption = f"{pattern.title} ({pattern.short}): do tasks agree on what is good?"
        tables.append(correlation_table(f"{anchor}-{pattern.short}-tasks-agree", caption, "Task", tasks))
    return tables


def correlation_table(anchor: str, caption: str, head: str, gains: Mapping[str, Mapping[str, float]]) -> Table | None:
    """The correlations of all pairs of lists of gains by setting; None where there are not two lists."""
    names = list(gains)
    if len(names) < 2:
        return None
    rows = []
    for number, name in enumerate(names):
        cells = [_cell(correlation(gains[name], gains[other])) for other in names[:number]]
        rows.append(Row(Cell(name, name), (*cells, *_blanks(len(names) - number))))
    columns = tuple(Column(name, "r / ρ (n)", f"with {name}") for name in names)
    return Table(anchor, caption, head, columns, tuple(rows), (), (REMARK,))


def _blanks(count: int) -> Sequence[Cell]:
    """The diagonal and what is above it, which says nothing new."""
    return [BLANK] * count


def _cell(found: Correlation) -> Cell:
    if found.pearson is None or found.spearman is None:
        note = f"fewer than {FEWEST} settings have both, or all have one value"
        return Cell(f"masked ({found.methods})", kind="gap", note=note)
    text = f"{numbers.plain(found.pearson, 2)} / {numbers.plain(found.spearman, 2)} ({found.methods})"
    return Cell(text, found.pearson)
