"""Cells of the tables: an estimate with what stands behind it, or the reason why there is none."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from cab.report import numbers
from cab.report.certificates import verdict
from cab.report.cost import Costs, Length, Measured, length_of
from cab.report.evidence import Evidence, Row
from cab.report.quality import FLOOR, Column, Quality, Score, Standing, task_of
from cab.report.tables import BLANK, Cell, Details
from cab.schema import Common, Measure
from cab.stats.efficiency_length import EfficiencyLength
from cab.stats.intervals import Interval

SEES_THE_FUTURE = Cell(
    "sees the future",
    kind="future",
    note="causal in the values only: hashing, sorting or selection sees later positions, so quality is not comparable",
)
_METHODS = {
    "student_t": "Student t",
    "bca_bootstrap": "BCa bootstrap",
    "clopper_pearson": "Clopper-Pearson bound: all units are equal",
    "welch_satterthwaite": "mean of independent intervals (Welch)",
    "n too small": "no interval: fewer than 3 units",
}


MOST_KEYS = 8  # run keys that a cell names; records.csv has all


class CellMaker:
    """Makes the cells of one section."""

    def __init__(self, evidence: Evidence, quality: Quality) -> None:
        self.evidence = evidence
        self.quality = quality
        self._planned_tasks = {(c.get("setting"), c.get("pattern"), c.get("task")) for c in evidence.plan}
        self._planned_costs = {
            (c.get("setting"), c.get("pattern"), length_of(dict(c))) for c in evidence.plan if c.get("length_q")
        }

    def admitted(self, pattern: str) -> list[str]:
        """Settings with a value in a pattern and a certificate for it that do not see the future."""
        found = {name: verdict(self.evidence.certificates, name, pattern) for name in self.quality.settings(pattern)}
        return [name for name, about in found.items() if about.admitted and not about.value_causal]

    def quality_cell(self, pattern: str, column: Column, setting: str) -> Cell:
        """A task's primary metric, or why there is none."""
        score = self.quality.score(pattern, column, setting)
        if score is None:
            planned = (setting, pattern, column.task) in self._planned_tasks
            return self._gap(self.quality.failure(pattern, column, setting), planned)
        below = column.floor is not None and not setting.startswith(FLOOR)
        floor = self.quality.score(pattern, column, f"{FLOOR}{column.floor}") if below else None
        return Cell(
            numbers.with_interval(score.value, score.half_width),
            score.value,
            details=self._score_details(column, score),
            below_floor=floor is not None and not _better(score, floor, column.higher_is_better),
        )

    def floor_cell(self, pattern: str, column: Column, floor: str) -> Cell:
        score = self.quality.score(pattern, column, floor)
        if score is None:
            return BLANK
        text = numbers.with_interval(score.value, score.half_width)
        return Cell(text, score.value, details=self._score_details(column, score))

    def gain_cell(self, standing: Standing) -> Cell:
        """The mean gain over the baseline; a task without a value leaves it open."""
        if standing.mean is None:
            missing = standing.tasks - len(standing.gains)
            if standing.tasks == 0:
                return BLANK
            return Cell(
                standing.coverage,
                kind="gap",
                note="tasks with a value; the mean gain needs all of them, and the baseline's",
                details=(("missing", f"{missing} of {standing.tasks} tasks"),),
            )
        if standing.setting == self.quality.baseline:
            return Cell("0", 0.0, details=(("baseline", "every gain here is over it"),))
        gains = tuple(
            (f"gain in {task}", f"{numbers.signed(gain.value, None)}, {range_of(gain)}")
            for task, gain in standing.gains.items()
        )
        return Cell(
            numbers.signed(standing.mean.value, standing.mean.half_width),
            standing.mean.value,
            details=(("interval", range_of(standing.mean)), *gains),
        )

    def p_cell(self, standing: Standing) -> Cell:
        """The adjusted p value of the mean gain; blank for the baseline, and where the gain is open."""
        p = standing.adjusted_p
        if p is None:
            return BLANK
        return Cell("< 0.001" if p < 0.001 else f"{p:.3f}", p)

    def ratio_cell(self, costs: Costs, setting: str, pattern: str, length: Length, baseline: str | None = None) -> Cell:
        """Time over the baseline's."""
        against = baseline or costs.baseline
        measured = costs.ratio(setting, pattern, length, against)
        failures = costs.failures(setting, pattern, length, "ratio", against)
        if measured is not None:
            raw = ", ".join(numbers.plain(float(row["value"])) for row in measured.rows)
            over = f"{range_of(measured.interval)}, {_method(measured.interval)} over {_processes(measured)}"
            return Cell(
                numbers.with_interval(measured.value, measured.interval.half_width),
                measured.value,
                details=(("interval", over), ("each process", raw), *_failed(failures), *self._source(measured.rows)),
            )
        if setting == against and costs.median(setting, pattern, length, "time_s") is not None:
            return Cell("1", 1.0, details=(("baseline", f"every ratio here is to {against}"),))
        return self._gap(next(iter(failures), None), self._planned_cost(setting, pattern, length))

    def cost_cell(self, costs: Costs, setting: str, pattern: str, length: Length, metric: str) -> Cell:
        """The median over processes of a metric in its own unit."""
        measured = costs.median(setting, pattern, length, metric)
        failures = costs.failures(setting, pattern, length, metric)
        if measured is None:
            return self._gap(next(iter(failures), None), self._planned_cost(setting, pattern, length))
        details = (("median over", _processes(measured)), *_failed(failures), *self._source(measured.rows))
        return Cell(amount(metric, measured.value), measured.value, details=details)

    def memory_cell(self, costs: Costs, setting: str, pattern: str, length: Length) -> Cell:
        """Peak extra memory over the baseline's."""
        ours = costs.median(setting, pattern, length, "peak_extra_bytes")
        ratio = costs.memory_ratio(setting, pattern, length)
        if ours is None or ratio is None:
            of = setting if ours is None else costs.baseline
            failures = costs.failures(of, pattern, length, "peak_extra_bytes")
            return self._gap(next(iter(failures), None), self._planned_cost(of, pattern, length))
        details = (("peak extra memory", numbers.size(ours.value)), *self._source(ratio.rows))
        return Cell(numbers.plain(ratio.value), ratio.value, details=details)

    def crossing_cell(self, costs: Costs, setting: str, pattern: str) -> Cell:
        """From which length a setting is faster than the baseline."""
        if setting == costs.baseline:
            return BLANK
        found = costs.crossing(setting, pattern)
        if found is None:
            gaps = [self.ratio_cell(costs, setting, pattern, length) for length in costs.lengths(pattern)]
            gap = next((gap for gap in gaps if gap.kind != "value"), None)
            return gap or Cell("–", kind="gap", note="a crossing needs two lengths with as many keys as queries")
        return crossing_text(found)

    def training_cell(self, metric: str, rows: Sequence[Row]) -> Cell:
        """The mean over seeds of a figure of the training runs."""
        if not rows:
            return Cell("not measured", kind="gap", note="not measured: the run has no such record")
        value = sum(float(row["value"]) for row in rows) / len(rows)
        seeds = f"{len(rows)} seed{'s' if len(rows) > 1 else ''}"
        return Cell(amount(metric, value), value, details=(("mean over", seeds), *self._source(rows)))

    def _planned_cost(self, setting: str, pattern: str, length: Length) -> bool:
        return (setting, pattern, length) in self._planned_costs

    def planned_lengths(self, pattern: str) -> list[Length]:
        return sorted({cell[2] for cell in self._planned_costs if cell[1] == pattern and cell[2] is not None})

    def planned_settings(self, pattern: str) -> set[str]:
        return {str(cell["setting"]) for cell in self.evidence.plan if cell.get("pattern") == pattern}

    def _gap(self, failure: Row | None, planned: bool) -> Cell:
        if failure is not None:
            status = str(failure["status"]).replace("_", " ")
            reason = f"{status}: {failure.get('reason') or 'no reason recorded'}"
            return Cell(status, kind="gap", note=reason, details=self._source([failure]))
        if planned:
            return Cell("pending", kind="pending", note="pending: planned, and no record yet")
        return Cell("not measured", kind="gap", note="not measured: neither planned nor recorded here")

    def _score_details(self, column: Column, score: Score) -> Details:
        rows = [run.row for run in score.runs]
        interval = f"{range_of(score.interval)}, {_method(score.interval)} over {score.over}"
        others = tuple(
            (f"{name}", numbers.plain(sum(values) / len(values), 4))
            for name, values in self._also(column, rows).items()
        )
        return (("metric", f"{column.metric} {column.arrow}"), ("interval", interval), *others, *self._source(rows))

    def _also(self, column: Column, rows: Sequence[Row]) -> Mapping[str, list[float]]:
        """The card's other metrics of the same runs."""
        keys = {row["run_key"] for row in rows}
        found: dict[str, list[float]] = {}
        for row in self.quality.rows_of(keys):
            if row["metric"] in column.also:
                found.setdefault(str(row["metric"]), []).append(float(row["value"]))
        return found

    def _source(self, rows: Iterable[Row]) -> Details:
        rows = list(rows)
        keys = dict.fromkeys(str(row["run_key"]) for row in rows)
        # Most rows of a cell differ in nothing that a command says.
        distinct: dict[tuple[Any, ...], Row] = {}
        for row in rows:
            distinct.setdefault(tuple(map(row.get, _SAID_IN_COMMANDS)), row)
        commands = dict.fromkeys(command for row in distinct.values() if (command := repeat(row)) is not None)
        made = dict.fromkeys(text for row in rows if (text := made_by(self.evidence, row.get("manifest"))))
        more = len(keys) - MOST_KEYS
        samples = [path for key in keys for path in self.evidence.samples.get(key, ())]
        found = [
            ("records", ", ".join(list(keys)[:MOST_KEYS]) + (f" and {more} more" if more > 0 else "")),
            *(("sample", path) for path in samples),
            *(("repeat", command) for command in commands),
        ]
        found += [("made by", text) for text in made]
        found += [("chosen by", chosen_by(s)) for s in self.evidence.searches.values() if s["chosen_run_key"] in keys]
        manifests = dict.fromkeys(name for row in rows if (name := row.get("manifest")) in self.evidence.manifests)
        found += [("resolved config", f"manifests/{name}.json") for name in list(manifests)[:MOST_KEYS]]
        return tuple(found)


