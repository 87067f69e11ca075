"""The whole content of a report as data: the answer per pattern, tables, what the figures show, provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cab.report import numbers
from cab.report.analyses import analyses
from cab.report.cells import SEES_THE_FUTURE, CellMaker, command_of, commit_of
from cab.report.certificates import MARKS, OTHER_MARKS, SUPPORT, Verdict, card, verdict
from cab.report.correlations import agreement
from cab.report.cost import Costs, Length, variants
from cab.report.crossings import Fit, crossing_table, fit_recorded
from cab.report.evidence import Evidence, Section, on_test_data, sections
from cab.report.evidence import Row as Record
from cab.report.figures import CostCurve, CostFigure, Figure, QualityFigure, QualityPanel, QualityPoint
from cab.report.growth import growth_table
from cab.report.indices import index_table
from cab.report.patterns import PATTERNS, PatternText
from cab.report.profiles import profile_table
from cab.report.published import published_table, raw_table
from cab.report.quality import FLOOR, Quality, Standing
from cab.report.quality import Column as TaskColumn
from cab.report.tables import BLANK, Absent, Cell, Column, Row, Table, sentence
from cab.report.trust import trust
from cab.schema import Efficiency
from cab.stats.efficiency_length import EfficiencyLength

BASELINE = Efficiency().baselines[0]


@dataclass(frozen=True)
class PatternPart:
    """What a section says of one pattern. ``answer`` are sentences; ``top`` the first rows of the table as lines."""

    pattern: PatternText
    answer: tuple[str, ...]
    top: tuple[str, ...]
    main: Table
    cost: Table | None
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class SectionPart:
    """Everything about records that may share a table."""

    anchor: str
    title: str
    patterns: tuple[PatternPart, ...]
    tables: tuple[Table, ...]


@dataclass(frozen=True)
class Book:
    """A report. ``interval_over`` says what quality intervals are over; ``problems`` what could not be read.

    ``trust`` is empty for own records, else who submitted them and whether they were run again.
    """

    protocol: str
    hardware: str
    newest: str
    rows: int
    commits: tuple[str, ...]
    commands: tuple[str, ...]
    reproduce: str
    software: tuple[str, ...]
    baseline: str
    trust: str
    interval_over: str
    pending: int
    sections: tuple[SectionPart, ...]
    support: Table | None
    tasks: Table | None
    problems: tuple[str, ...]


def build_book(evidence: Evidence, fit: Fit | None = None) -> Book:
    """Everything that the pages show of a folder.

    With ``fit`` ``cab2023`` CAB's own fit stands beside the measured efficiency lengths, and what CAB published beside
    both. None: as the command asked for that made the newest records.
    """
    fit = fit or fit_recorded(evidence)
    problems = list(evidence.problems)
    parts = []
    for number, section in enumerate(sections(evidence.rows)):
        parts.append(_section(evidence, section, f"s{number}" if number else "main", problems, fit))
    manifests = [evidence.manifests[key] for key in sorted(evidence.manifests)]
    commands = dict.fromkeys(command_of(manifest) for manifest in manifests if manifest.get("command"))
    first = evidence.rows[0]
    protocol = str(first.get("protocol") or evidence.folder.parent.name)
    named = protocol != "adhoc" and "+" not in protocol
    return Book(
        protocol=protocol,
        hardware=str(first.get("hardware") or evidence.folder.name),
        newest=max((str(row.get("started_at") or "") for row in evidence.rows), default="") or "unknown",
        rows=len(evidence.rows),
        commits=tuple(dict.fromkeys(commit for manifest in manifests if (commit := commit_of(manifest)))),
        commands=tuple(commands),
        reproduce=f"cab leaderboard protocol={protocol}" if named else "",
        software=_software(manifests),
        baseline=BASELINE,
        trust=trust(evidence.folder).text,
        interval_over=_interval_over(evidence.rows),
        pending=sum(_pending(table) for part in parts for pattern in part.patterns for table in _tables(pattern)),
        sections=tuple(parts),
        support=_support(evidence),
        tasks=_tasks(evidence),
        problems=tuple(problems),
    )


def _tables(part: PatternPart) -> list[Table]:
    return [part.main, *([part.cost] if part.cost else [])]


def _pending(table: Table) -> int:
    return sum(cell.kind == "pending" for row in table.rows for cell in row.cells)


def _interval_over(rows: Sequence[Record]) -> str:
    scored = [row for row in rows if row.get("phase") == "evaluate" and on_test_data(row)]
    seeds = {row.get("seed") for row in scored if row.get("seed") is not None}
    if len(seeds) >= 3:
        return f"interval over seeds (up to {len(seeds)})"
    return f"interval over test examples, {len(seeds) or 'no'} seed{'s' if len(seeds) > 1 else ''}"


def _software(manifests: Sequence[Mapping[str, object]]) -> tuple[str, ...]:
    found: dict[str, None] = {}
    for manifest in manifests:
        described = manifest.get("environment")
        described = described if isinstance(described, Mapping) and "torch" in described else manifest
        versions = [f"{name} {described[name]}" for name in ("python", "torch", "numpy", "os") if described.get(name)]
        if versions:
            found[", ".join(versions)] = None
    return tuple(found)


def _section(evidence: Evidence, section: Section, anchor: str, problems: list[str], fit: Fit) -> SectionPart:
    quality = Quality(evidence, section.rows, BASELINE)
    all_costs = variants(section.rows, BASELINE)
    headline = all_costs[0] if all_costs else None
    make = CellMaker(evidence, quality)
    patterns = tuple(part for pattern in PATTERNS if (part := _pattern(make, headline, pattern, anchor)) is not None)
    tables = [_cost_table(make, costs, pattern, f"{anchor}-{pattern.short}-{number}", everything=True)
              for number, costs in enumerate(all_costs[1:], start=1)
              for pattern in PATTERNS]  # fmt: skip
    crossings = [crossing_table(costs, evidence, pattern, f"{anchor}-{pattern.short}-crossings-{number}", fit)
                 for number, costs in enumerate(all_costs)
                 for pattern in PATTERNS]  # fmt: skip
    growth = [growth_table(make, costs, pattern, f"{anchor}-{pattern.short}-growth-{number}")
              for number, costs in enumerate(all_costs)
              for pattern in PATTERNS]  # fmt: skip
    compared = [published_table(evidence, costs, f"{anchor}-cab2023-{number}")
                for number, costs in enumerate(all_costs)
                if fit == "cab2023"]  # fmt: skip
    if any(compared) and anchor == "main":
        compared.append(raw_table(f"{anchor}-cab2023-raw"))
    training = _training(make, section.rows, anchor)
    size = next((str(row["size"]) for row in section.rows if row.get("task")), "")
    indices = [index_table(make, pattern, size, f"{anchor}-{pattern.short}-index") for pattern in PATTERNS]
    profiles = [profile_table(make, costs, f"{anchor}-profile-{number}") for number, costs in enumerate(all_costs)]
    questions = (*indices, *analyses(make, anchor), *agreement(make, anchor))
    grids = (*tables, *crossings, *growth, *profiles)
    found = [table for table in (*compared, *questions, training, *grids) if table is not None]
    problems.extend(problem for problem in quality.problems if problem not in problems)
    return SectionPart(anchor, section.title, patterns, tuple(found))


def _pattern(make: CellMaker, costs: Costs | None, pattern: PatternText, anchor: str) -> PatternPart | None:
    evidence, quality = make.evidence, make.quality
    measured = {*quality.settings(pattern.name), *(costs.settings(pattern.name) if costs else ())}
    settings = sorted({*measured, *make.planned_settings(pattern.name), *evidence.certificates})
    if not measured and not make.planned_settings(pattern.name):
        return None
    verdicts = {setting: verdict(evidence.certificates, setting, pattern.name) for setting in settings}
    here = measured | make.planned_settings(pattern.name)
    ranked = [name for name, v in verdicts.items() if name in here and v.admitted and not v.value_causal]
    standings = quality.standings(pattern.name, ranked)
    value_causal = [name for name, v in verdicts.items() if name in here and v.value_causal]
    view = _View(make, costs, pattern, anchor, verdicts)
    main = view.main(standings, value_causal, settings)
    admitted = [*(standing.setting for standing in standings), *value_causal]
    table = _cost_table(make, costs, pattern, f"{anchor}-{pattern.short}-cost", admitted) if costs else None
    return PatternPart(
        pattern, view.answer(standings), view.top(main), main, table, view.figures(standings, value_causal)
    )


@dataclass(frozen=True)
class _View:
    """One pattern of one section."""

    make: CellMaker
    costs: Costs | None
    pattern: PatternText
    anchor: str
    verdicts: Mapping[str, Verdict]

    @property
    def lengths(self) -> list[Length]:
        found = {*(self.costs.lengths(self.pattern.name) if self.costs else ())}
        found |= {*self.make.planned_lengths(self.pattern.name)}
        return sorted(found, key=lambda length: (length[1], length[0]))

    @property
    def columns(self) -> list[TaskColumn]:
        return self.make.quality.columns(self.pattern.name)

    def main(self, standings: Sequence[Standing], value_causal: Sequence[str], settings: Sequence[str]) -> Table:
        """The pattern's table."""
        columns = [
            Column("Rank", "", "order of the mean gain; entries that share a rank are not told apart"),
            Column("Certificate", "", "conformance tests in this pattern", numeric=False),
            *(_task_column(column) for column in self.columns),
            Column(
                f"Gain over {BASELINE}",
                "mean of tasks ↑",
                "mean over the tasks of log(baseline / value) for perplexities and errors, value - baseline for scores",
            ),
            Column(
                "p", "Holm", f"of the gain, were there no difference to {BASELINE}; corrected for all settings here"
            ),
            *self._cost_columns(),
        ]
        rows = [self._row(standing.setting, standing) for standing in standings]
        rows += [self._row(name, None) for name in value_causal]
        rows += [
            self._floor_row(floor, len(self._cost_columns())) for floor in self.make.quality.floors(self.pattern.name)
        ]
        without: dict[tuple[str, str], list[str]] = {}
        for name in settings:
            if name not in value_causal and all(name != standing.setting for standing in standings):
                v = self.verdicts[name]
                without.setdefault((_why(v), self._absent_reason(v)), []).append(name)
        absent = [Absent(tuple(names), *why) for why, names in without.items()]
        remarks = [f"Quality: {_interval_over_of(self)}."]
        if self.costs is not None:
            remarks.append(
                f"Cost: {self.costs.variant.title}; ratios to {BASELINE} in the same process, intervals over "
                "processes; memory is the peak beyond the inputs."
            )
        return Table(
            f"{self.anchor}-{self.pattern.short}",
            f"{self.pattern.title} ({self.pattern.short})",
            "Setting",
            tuple(columns),
            tuple(rows),
            tuple(absent),
            tuple(remarks),
        )

    def _absent_reason(self, v: Verdict) -> str:
        """The certificate's reason; without a certificate, that of a record."""
        if v.admitted:
            return "neither planned nor recorded in this pattern"
        if v.mark is not None:
            return v.reason
        quality = self.make.quality
        failures = [quality.failure(self.pattern.name, column, v.setting) for column in self.columns]
        failures.append(self.costs.refusal(v.setting, self.pattern.name) if self.costs else None)
        for failure in failures:
            if failure is not None and failure["status"] in ("unsupported", "failed_certificate"):
                return str(failure["reason"])
        return v.reason

    def _cost_columns(self) -> list[Column]:
        lengths = self.lengths
        if not lengths:
            return []
        time = [
            Column(f"Time at {numbers.length(*length)}", f"÷ {BASELINE} ↓", "time of a call over the baseline's")
            for length in lengths
        ]
        memory = Column(
            f"Memory at {numbers.length(*lengths[-1])}", f"÷ {BASELINE} ↓", "peak extra memory over the baseline's"
        )
        return [Column("Faster from", "length", f"where the time ratio to {BASELINE} crosses 1"), *time, memory]

    def _row(self, setting: str, standing: Standing | None) -> Row:
        v = self.verdicts[setting]
        cells = [_rank_cell(standing), _certificate_cell(v)]
        for column in self.columns:
            cell = SEES_THE_FUTURE if standing is None else self.make.quality_cell(self.pattern.name, column, setting)
            cells.append(cell)
        cells += [BLANK, BLANK] if standing is None else [self.make.gain_cell(standing), self.make.p_cell(standing)]
        cells += self._cost_cells(setting)
        kind = "entry" if standing is not None else "value_causal"
        return Row(_setting_cell(self.make.evidence, setting), tuple(cells), kind)  # type: ignore[arg-type]

    def _cost_cells(self, setting: str) -> list[Cell]:
        lengths = self.lengths
        if not lengths:
            return []
        if self.costs is None:
            pending = Cell("pending", kind="pending", note="pending: planned, and no record yet")
            return [pending] * (len(lengths) + 2)
        time = [self.make.ratio_cell(self.costs, setting, self.pattern.name, length) for length in lengths]
        memory = self.make.memory_cell(self.costs, setting, self.pattern.name, lengths[-1])
        return [self.make.crossing_cell(self.costs, setting, self.pattern.name), *time, memory]

    def _floor_row(self, floor: str, cost_columns: int) -> Row:
        name = floor.removeprefix(FLOOR)
        columns = self.columns
        cells = [BLANK, BLANK]
        cells += [self.make.floor_cell(self.pattern.name, column, floor) for column in columns]
        cells += [BLANK] * (2 + cost_columns)
        texts = {
            f"floor in {column.task}": str(self.make.quality.floor_text(column, name))
            for column in columns
            if self.make.quality.floor_text(column, name)
        }
        to_beat = [column.task for column in columns if column.floor == name]
        details = tuple(texts.items()) + ((("the floor to beat in", sentence(to_beat)),) if to_beat else ())
        return Row(Cell(f"floor: {name}", name, details=details), tuple(cells), "floor")

    def answer(self, standings: Sequence[Standing]) -> tuple[str, ...]:
        """Who keeps quality, who is faster and from which length, and who does both."""
        evidence = self.make.evidence
        approximate = [s for s in standings if _answers_for(card(evidence.certificates, s.setting))]
        whole = [standing for standing in approximate if standing.mean is not None]
        kept = [standing.setting for standing in whole if standing.keeps()]
        tasks = sentence([column.task for column in self.columns])
        lines = []
        if not self.columns:
            lines.append("Quality: no task measured or planned in this pattern.")
        elif not whole:
            lines.append(f"Quality on {tasks}: no approximate setting has every task and the baseline yet.")
        else:
            lines.append(
                f"Quality not told apart from {BASELINE} (or better) on {tasks}: {sentence(kept)}, "
                f"of {len(whole)} approximate settings measured."
            )
        if self.costs is None or not self.costs.lengths(self.pattern.name):
            return (*lines, "Speed: no cost record in this pattern yet.")
        longest = self.costs.lengths(self.pattern.name)[-1]
        at = numbers.length(*longest)
        faster, fast = [], []
        names = [*(s.setting for s in approximate), *(name for name, v in self.verdicts.items() if v.value_causal)]
        for setting in names:
            ratio = self.costs.ratio(setting, self.pattern.name, longest)
            if ratio is not None and (ratio.interval.high if ratio.interval.high is not None else ratio.value) < 1:
                crossing = self.costs.crossing(setting, self.pattern.name)
                text = numbers.with_interval(ratio.value, ratio.interval.half_width)
                faster.append((ratio.value, f"{setting} {text}{_from(crossing)}"))
                fast.append(setting)
        ordered = [text for _, text in sorted(faster)]
        what = "share of its time; from which length"
        lines.append(f"Faster than {BASELINE} at {at} ({what}): {sentence(ordered)}.")
        if whole:
            lines.append(f"Both: {sentence([name for name in kept if name in fast])}.")
        return tuple(lines)

    def top(self, main: Table, rows: int = 3) -> tuple[str, ...]:
        """The first rows of the table, one line each."""
        titles = [column.title for column in main.columns]
        tasks = range(2, 2 + len(self.columns))
        times = [i for i, title in enumerate(titles) if title.startswith("Time at ")]
        lines = []
        for row in [row for row in main.rows if row.kind == "entry"][:rows]:
            parts = [f"{titles[i]} {row.cells[i].text}" for i in tasks]
            parts += [f"{titles[i].lower()} {row.cells[i].text} of {BASELINE}" for i in times[-1:]]
            lines.append(f"{row.cells[0].text:>3}  {row.head.text}: {', '.join(parts)}")
        return tuple(lines)

    def figures(self, standings: Sequence[Standing], value_causal: Sequence[str]) -> tuple[Figure, ...]:
        if self.costs is None:
            return ()
        lengths = self.costs.lengths(self.pattern.name)
        longest = lengths[-1] if lengths else None
        found: list[Figure] = []
        panels = [self._panel(column, standings, longest) for column in self.columns] if longest else []
        prefix = "" if self.anchor == "main" else f"{self.anchor}-"
        if longest and any(panel.points for panel in panels):
            found.append(
                QualityFigure(
                    f"{prefix}quality-time-{self.pattern.short}",
                    f"{self.pattern.short}: quality against time at length {numbers.length(*longest)}",
                    f"time of a call ÷ {BASELINE}, length {numbers.length(*longest)}",
                    tuple(sorted(self.verdicts)),
                    tuple(panel for panel in panels if panel.points),
                )
            )
        curves = [self._curve(name) for name in [*(s.setting for s in standings), *value_causal]]
        curves = [curve for curve in curves if curve.points]
        if curves:
            found.append(
                CostFigure(
                    f"{prefix}cost-length-{self.pattern.short}",
                    f"{self.pattern.short}: time against length",
                    f"time of a call ÷ {BASELINE}",
                    BASELINE,
                    tuple(sorted(self.verdicts)),
                    tuple(curves),
                )
            )
        return tuple(found)

    def _panel(self, column: TaskColumn, standings: Sequence[Standing], length: Length) -> QualityPanel:
        assert self.costs is not None
        points = []
        for standing in standings:
            score = self.make.quality.score(self.pattern.name, column, standing.setting)
            ratio = self.costs.ratio(standing.setting, self.pattern.name, length)
            if score is None or (ratio is None and standing.setting != BASELINE):
                continue
            x, low, high = (1.0, None, None)
            if ratio is not None:
                x, low, high = ratio.value, ratio.interval.low, ratio.interval.high
            points.append(
                QualityPoint(standing.setting, x, low, high, score.value, score.interval.low, score.interval.high)
            )
        floor = self.make.quality.score(self.pattern.name, column, f"{FLOOR}{column.floor}") if column.floor else None
        return QualityPanel(
            column.task,
            f"{column.metric}{_unit(column)} {column.arrow}",
            column.higher_is_better,
            tuple(points),
            f"floor: {column.floor}" if floor else "",
            floor.value if floor else None,
        )

    def _curve(self, setting: str) -> CostCurve:
        assert self.costs is not None
        points = []
        for length in self.costs.lengths(self.pattern.name):
            ratio = self.costs.ratio(setting, self.pattern.name, length)
            if ratio is not None and setting != BASELINE:
                points.append((float(length[1]), ratio.value, ratio.interval.low, ratio.interval.high))
        return CostCurve(setting, tuple(points), _crossing_mark(self.costs, setting, self.pattern.name))


