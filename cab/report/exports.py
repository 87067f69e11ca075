"""Every table of a report as CSV, for programs, and as LaTeX, for papers: ``tables/<anchor>.csv`` and ``.tex``."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from cab.report.book import Book
from cab.report.tables import Cell, Column, Table

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "÷": r"$\div$",
    "×": r"$\times$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "▽": r"$\triangledown$",
    "∞": r"$\infty$",
    "\u2212": r"$-$",  # minus
    "–": "--",
    "ρ": r"$\rho$",
    "→": r"$\to$",
    "▲": r"$\blacktriangle$",
    "≠": r"$\ne$",
    "²": r"\textsuperscript{2}",
    "…": r"\ldots{}",
}


def tables_of(book: Book) -> Iterator[Table]:
    """All tables of a report, in the order of its page."""
    for section in book.sections:
        for part in section.patterns:
            yield part.main
            if part.cost is not None:
                yield part.cost
        yield from section.tables
    yield from (table for table in (book.support, book.tasks) if table is not None)


def to_csv(table: Table) -> str:
    """A line per row. A column of numbers gives two: the value in full, and what the page shows or why it is a gap."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    heads = ["kind", table.head]
    for column in table.columns:
        title = " ".join((column.title, column.subtitle)).strip()
        heads += [title, f"{title}, as shown"] if column.numeric else [title]
    writer.writerow(heads)
    for row in table.rows:
        line = [row.kind, row.head.text]
        for column, cell in zip(table.columns, row.cells, strict=True):
            shown = cell.note if cell.kind in ("gap", "pending") and cell.note else cell.text
            line += [_value(cell), shown] if column.numeric else [shown]
        writer.writerow(line)
    return buffer.getvalue()


def _value(cell: Cell) -> str:
    return repr(float(cell.sort)) if cell.kind == "value" and isinstance(cell.sort, float | int) else ""


def to_latex(table: Table) -> str:
    """A ``tabular`` in the style of booktabs (``amssymb`` for the mark of floors), with its reasons as notes below."""
    heads = [latex(table.head), *(_head(column) for column in table.columns)]
    lines = [
        f"% {' '.join(table.caption.split())}",
        rf"\begin{{tabular}}{{l{''.join('r' if column.numeric else 'l' for column in table.columns)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
    ]
    kind = None
    for row in table.rows:
        if row.kind != kind:
            lines.append(r"\midrule")
            kind = row.kind
        lines.append(" & ".join(_cell(table, cell) for cell in (row.head, *row.cells)) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}"]
    lines += [rf"\par\footnotesize {number}: {latex(note)}" for number, note in enumerate(table.notes, start=1)]
    return "\n".join(lines) + "\n"


def _head(column: Column) -> str:
    if not column.subtitle:
        return latex(column.title)
    return rf"\shortstack{{{latex(column.title)} \\ {latex(column.subtitle)}}}"


def _cell(table: Table, cell: Cell) -> str:
    number = table.footnote(cell)
    text = latex(cell.text) + (" " + _LATEX["▽"] if cell.below_floor else "")
    return f"{text}$^{{{number}}}$" if number else text


def latex(text: str) -> str:
    """One line of text as LaTeX shows it, letter by letter."""
    return "".join(_LATEX.get(letter, letter) for letter in " ".join(text.split()))
