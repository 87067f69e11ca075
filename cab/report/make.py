"""``cab report``: from the records of a folder to its pages, figures and exports. Reads records, runs nothing."""

from __future__ import annotations

import contextlib
import gc
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from cab import schema
from cab.protocol import existing
from cab.record_lines import COLUMN_TYPES
from cab.report.book import BASELINE, Book, build_book
from cab.report.compare import counterparts, write_comparison
from cab.report.crossings import Fit, fit_named
from cab.report.evidence import Evidence, read_evidence
from cab.report.exports import tables_of, to_csv, to_latex
from cab.report.figures import Drawable, write_figures
from cab.report.markdown import to_markdown
from cab.report.page import study_html, to_html
from cab.report.study import build_study, study_markdown
from cab.report.tables import Table
from tasks.whole_file import write_whole


@dataclass(frozen=True)
class Report:
    """What :func:`make_report` wrote.

    Attributes:
        folder: ``<results>/<protocol>/<hardware>``.
        paths: of the files, the two pages first.
        top: lines for a terminal: per pattern its title, the answer, and the first rows of its table.
        book: everything that the pages show.
        problems: what could not be read, as ``file:line: why``.
        pending: cells that are planned and have no record yet.
    """

    folder: Path
    paths: tuple[Path, ...]
    top: tuple[str, ...]
    book: Book
    problems: tuple[str, ...]
    pending: int


SUMMARY = "summary.txt"

_ARROW = {
    column: {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_()}[types[0]]
    for column, types in COLUMN_TYPES.items()
}


def make_report(folder: Path, *, figures: bool = True, fit: Fit | None = None) -> Report:
    """Writes ``leaderboard.md``, ``index.html``, ``figures/``, ``summary.txt`` (the answer and the top of each
    pattern, for a terminal), ``tables/`` (each table as CSV and LaTeX), ``records.csv`` and ``records.parquet``; for a
    drop-in study ``dropin.md`` and ``dropin.html`` too.

    The same records give the same bytes. With ``figures`` false no figure is drawn anew and nothing is exported, for
    the rebuilds while results come in. ``fit`` ``cab2023`` adds CAB's own efficiency lengths; None: as the command
    asked for that made the newest records.

    Raises:
        ValueError: ``folder`` holds no records.
    """
    with _no_collection():
        evidence = read_evidence(folder)
        book = build_book(evidence, fit)
        study = build_study(evidence)
    shown: list[Drawable] = [
        figure for section in book.sections for part in section.patterns for figure in part.figures
    ]
    shown += study.figures if study is not None else ()
    drawn = write_figures(folder / "figures", shown, redraw=figures)
    paths = [
        write_whole(folder / "leaderboard.md", to_markdown(book, drawn).encode()),
        write_whole(folder / "index.html", to_html(book, drawn, study=study is not None).encode()),
        write_whole(folder / SUMMARY, ("\n".join(_top(book)) + "\n").encode()),
    ]
    if study is not None:
        lines = study_markdown(study, folder, [picture.figure.name for picture in drawn])
        paths.append(write_whole(folder / "dropin.md", ("\n".join(lines) + "\n").encode()))
        paths.append(write_whole(folder / "dropin.html", study_html(study, folder, drawn).encode()))
    if figures:
        paths += _export(folder, evidence)
        paths += _export_tables(folder / "tables", [*tables_of(book), *(study.tables if study is not None else ())])
    paths += [path for picture in drawn for path in (picture.svg, picture.png)]
    return Report(folder, tuple(paths), _top(book), book, book.problems, book.pending)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """No search for cycles: there are none among millions of rows and cells, and each search goes through all."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _top(book: Book) -> tuple[str, ...]:
    lines: list[str] = []
    for part in book.sections[0].patterns if book.sections else ():
        lines.append(f"{part.pattern.short}  {part.pattern.title}")
        lines += [f"    {line}" for line in (*part.answer, *part.top)]
    return tuple(lines)


def top_of_each_pattern(report: Report) -> str:
    """The answer and the first rows of each pattern, as text for a terminal."""
    return "\n".join(report.top)


def _export(folder: Path, evidence: Evidence) -> list[Path]:
    """Every row, exact duplicates once, as CSV and Parquet."""
    columns = {name: pa.array([row.get(name) for row in evidence.rows], kind) for name, kind in _ARROW.items()}
    table = pa.table(columns)
    csv, parquet = io.BytesIO(), io.BytesIO()
    pa.csv.write_csv(table, csv, pa.csv.WriteOptions(quoting_style="needed"))
    pa.parquet.write_table(table, parquet)
    found = {"records.csv": csv, "records.parquet": parquet}
    return [write_whole(folder / name, content.getvalue()) for name, content in found.items()]


def _export_tables(folder: Path, tables: Iterable[Table]) -> list[Path]:
    """Each table as CSV and as LaTeX; those of an earlier report go."""
    written = []
    for table in tables:
        written.append(write_whole(folder / f"{table.anchor}.csv", to_csv(table).encode()))
        written.append(write_whole(folder / f"{table.anchor}.tex", to_latex(table).encode()))
    for stale in {*folder.glob("*.csv"), *folder.glob("*.tex")} - set(written):
        stale.unlink()
    return written


def folders_with_records(results: Path) -> list[Path]:
    """Every ``<results>/<protocol>/<hardware>`` that holds a record file."""
    return sorted({path.parent.parent for path in results.glob("*/*/records/*.jsonl")})


def _with_records(results: str) -> list[Path]:
    folders = folders_with_records(Path(results).expanduser())
    if not folders:
        raise ValueError(
            f"results={results!r} holds no records (<protocol>/<hardware>/records/*.jsonl); make some with "
            "`cab leaderboard`, or give another folder with results=DIR"
        )
    return folders


def compare_results(config: schema.Report) -> list[Path]:
    """``comparison.md`` for each protocol that both of ``config.results`` have.

    Raises:
        ValueError: they are not two, or have nothing in common.
    """
    results = list(config.results) if isinstance(config.results, list | tuple) else [config.results]
    if len(results) != 2 or not all(isinstance(folder, str) for folder in results):
        raise ValueError(f"results={results} is not allowed: one folder, or two to compare, as results=[A,B]")
    if config.folder is not None:
        raise ValueError("folder= names one report; to compare two, results=[A,B] is enough")
    pairs = counterparts(*(_with_records(folder) for folder in results))
    written = []
    for first, second in pairs:
        if config.dry_run:
            print(f"would compare {first} with {second}")
            continue
        written.append(write_comparison(first, second, BASELINE))
        print(written[-1])
    return written


def report(config: schema.Report) -> list[Report]:
    """The verb: reports of ``config.folder``, or of every folder under ``config.results`` that holds records.

    Raises:
        ValueError: there are no records.
    """
    fit = None if config.fit is None else fit_named(config.fit)
    if not isinstance(config.results, str):
        compare_results(config)
        return []
    folders = [existing("folder", config.folder)] if config.folder is not None else _with_records(config.results)
    if config.dry_run:
        for folder in folders:
            print(f"would report {folder}")
        return []
    made = []
    for folder in folders:
        done = make_report(folder, fit=fit)
        made.append(done)
        print(f"{done.paths[1]}\n{done.paths[0]}")
        for problem in done.problems:
            print(f"  problem: {problem}")
    return made