def _answers_for(about: Mapping[str, Any]) -> bool:
    """Whether a mechanism is one of those that a reader chooses among: neither exact attention nor a floor."""
    return not about.get("exact", False) and about.get("family") != "floor"


def _from(crossing: EfficiencyLength | None) -> str:
    """From which length on, as a remark in brackets."""
    if crossing is None:
        return ""
    return f" (from {crossing.text})" if crossing.kind == "crossing" else f" ({crossing.text})"


def _crossing_mark(costs: Costs, setting: str, pattern: str) -> tuple[float, float | None, float | None] | None:
    """A single crossing, for the figure."""
    found = costs.crossing(setting, pattern)
    return (found.value, found.low, found.high) if found is not None and found.kind == "crossing" else None


def _interval_over_of(view: _View) -> str:
    texts = {
        score.over.rpartition(", ")[2] or score.over
        for column in view.columns
        for setting in view.verdicts
        if (score := view.make.quality.score(view.pattern.name, column, setting)) is not None
    }
    seeds = sorted(texts)
    if not seeds:
        return "no value yet"
    if all(text.endswith("seeds") and not text.startswith(("1 ", "2 ")) for text in seeds):
        return f"interval over seeds ({sentence(seeds)})"
    return f"interval over test examples, {sentence(seeds)}"


