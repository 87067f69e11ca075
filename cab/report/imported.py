"""``cab report source=published``: numbers from papers, CAB's leaderboards made again from its own task metrics.

Imported numbers are never ranked with measured ones: they have a page of their own, and every known error is marked.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from attention_zoo.contract import Pattern
from cab import schema
from cab.errors import UserError
from cab.report.markdown import titled
from cab.report.patterns import PATTERNS, PatternText
from cab.report.published import LENGTHS_FILE, RAW_FILE, VANILLA, raw_table
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.compositional_index import PublishedIndex, published_constants, published_index
from cab.stats.published import published_rows

TASKS_FILE = "cab2023-tasks.csv"
BOARDS_FILE = "cab2023-leaderboards.csv"
# Whose corrected value CAB's own constants and leaderboard were made with, so that it is what the index wants.
USED_CORRECTED = "D4"
MEAN, DELTA = "mean", "delta"
BLANK_IN_CAB = "blank in CAB: a task of the pattern is missing, for this method or for vanilla attention"


def metrics_of(pattern: PatternText) -> Mapping[str, Mapping[str, float]]:
    """By method and metric, as CAB's index took them."""
    found: dict[str, dict[str, float]] = {}
    for row in published_rows(TASKS_FILE):
        if row["pattern"] == pattern.short:
            used = row["corrected"] if row["erratum"].startswith(USED_CORRECTED) else row["value"]
            found.setdefault(row["attention"], {})[row["metric"]] = float(used)
    return found


def leaderboard(pattern: PatternText) -> Table:
    """CAB's printed leaderboard of a pattern, and beside each figure the one that its task metrics make."""
    printed: dict[str, dict[str, str]] = {}
    for row in published_rows(BOARDS_FILE):
        if row["pattern"] == pattern.short:
            printed.setdefault(row["attention"], {})[row["column"]] = row["value"]
    made = {name: published_index(pattern.name, metrics) for name, metrics in metrics_of(pattern).items()}
    titles = list(next(iter(printed.values())))
    columns = []
    for title in titles:
        columns += [
            Column(title, "printed", "as in CAB's leaderboard"),
            Column(title, "from its metrics", "made here from the printed task metrics"),
        ]
    rows = []
    for name, values in printed.items():
        cells: list[Cell] = []
        for title in titles:
            cells += [_printed(values[title]), _made(made[name], made[VANILLA], title)]
        rows.append(Row(Cell(name, name), tuple(cells)))
    return Table(
        f"board-{pattern.short}",
        f"{pattern.title} ({pattern.short}): CAB's compositional index",
        "Method",
        tuple(columns),
        tuple(rows),
        (),
        (
            "Larger is better; 0 is the mean of CAB's reference methods. Rounded metrics alone move an index by up to "
            f"0.03. Files: `{BOARDS_FILE}`, `{TASKS_FILE}`.",
        ),
    )


def _printed(value: str) -> Cell:
    return Cell(value, float(value)) if value else Cell("–", kind="gap", note=BLANK_IN_CAB)


def _made(index: PublishedIndex, vanilla: PublishedIndex, column: str) -> Cell:
    if column == DELTA:
        value = None if index.mean is None or vanilla.mean is None else index.mean - vanilla.mean
    else:
        value = index.mean if column == MEAN else index.tasks[column]
    return BLANK if value is None else Cell(f"{value:.3f}", value)


def task_metrics(pattern: PatternText) -> Table:
    """CAB's task metrics as printed; a known error is marked, with the value that is most likely right."""
    rows = [row for row in published_rows(TASKS_FILE) if row["pattern"] == pattern.short]
    units = {row["metric"]: row["unit"] for row in rows}
    constants = published_constants()[Pattern(pattern.name)]
    columns = tuple(
        Column(f"{constant.task} {name}", f"{units[name]} {'↑' if constant.sign > 0 else '↓'}")
        for name, constant in constants.items()
    )
    by_method: dict[str, dict[str, Mapping[str, str]]] = {}
    for row in rows:
        by_method.setdefault(row["attention"], {})[row["metric"]] = row
    shown = [
        Row(Cell(name, name), tuple(_metric(of.get(metric)) for metric in constants)) for name, of in by_method.items()
    ]
    title = f"{pattern.title} ({pattern.short}): CAB's task metrics"
    return Table(f"metrics-{pattern.short}", title, "Method", columns, tuple(shown), (), (f"File: `{TASKS_FILE}`.",))