def crossing_text(found: EfficiencyLength) -> Cell:
    """An efficiency length with what stands behind it."""
    sort = {"from the shortest length": 0.0, "never up to L": math.inf}.get(found.kind, found.value)
    low = "the shortest length or less" if found.low is None else f"{found.low:,.0f}"
    high = "beyond the longest length" if found.high is None else f"{found.high:,.0f}"
    interval = found.method if found.method == "n too small" else f"{low} to {high} ({found.level:.0%})"
    passes = ", ".join(f"{crossing:,.0f}" for crossing in found.crossings) or "nowhere within the measured lengths"
    details = (("kind", found.kind), ("ratio passes 1 at", passes), ("pays for good from", interval))
    return Cell(found.text, sort, details=details)


def _better(score: Score, floor: Score, higher_is_better: bool) -> bool:
    """Whether the whole interval lies on the better side of the floor's value."""
    low, high = score.interval.low, score.interval.high
    if higher_is_better:
        return (score.value if low is None else low) > floor.value
    return (score.value if high is None else high) < floor.value


def _processes(measured: Measured) -> str:
    n = len(measured.rows)
    return f"{n} process{'es' if n != 1 else ''}"


def _failed(failures: Sequence[Row]) -> Details:
    """The processes that gave no value beside those that did."""
    return tuple(
        (f"process {row.get('replicate')}", f"{str(row['status']).replace('_', ' ')}: {row['reason']}")
        for row in failures
    )