def _unit(column: TaskColumn) -> str:
    return f" [{column.unit}]" if column.unit and column.unit not in ("1", column.metric) else ""


def _task_column(column: TaskColumn) -> Column:
    meaning = f"{column.title}: {column.description}" if column.description else column.title
    return Column(column.task, f"{column.metric}{_unit(column)} {column.arrow}" if column.metric else "", meaning)


def _rank_cell(standing: Standing | None) -> Cell:
    if standing is None or standing.rank is None:
        return BLANK
    return Cell(f"{standing.rank}{'=' if standing.tied else ''}", float(standing.rank))


def _certificate_cell(v: Verdict) -> Cell:
    text, meaning = MARKS[v.mark or ""]
    support = SUPPORT.get(str(v.support), str(v.support))
    lines = (("tests", v.counts),) if v.counts else ()
    return Cell(text, text, details=(("support", support), ("meaning", meaning), *lines))


def _setting_cell(evidence: Evidence, setting: str) -> Cell:
    about = card(evidence.certificates, setting)
    details = []
    if about:
        details.append(("title", f"{about.get('title')}, {about.get('authors')}, {about.get('year')}"))
        details.append(("paper", str(about.get("paper"))))
        details.append(("family", f"{about.get('family')}, {'exact' if about.get('exact') else 'approximate'}"))
        details.append(("claimed order", f"time {about.get('time_order')}, memory {about.get('memory_order')}"))
    return Cell(setting, setting, details=tuple(details))