def _metric(row: Mapping[str, str] | None) -> Cell:
    if row is None:
        return Cell("–", kind="gap", note="not printed by CAB")
    text = f"{row['value']} (rather {row['corrected']})" if row["corrected"] else row["value"]
    return Cell(text, float(row["value"]), note=row["erratum"])


def plain_table(file: str, caption: str, head: str, row_of: Sequence[str], column_of: Sequence[str]) -> Table:
    """A file of one value per line as a table: rows and columns are what these of its columns name."""
    lines = published_rows(file)
    columns = list(dict.fromkeys((" ".join(line[c] for c in column_of), line["unit"]) for line in lines))
    cells: dict[str, dict[tuple[str, str], Cell]] = {}
    for line in lines:
        remark = "; ".join(text for text in (line.get("note", ""), line.get("erratum", "")) if text)
        value = line["value"]
        cell = Cell(value, float(value), note=remark) if value else Cell("–", kind="gap", note=remark or "not printed")
        key = (" ".join(line[c] for c in column_of), line["unit"])
        cells.setdefault(", ".join(line[c] for c in row_of), {})[key] = cell
    rows = [Row(Cell(name, name), tuple(of.get(key, BLANK) for key in columns)) for name, of in cells.items()]
    sources = dict.fromkeys(line["source"] for line in lines)
    remarks = (f"{'; '.join(sources)}. File: `{file}`.",)
    return Table(file, caption, head, tuple(Column(*key) for key in columns), tuple(rows), (), remarks)


def tables() -> list[Table]:
    """Everything that ``results/published`` holds."""
    boards = [table for pattern in PATTERNS for table in (leaderboard(pattern), task_metrics(pattern))]
    return [
        *boards,
        _lengths(),
        raw_table("raw"),
        plain_table("lra2021-accuracy.csv", "Long Range Arena: accuracy", "Model", ("attention",), ("task",)),
        plain_table(
            "lra2021-efficiency.csv",
            "Long Range Arena: training speed and memory by length",
            "Model",
            ("attention",),
            ("cost", "length"),
        ),
        plain_table("smyrf2020-results.csv", "SMYRF: published results", "Data, model", ("data", "model"), ("metric",)),
    ]


def _lengths() -> Table:
    rows = [
        Row(
            Cell(row["printed_name"], row["printed_name"]),
            tuple(Cell(f"{int(row[kind]):,}", float(row[kind])) for kind in ("time", "memory")),
        )
        for row in published_rows(LENGTHS_FILE)
    ]
    remark = f"Noncausal self attention, against vanilla attention. Files: `{LENGTHS_FILE}`, `{RAW_FILE}`."
    columns = (Column("Time", "tokens"), Column("Memory", "tokens"))
    return Table("lengths", "CAB's efficiency lengths", "Method", columns, tuple(rows), (), (remark,))


def report(config: schema.Report) -> Path | None:
    """Writes ``<results>/published/leaderboard.md``; None in a dry run."""
    if config.folder is not None:
        raise UserError("folder= names records; source=published makes its page from numbers of papers")
    if not isinstance(config.results, str):
        raise UserError(f"results={config.results} is not allowed: one folder, for the page of source=published")
    path = Path(config.results).expanduser() / "published" / "leaderboard.md"
    if config.dry_run:
        print(f"would write {path}")
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(_lines()) + "\n", encoding="utf-8")
    print(path)
    return path


def _lines() -> Iterator[str]:
    yield from ("# Numbers from papers", "")
    yield from (
        "Imported, not measured here: other hardware, other code, mostly one run and no interval. They are never "
        "ranked with measured numbers. Every known error is marked; its evidence is in `results/published/README.md`.",
        "",
    )
    for table in tables():
        yield from titled(table, "##")
