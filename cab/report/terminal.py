"""The cost tables of a report on a terminal: per pattern the ratios by length and the efficiency length."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table as Shown

from cab.report.make import Report

COSTS = ("Faster from", "Time at ", "Memory at ")


def print_costs(report: Report) -> None:
    """The cost columns of every pattern's table, each gap with its reason, and where the pages are."""
    # No markup: sdpa[impl=math] is a name.
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=200)
    for section in report.book.sections:
        for part in section.patterns:
            main = part.main
            kept = [number for number, column in enumerate(main.columns) if column.title.startswith(COSTS)]
            if not kept:
                continue
            costs = next((remark for remark in main.remarks if remark.startswith("Cost: ")), "").partition(";")[0]
            title = "; ".join(filter(None, (main.caption, section.title, costs.removeprefix("Cost: "))))
            shown = Shown(title=title, title_justify="left", box=None)
            shown.add_column(main.head)
            for number in kept:
                column = main.columns[number]
                shown.add_column(f"{column.title}\n{column.subtitle}", justify="right")
            notes: list[str] = []
            for row in main.rows:
                if row.kind != "floor":
                    shown.add_row(row.head.text, *(row.cells[number].text for number in kept))
                    notes += [f"{row.head.text}: {row.cells[n].note}" for n in kept if row.cells[n].note]
            notes += [f"{', '.join(absent.settings)}: {absent.reason}" for absent in main.absent]
            console.print(shown)
            for note in dict.fromkeys(notes):
                console.print(f"  {note}", style="dim")
            console.print()
        if any(": cost by length" in table.caption for table in section.tables):
            console.print("Other levels, phases and shapes are on the page.\n")
    console.print(f"page:  {report.paths[1]}\ntable: {report.paths[0]}", soft_wrap=True)