def _why(v: Verdict) -> str:
    if v.mark is None:
        return "not yet certified"
    if v.admitted:
        return "not measured"
    return "failed certificate" if v.mark == "failed" else v.mark.replace("_", " ")


def _cost_table(
    make: CellMaker,
    costs: Costs | None,
    pattern: PatternText,
    anchor: str,
    settings: Sequence[str] | None = None,
    *,
    everything: bool = False,
) -> Table | None:
    """Times, memory and the other ratios by length; with ``everything`` the ratio to the headline's baseline too."""
    if costs is None or not costs.lengths(pattern.name):
        return None
    if settings is None:
        known = make.evidence.certificates
        settings = [name for name in costs.settings(pattern.name) if verdict(known, name, pattern.name).admitted]
    columns: list[Column] = []
    baselines = [name for name in costs.baselines(pattern.name) if everything or name != BASELINE]
    for length in costs.lengths(pattern.name):
        at = numbers.length(*length)
        columns.append(Column(f"Time at {at}", "↓", "median over processes"))
        columns += [Column(f"Time at {at}", f"÷ {name} ↓", f"paired ratio to {name}") for name in baselines]
        columns.append(Column(f"Memory at {at}", "↓", "peak memory beyond the inputs, median over processes"))
    longest = costs.lengths(pattern.name)[-1]
    totals = [
        (metric, title)
        for metric, title in (("state_bytes", "State"), ("flops", "FLOPs"), ("parameters", "Parameters"))
        if any(costs.median(name, pattern.name, longest, metric) for name in settings)
    ]
    at = numbers.length(*longest)
    columns += [
        Column(f"{title} at {at}", "", "2 per multiply-add" if metric == "flops" else "") for metric, title in totals
    ]
    rows = []
    for name in settings:
        cells = []
        for length in costs.lengths(pattern.name):
            cells.append(make.cost_cell(costs, name, pattern.name, length, "time_s"))
            cells += [make.ratio_cell(costs, name, pattern.name, length, baseline) for baseline in baselines]
            cells.append(make.cost_cell(costs, name, pattern.name, length, "peak_extra_bytes"))
        cells += [make.cost_cell(costs, name, pattern.name, longest, metric) for metric, _ in totals]
        rows.append(Row(_setting_cell(make.evidence, name), tuple(cells)))
    title = f"{pattern.title} ({pattern.short}): cost by length, {costs.variant.title}"
    return Table(anchor, title, "Setting", tuple(columns), tuple(rows)) if rows else None


