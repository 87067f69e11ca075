"""``cab report results=[A,B]``: two folders of results side by side, of two machines or versions, and what changed.

A pair of values *changed* where their 95 % intervals do not overlap (without intervals: where the values differ at
all). The rule is cautious: it overlooks some changes that a test of paired runs would find, and calls few that are not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cab.report import numbers
from cab.report.cells import commit_of
from cab.report.certificates import verdict
from cab.report.cost import Costs, variants
from cab.report.evidence import Evidence, read_evidence, sections
from cab.report.markdown import titled
from cab.report.patterns import PATTERNS, PatternText
from cab.report.quality import Column as TaskColumn
from cab.report.quality import Quality
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.intervals import Interval

CHANGED = "≠"


@dataclass(frozen=True)
class Side:
    """One of the two: the main group of a folder's records."""

    evidence: Evidence
    quality: Quality
    costs: tuple[Costs, ...]

    @classmethod
    def of(cls, evidence: Evidence, baseline: str) -> Side:
        rows = sections(evidence.rows)[0].rows
        return cls(evidence, Quality(evidence, rows, baseline), tuple(variants(rows, baseline)))

    @property
    def said(self) -> str:
        """Protocol, hardware, commits and age, in a line."""
        evidence = self.evidence
        first = evidence.rows[0]
        commits = dict.fromkeys(c for key in sorted(evidence.manifests) if (c := commit_of(evidence.manifests[key])))
        newest = max(str(row.get("started_at") or "") for row in evidence.rows)
        made = f"commit {', '.join(commits)}" if commits else "commit unknown"
        return f"`{first.get('protocol')}` on `{first.get('hardware')}`, {made}, newest record {newest}"


def changed(first: Interval, second: Interval) -> bool:
    """Whether two values are told apart."""
    if first.low is None or first.high is None or second.low is None or second.high is None:
        return first.value != second.value
    return first.high < second.low or second.high < first.low


def compare(first: Side, second: Side) -> list[Table]:
    """Per pattern a table of quality and, per variant of the costs that both have, one of time ratios."""
    tables = []
    for pattern in PATTERNS:
        tables += [_quality(first, second, pattern), *_costs(first, second, pattern)]
    return [table for table in (_certificates(first, second), *tables) if table is not None]


def compared_pairs(first: Side, second: Side) -> list[bool]:
    """Of every pair of values with an interval on both sides, whether it changed."""
    cells = [cell for table in compare(first, second) for row in table.rows for cell in row.cells]
    return [cell.text.endswith(CHANGED) for cell in cells if cell.kind == "value" and cell.text.count("±") == 2]


def _quality(first: Side, second: Side, pattern: PatternText) -> Table | None:
    theirs = {column.task: column for column in second.quality.columns(pattern.name)}
    columns = [column for column in first.quality.columns(pattern.name) if column.task in theirs]
    settings = {*first.quality.settings(pattern.name), *second.quality.settings(pattern.name)}
    if not columns or not settings:
        return None

    def interval(side: Side, column: TaskColumn, setting: str) -> Interval | None:
        score = side.quality.score(pattern.name, column, setting)
        return score.interval if score is not None else None

    rows = []
    for setting in sorted(settings):
        pairs = [(interval(first, c, setting), interval(second, theirs[c.task], setting)) for c in columns]
        rows.append(Row(Cell(setting, setting), tuple(_pair(a, b) for a, b in pairs)))
    heads = tuple(Column(column.task, f"{column.metric} {column.arrow}", column.description) for column in columns)
    caption = f"{pattern.title} ({pattern.short}): quality"
    return Table(f"{pattern.short}-quality", caption, "Setting", heads, tuple(rows))


