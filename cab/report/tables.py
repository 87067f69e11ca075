"""Tables as data, before any markup: a page and a Markdown file show the same cells.

A cell without a value has a reason (``Cell.note``), which the renderers print as a footnote of its table.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["value", "gap", "pending", "blank", "future"]

Details = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Cell:
    """What a cell shows.

    Attributes:
        text: the shown words or number.
        sort: what a sort goes by; None sorts last.
        kind: ``value``; ``gap`` (a failure, or nothing measured), ``pending`` (planned), ``future`` (value-causal);
            ``blank`` where nothing belongs.
        note: the reason, where ``text`` is not a value.
        details: label and text of what stands behind the cell: interval, runs, command.
        below_floor: whether the value is not better than the task's floor.
    """

    text: str
    sort: float | str | None = None
    kind: Kind = "value"
    note: str = ""
    details: Details = ()
    below_floor: bool = False


BLANK = Cell("–", kind="blank")


@dataclass(frozen=True)
class Column:
    """A column: its title, a second line (metric, unit, direction), what it means, and whether it holds numbers."""

    title: str
    subtitle: str = ""
    meaning: str = ""
    numeric: bool = True


@dataclass(frozen=True)
class Row:
    """``head`` is the row's header cell (the setting); ``cells`` go with the table's columns in order."""

    head: Cell
    cells: tuple[Cell, ...]
    kind: Literal["entry", "value_causal", "floor"] = "entry"


@dataclass(frozen=True)
class Absent:
    """Settings without a row, and why."""

    settings: tuple[str, ...]
    why: str
    reason: str


@dataclass(frozen=True)
class Table:
    """``anchor`` is unique on a page; ``head`` the title of the row headers; ``remarks`` stand under the table."""

    anchor: str
    caption: str
    head: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    absent: tuple[Absent, ...] = ()
    remarks: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(f"{self.anchor}: {len(row.cells)} cells for {len(self.columns)} columns")
        reasons = dict.fromkeys(cell.note for row in self.rows for cell in (row.head, *row.cells) if cell.note)
        object.__setattr__(self, "notes", tuple(reasons))

    def footnote(self, cell: Cell) -> int | None:
        """The number of the cell's reason below the table, from 1."""
        return self.notes.index(cell.note) + 1 if cell.note else None


def sentence(names: Sequence[str], nobody: str = "none") -> str:
    """``a, b and c``."""
    if not names:
        return nobody
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