_TRAINING = (
    ("steps_per_s", Column("Steps", "1/s ↑")),
    ("tokens_per_s", Column("Tokens", "1/s ↑")),
    ("train_time_s", Column("Training time", "↓")),
    ("peak_extra_bytes", Column("Peak memory", "of a step ↓", "beyond model, optimiser state and batch")),
    ("parameters", Column("Parameters", "of the model")),
)


def _training(make: CellMaker, rows: Sequence[Record], anchor: str) -> Table | None:
    """Figures of the training runs: the mean over seeds."""
    found: dict[tuple[str, str, str], dict[str, list[Record]]] = {}
    for row in rows:
        if row.get("phase") == "train" and row.get("value") is not None and row.get("slots") in (None, "one"):
            key = (str(row.get("pattern")), str(row.get("task_setting") or row.get("task")), str(row.get("setting")))
            found.setdefault(key, {}).setdefault(str(row["metric"]), []).append(row)
    order = {pattern.name: number for number, pattern in enumerate(PATTERNS)}
    short = {pattern.name: pattern.short for pattern in PATTERNS}
    lines = []
    for pattern, task, setting in sorted(found, key=lambda key: (order.get(key[0], 9), *key)):
        metrics = found[pattern, task, setting]
        cells = [Cell(short.get(pattern, pattern), order.get(pattern, 9)), Cell(task, task)]
        for metric, _ in _TRAINING:
            cells.append(make.training_cell(metric, metrics.get(metric, [])))
        lines.append(Row(_setting_cell(make.evidence, setting), tuple(cells)))
    columns = (Column("Pattern", numeric=False), Column("Task", numeric=False), *(column for _, column in _TRAINING))
    remark = "Wall clock of runs that may have shared the machine: for planning, not for ranking."
    return (
        Table(f"{anchor}-training", "Training runs", "Setting", columns, tuple(lines), (), (remark,)) if lines else None
    )