def range_of(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return "no interval"
    return f"{numbers.plain(interval.low, 4)} to {numbers.plain(interval.high, 4)} ({interval.level:.0%})"


def _method(interval: Interval) -> str:
    return _METHODS.get(interval.method, interval.method)


def amount(metric: str, value: float) -> str:
    """A cost metric in a readable unit."""
    if metric.endswith("_bytes"):
        return numbers.size(value)
    if metric.endswith("_s") and not metric.endswith("per_s"):
        return numbers.seconds(value)
    return numbers.count(value) if metric in ("flops", "dense_equivalent_flops", "parameters") else numbers.plain(value)


# The columns that ``repeat`` reads.
_SAID_IN_COMMANDS = (
    *("setting", "pattern", "task", "task_setting", "seed", "size", "length_q", "length_kv", "protocol"),
    *("level", "phase", "batch", "heads", "head_dim", "compiled", "dtype"),
)


def repeat(row: Row) -> str | None:
    """The command that makes one row again, from its columns; None where they do not tell."""
    setting, pattern = row.get("setting"), row.get("pattern")
    if not setting or setting.startswith(FLOOR) or not pattern:
        return None
    name, options = _options(setting)
    if row.get("task"):
        task, task_options = _options(task_of(row))
        words = ["cab", "run", f"task={task}", *(f"task.{option}" for option in task_options)]
        words += [f"attention={name}", *(f"attention.{option}" for option in options), f"pattern={pattern}"]
        words += [f"seed={row['seed']}"] if row.get("seed") is not None else []
        words += [f"size={row['size']}"] if row.get("size") else []
    else:
        length = length_of(row)
        impl = [option.removeprefix("impl=") for option in options if option.startswith("impl=")]
        if len(options) > len(impl) or length is None:
            return None
        words = ["cab", "efficiency", f"attentions=[{name}]", f"patterns=[{pattern}]", f"lengths=[{length[0]}]"]
        words += [f"lengths_key=[{length[1]}]"] if length[1] != length[0] else []
        words += [f"impl=[{impl[0]}]"] if impl else []
        words += _measured_so(row) if row.get("protocol") == "adhoc" else []
    protocol = row.get("protocol")
    if protocol and protocol != "adhoc" and "+" not in protocol:
        words.append(f"protocol={protocol}")
    return shlex.join(words)


def _measured_so(row: Row) -> list[str]:
    """The overrides of a cost cell whose shape or way of measuring is not the usual one."""
    usual = Measure()
    words = [
        f"measure.{key}=[{row[column]}]"
        for key, column, default in (("levels", "level", usual.levels), ("phases", "phase", usual.phases))
        if row.get(column) and [row[column]] != default
    ]
    words += [
        f"measure.{key}={row[key]}"
        for key in ("batch", "heads", "head_dim")
        if row.get(key) and row[key] != getattr(usual, key)
    ]
    words += ["measure.compile=true"] if row.get("compiled") else []
    return words + ([f"dtype={row['dtype']}"] if row.get("dtype") not in (None, Common().dtype) else [])


def _options(name: str) -> tuple[str, list[str]]:
    """``performer[num_features=64,redraw=no]`` -> the name and ``["num_features=64", "redraw=no"]``."""
    plain, bracket, rest = name.partition("[")
    return (plain, rest.removesuffix("]").split(",")) if bracket else (name, [])


def made_by(evidence: Evidence, manifest: str | None) -> str | None:
    """The command of a manifest, without the folder of its program, and its commit."""
    content = evidence.manifests.get(manifest or "")
    if not content or not content.get("command"):
        return None
    commit = commit_of(content)
    return command_of(content) + (f" at commit {commit}" if commit else "")


def chosen_by(search: Mapping[str, Any]) -> str:
    """What a search spent to choose a setting."""
    space = ", ".join(f"{key}={text}" for key, text in search["space"].items())
    return (
        f"cab tune: the best of {len(search['runs'])} trials by {search['metric']} on validation data, over {space} "
        f"(searches/{search.get('search')}.json)"
    )


def command_of(manifest: Mapping[str, Any]) -> str:
    command = manifest["command"]
    words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    return shlex.join([PurePath(words[0]).name, *words[1:]]) if words else ""


def commit_of(manifest: Mapping[str, Any]) -> str:
    """The short commit, with a mark where the checkout differed from it; empty from a wheel."""
    git = manifest.get("git") or (manifest.get("environment") or {}).get("git")
    if not git or not git.get("commit"):
        return ""
    return f"{git['commit'][:12]}{' (with local changes)' if git.get('dirty') else ''}"
