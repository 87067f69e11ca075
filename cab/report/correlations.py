"""Which patterns and tasks agree on what is good: correlations of the gains of the settings that both have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cab.report import numbers
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.correlation import FEWEST, Correlation, correlation

REMARK = (
    "Pearson's r of the gains, Spearman's of their ranks behind the stroke, in brackets the settings that both have."
    " Exact attention and identity count as settings. Test examples and seeds move these numbers; no interval is given."
)


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