def _support(evidence: Evidence) -> Table | None:
    """The support matrix, from certificates alone."""
    if not evidence.certificates:
        return None
    rows = []
    for setting in sorted(evidence.certificates):
        about = card(evidence.certificates, setting)
        cells = [Cell("exact" if about.get("exact") else "approximate"), Cell(str(about.get("family", "")))]
        cells += [_support_cell(verdict(evidence.certificates, setting, pattern.name)) for pattern in PATTERNS]
        rows.append(Row(_setting_cell(evidence, setting), tuple(cells)))
    columns = (
        Column("Kind", numeric=False),
        Column("Family", numeric=False),
        *(Column(pattern.short, pattern.title, pattern.meaning, numeric=False) for pattern in PATTERNS),
    )
    return Table("support", "Support, as the conformance tests found it", "Setting", columns, tuple(rows))


def _support_cell(v: Verdict) -> Cell:
    if v.mark is None:
        return Cell("not certified", kind="gap", note=v.reason)
    if v.admitted:
        text = MARKS[v.mark][0]
        support = SUPPORT.get(str(v.support), str(v.support))
        details = (("support", support), ("tests", v.counts), *(("test", line) for line in v.lines))
        return Cell(text if v.value_causal else f"{text}, {support}", text, details=details)
    text = OTHER_MARKS.get(v.mark, (v.mark, ""))[0]
    details = tuple(("test", line) for line in v.lines)
    return Cell(text, kind="gap", note=f"{_why(v)}: {v.reason}", details=details)


def _tasks(evidence: Evidence) -> Table | None:
    """What the tasks are, from their cards."""
    rows = []
    for name in sorted(evidence.cards):
        about = evidence.cards[name]
        metrics = [f"{m.get('name')} {'↑' if m.get('higher_is_better') else '↓'}" for m in about.get("metrics") or ()]
        patterns = about.get("patterns") or ()
        floors = [f"{floor}: {text}" for floor, text in (about.get("floors") or {}).items()]
        texts = (
            str(about.get("title", "")),
            ", ".join(pattern.short for pattern in PATTERNS if pattern.name in patterns),
            ", ".join(metrics),
            str(about.get("unit", "")),
            "; ".join(floors),
            f"{about.get('source', '')} ({about.get('licence', '')})",
        )
        rows.append(Row(Cell(name, name), tuple(Cell(text, text) for text in texts)))
    titles = ("Title", "Patterns", "Metrics", "Resampling unit", "Floors", "Data and licence")
    columns = tuple(Column(title, numeric=False) for title in titles)
    return Table("tasks", "Tasks", "Task", columns, tuple(rows)) if rows else None