def _costs(first: Side, second: Side, pattern: PatternText) -> Iterator[Table]:
    others = {costs.variant: costs for costs in second.costs}
    for number, costs in enumerate(first.costs):
        other = others.get(costs.variant)
        if other is None:
            continue
        lengths = [length for length in costs.lengths(pattern.name) if length in other.lengths(pattern.name)]
        settings = sorted({*costs.settings(pattern.name), *other.settings(pattern.name)} - {costs.baseline})
        if not lengths or not settings:
            continue
        rows = []
        for setting in settings:
            cells = []
            for length in lengths:
                found = [side.ratio(setting, pattern.name, length) for side in (costs, other)]
                cells.append(_pair(*(measured.interval if measured else None for measured in found)))
            rows.append(Row(Cell(setting, setting), tuple(cells)))
        heads = tuple(Column(f"Time at {numbers.length(*length)}", f"÷ {costs.baseline} ↓") for length in lengths)
        caption = f"{pattern.title} ({pattern.short}): time, {costs.variant.title}"
        yield Table(f"{pattern.short}-time-{number}", caption, "Setting", heads, tuple(rows))


def _certificates(first: Side, second: Side) -> Table | None:
    """Settings whose certificate differs in a pattern; None where none does."""
    rows = []
    for setting in sorted({*first.evidence.certificates, *second.evidence.certificates}):
        cells, differs = [], False
        for pattern in PATTERNS:
            marks = [verdict(s.evidence.certificates, setting, pattern.name).mark or "none" for s in (first, second)]
            differs |= marks[0] != marks[1]
            cells.append(Cell(marks[0] if marks[0] == marks[1] else f"{marks[0]} → {marks[1]} {CHANGED}"))
        if differs:
            rows.append(Row(Cell(setting, setting), tuple(cells)))
    heads = tuple(Column(pattern.short, "", pattern.title, numeric=False) for pattern in PATTERNS)
    return Table("certificates", "Certificates that differ", "Setting", heads, tuple(rows)) if rows else None


def _pair(first: Interval | None, second: Interval | None) -> Cell:
    if first is None and second is None:
        return BLANK
    said = ["none" if each is None else numbers.with_interval(each.value, each.half_width) for each in (first, second)]
    if first is None or second is None:
        return Cell(" → ".join(said), kind="gap", note="only one of the two has a value")
    mark = f" {CHANGED}" if changed(first, second) else ""
    return Cell(f"{said[0]} → {said[1]}{mark}", second.value - first.value)


def to_markdown(first: Side, second: Side) -> str:
    """The page: what is compared, how much changed, and the tables."""
    tables = compare(first, second)
    cells = [cell for table in tables for row in table.rows for cell in row.cells]
    count = sum(cell.text.endswith(CHANGED) for cell in cells)
    one_sided = sum(cell.kind == "gap" for cell in cells)
    both = sum(cell.kind == "value" for cell in cells)
    lines = [
        "# Comparison",
        "",
        f"- first: {first.said}",
        f"- second: {second.said}",
        "",
        f"{count} of {both} pairs changed ({CHANGED}: the 95 % intervals do not overlap); {one_sided} values have no "
        "counterpart. Each cell is the first value → the second.",
        "",
    ]
    for table in tables:
        lines += titled(table, "##")
    return "\n".join(lines) + "\n"


def counterparts(first: Sequence[Path], second: Sequence[Path]) -> list[tuple[Path, Path]]:
    """Folders ``<protocol>/<hardware>`` that belong together: of equal name, else of one protocol on two machines.

    Raises:
        ValueError: no protocol is in both, or one has several machines on a side and none in common.
    """
    pairs = []
    protocols = sorted({path.parent.name for path in first} & {path.parent.name for path in second})
    if not protocols:
        names = [", ".join(sorted({path.parent.name for path in side})) for side in (first, second)]
        raise ValueError(f"nothing to compare: the first has the protocols {names[0]}, the second {names[1]}")
    for protocol in protocols:
        a, b = ({path.name: path for path in side if path.parent.name == protocol} for side in (first, second))
        if common := sorted(a.keys() & b.keys()):
            pairs += [(a[name], b[name]) for name in common]
        elif len(a) == len(b) == 1:
            pairs.append((next(iter(a.values())), next(iter(b.values()))))
        else:
            raise ValueError(f"protocol {protocol}: which belong together? {', '.join(a)} against {', '.join(b)}")
    return pairs


def write_comparison(first: Path, second: Path, baseline: str, write: Callable[[Path, bytes], Path]) -> Path:
    """Writes ``comparison.md`` into the second folder."""
    sides = [Side.of(read_evidence(folder), baseline) for folder in (first, second)]
    return write(second / "comparison.md", to_markdown(*sides).encode())
