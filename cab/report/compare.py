"""``cab report results=[A,B]``: two folders of results side by side, of two machines or versions, and what changed.

A pair of values *changed* where their 95 % intervals do not overlap (without intervals: where the values differ at
all). The rule is cautious: it overlooks some changes that a test of paired runs would find, and calls few that are not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cab.report import numbers
from cab.report.cells import commit_of
from cab.report.certificates import verdict
from cab.report.cost import Costs, Length, variants
from cab.report.evidence import Evidence, read_evidence, sections
from cab.report.markdown import titled
from cab.report.patterns import PATTERNS, PatternText
from cab.report.quality import Column as TaskColumn
from cab.report.quality import Quality
from cab.report.tables import BLANK, Cell, Column, Row, Table
from cab.stats.intervals import Interval
from tasks.whole_file import write_whole

CHANGED = "≠"


@dataclass(frozen=True)
class Side:
    """One of the two: the main group of a folder's records."""

    evidence: Evidence
    quality: Quality
    costs: tuple[Costs, ...]

    @classmethod
    def of(cls, evidence: Evidence, baseline: str) -> Side:
        rows = next((section.rows for section in sections(evidence.rows)), ())
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


@dataclass(frozen=True)
class Pair:
    """One value on both sides; None where a side has none."""

    first: Interval | None
    second: Interval | None

    @property
    def whole(self) -> bool:
        """Whether both sides have an interval."""
        return all(each is not None and each.half_width is not None for each in (self.first, self.second))

    @property
    def changed(self) -> bool:
        """Whether the two values are told apart."""
        a, b = self.first, self.second
        if a is None or b is None:
            return False
        if a.low is None or a.high is None or b.low is None or b.high is None:
            return a.value != b.value
        return a.high < b.low or b.high < a.low

    @property
    def far(self) -> bool:
        """Whether the intervals are apart by more than they are wide together: no matter of chance."""
        a, b = self.first, self.second
        if a is None or b is None or a.low is None or a.high is None or b.low is None or b.high is None:
            return self.changed
        return max(b.low - a.high, a.low - b.high) > (a.high - a.low) + (b.high - b.low)

    def cell(self) -> Cell:
        a, b = self.first, self.second
        if a is None and b is None:
            return BLANK
        said = ["none" if each is None else numbers.with_interval(each.value, each.half_width) for each in (a, b)]
        if a is None or b is None:
            return Cell(" → ".join(said), kind="gap", note="only one of the two has a value")
        return Cell(f"{' → '.join(said)}{f' {CHANGED}' * self.changed}", b.value - a.value)


@dataclass(frozen=True)
class Grid:
    """Pairs by setting, one per column: a table before it has words."""

    anchor: str
    caption: str
    columns: tuple[Column, ...]
    pairs: Mapping[str, Sequence[Pair]]

    def table(self) -> Table:
        rows = [Row(Cell(name, name), tuple(pair.cell() for pair in pairs)) for name, pairs in self.pairs.items()]
        return Table(self.anchor, self.caption, "Setting", self.columns, tuple(rows))


def compare(first: Side, second: Side) -> list[Grid]:
    """Per pattern a grid of quality and, per variant of the costs that both have, one of time ratios."""
    found = []
    for pattern in PATTERNS:
        found += [*_quality(first, second, pattern), *_costs(first, second, pattern)]
    return found


def pairs_of(grids: Sequence[Grid]) -> list[Pair]:
    """All pairs with a value on one side at least."""
    return [p for grid in grids for pairs in grid.pairs.values() for p in pairs if p.first or p.second]


def _quality(first: Side, second: Side, pattern: PatternText) -> Iterator[Grid]:
    theirs = {column.task: column for column in second.quality.columns(pattern.name)}
    columns = [column for column in first.quality.columns(pattern.name) if column.task in theirs]
    settings = sorted({*first.quality.settings(pattern.name), *second.quality.settings(pattern.name)})
    if not columns or not settings:
        return

    def interval(side: Side, column: TaskColumn, setting: str) -> Interval | None:
        score = side.quality.score(pattern.name, column, setting)
        return score.interval if score is not None else None

    pairs = {
        setting: [Pair(interval(first, c, setting), interval(second, theirs[c.task], setting)) for c in columns]
        for setting in settings
    }
    heads = tuple(Column(column.task, f"{column.metric} {column.arrow}", column.description) for column in columns)
    yield Grid(f"{pattern.short}-quality", f"{pattern.title} ({pattern.short}): quality", heads, pairs)


def _costs(first: Side, second: Side, pattern: PatternText) -> Iterator[Grid]:
    others = {costs.variant: costs for costs in second.costs}
    for number, costs in enumerate(first.costs):
        other = others.get(costs.variant)
        if other is None:
            continue
        lengths = [length for length in costs.lengths(pattern.name) if length in other.lengths(pattern.name)]
        settings = sorted({*costs.settings(pattern.name), *other.settings(pattern.name)} - {costs.baseline})
        if not lengths or not settings:
            continue

        def ratio(side: Costs, setting: str, length: Length) -> Interval | None:
            measured = side.ratio(setting, pattern.name, length)
            return measured.interval if measured is not None else None

        pairs = {
            setting: [Pair(ratio(costs, setting, length), ratio(other, setting, length)) for length in lengths]
            for setting in settings
        }
        heads = tuple(Column(f"Time at {numbers.length(*length)}", f"÷ {costs.baseline} ↓") for length in lengths)
        caption = f"{pattern.title} ({pattern.short}): time, {costs.variant.title}"
        yield Grid(f"{pattern.short}-time-{number}", caption, heads, pairs)


def certificates(first: Side, second: Side) -> Table | None:
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


def to_markdown(first: Side, second: Side) -> str:
    """The page: what is compared, how much changed, and the tables."""
    grids = compare(first, second)
    pairs = pairs_of(grids)
    both = [pair for pair in pairs if pair.first and pair.second]
    lines = [
        "# Comparison",
        "",
        f"- first: {first.said}",
        f"- second: {second.said}",
        "",
        f"{sum(pair.changed for pair in both)} of {len(both)} pairs changed ({CHANGED}: the 95 % intervals do not "
        f"overlap); {len(pairs) - len(both)} values have no counterpart. Each cell is the first value → the second.",
        "",
    ]
    if (differing := certificates(first, second)) is not None:
        lines += titled(differing, "##")
    for grid in grids:
        lines += titled(grid.table(), "##")
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


def write_comparison(first: Path, second: Path, baseline: str) -> Path:
    """Writes ``comparison.md`` into the second folder."""
    sides = [Side.of(read_evidence(folder), baseline) for folder in (first, second)]
    return write_whole(second / "comparison.md", to_markdown(*sides).encode())
