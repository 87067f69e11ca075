"""``leaderboard.md``: the tables as Markdown, with the reason of every gap in a list under its table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cab.report.book import Book, PatternPart, SectionPart
from cab.report.figures import Drawn
from cab.report.legend import how_to_read
from cab.report.tables import Cell, Column, Table


def to_markdown(book: Book, drawn: Sequence[Drawn]) -> str:
    """The whole report as one Markdown text; pictures are linked relative to it."""
    return "\n".join(_lines(book, drawn)) + "\n"


def _lines(book: Book, drawn: Sequence[Drawn]) -> Iterator[str]:
    yield f"# CAB leaderboard: protocol `{book.protocol}` on `{book.hardware}`"
    yield ""
    if book.trust:
        yield f"**{book.trust}**"
        yield ""
    yield f"Newest record {book.newest}; {book.rows:,} records; {_commits(book)}."
    if book.pending:
        yield f"**Results are still coming in: {book.pending} cells are pending.**"
    yield ""
    yield from _answers(book)
    for number, section in enumerate(book.sections):
        if len(book.sections) > 1:
            yield from (f"# {section.title}{' (main group)' if number == 0 else ''}", "")
        yield from _section(section, drawn)
    for table in (book.support, book.tasks):
        if table is not None:
            yield from titled(table, "##")
    yield from ("## How to read this", "")
    for term, text in how_to_read(book):
        yield f"- **{term}**: {text}"
    yield from ("", "## Provenance", "")
    yield f"Hardware `{book.hardware}`, protocol `{book.protocol}`, newest record {book.newest}, {_commits(book)}."
    yield ""
    if book.software:
        yield from (f"- Software: {text}" for text in book.software)
    if book.reproduce:
        yield f"- To make it again: `{book.reproduce}`"
    if book.commands:
        yield f"- Commands that made the records: {', '.join(f'`{command}`' for command in book.commands[:20])}"
    yield "- The records: `records/*.jsonl`, as one table `records.csv` and `records.parquet`"
    yield "- The tables: `tables/*.csv` and `tables/*.tex`"
    yield ""
    if book.problems:
        yield from (f"Problems with what was read ({len(book.problems)}):", "")
        yield from (f"- `{_plain(problem)}`" for problem in book.problems)
        yield ""


def _commits(book: Book) -> str:
    return f"commit {', '.join(book.commits)}" if book.commits else "commit unknown (not from a checkout)"


def _answers(book: Book) -> Iterator[str]:
    if not book.sections:
        return
    yield from ("## The answer", "")
    for part in book.sections[0].patterns:
        yield f"**{part.pattern.title} ({part.pattern.short})**"
        yield ""
        yield from (f"- {_plain(line)}" for line in part.answer)
        yield ""


def _section(section: SectionPart, drawn: Sequence[Drawn]) -> Iterator[str]:
    for part in section.patterns:
        yield from titled(part.main, "##", part.pattern.meaning)
        yield from _absent(part)
        pictures = [picture for picture in drawn if picture.figure in part.figures]
        if pictures:
            yield " ".join(f"![{p.figure.title}](figures/{p.png.name})" for p in pictures)
            yield ""
        if part.cost is not None:
            yield from titled(part.cost, "###")
    for table in section.tables:
        yield from titled(table, "##")


def titled(table: Table, level: str, text: str = "") -> Iterator[str]:
    """Lines of one table under its caption, its notes and remarks below; ``level`` is the heading's marks."""
    yield from (f"{level} {table.caption}", "")
    if text:
        yield from (text, "")
    if table.rows:
        yield f"| {table.head} | {' | '.join(_heading(column) for column in table.columns)} |"
        yield f"|---|{'|'.join('---:' if column.numeric else '---' for column in table.columns)}|"
        for row in table.rows:
            yield f"| {_cell(table, row.head)} | {' | '.join(_cell(table, cell) for cell in row.cells)} |"
    else:
        yield "No row yet."
    yield ""
    if table.notes:
        yield from (f"{number}. {_plain(note)}" for number, note in enumerate(table.notes, start=1))
        yield ""
    yield from (line for remark in table.remarks for line in (remark, ""))


def _absent(part: PatternPart) -> Iterator[str]:
    if part.main.absent:
        yield from ("Without a row here:", "")
        yield from (f"- {_plain(', '.join(a.settings))}: {a.why} ({_plain(a.reason)})" for a in part.main.absent)
        yield ""


def _heading(column: Column) -> str:
    return f"{_plain(column.title)}<br>{_plain(column.subtitle)}" if column.subtitle else _plain(column.title)


def _cell(table: Table, cell: Cell) -> str:
    number = table.footnote(cell)
    text = _plain(cell.text) + (" ▽" if cell.below_floor else "")
    return f"{text} [{number}]" if number else text


def _plain(text: str) -> str:
    """One line that keeps a table's shape, whatever a reason holds."""
    return " ".join(text.split()).replace("|", "\\|")
