"""Quality of one section: values with intervals, gains over exact attention, mean gains and ranks with ties.

The gain of a setting over the baseline b (``sdpa``) in a task, positive where the setting is better, is

    log(b / x)   for perplexities and for errors, which have a natural zero,
    x - b        for scores, of which more is better,

with an interval from differences paired by unit (or by seed, from three common seeds on). The mean gain of a pattern is
the mean over its tasks, with the interval of a mean of independent estimates, as their test sets are. Gains order a
table; they are not a score to be quoted by itself.
"""

from __future__ import annotations

import functools
import math
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cab.errors import one_line
from cab.report.evidence import Evidence, Row, is_ok, on_test_data
from cab.stats.comparisons import holm, p_value
from cab.stats.intervals import (
    SMALLEST_N,
    Interval,
    interval_over_units,
    mean_of_independent,
    not_closer_than,
    paired_difference,
    without_spread,
)

FLOOR = "floor:"
FRACTION = "fraction"  # the unit of metrics between 0 and 1
RESOLUTION = 1e-6  # of a gain: single precision has 24 bits, and rounding adds up over the steps of a training


@dataclass(frozen=True)
class Column:
    """One task's primary metric in one pattern: what a column of a quality table shows.

    ``also`` are the card's further metrics.
    """

    task: str
    title: str
    metric: str
    unit: str
    higher_is_better: bool
    aggregate: str
    unit_name: str
    description: str
    floor: str | None = None
    also: tuple[str, ...] = ()

    @property
    def arrow(self) -> str:
        return "↑" if self.higher_is_better else "↓"


@dataclass(frozen=True)
class Run:
    """One seed's value of a metric, and its values per resampling unit, where there is a side file."""

    row: Row
    value: float
    units: tuple[str, ...]
    values: np.ndarray | None
    weights: np.ndarray | None


@dataclass(frozen=True)
class Score:
    """A quality cell: the estimate, what its interval is over, and the runs behind it."""

    interval: Interval
    over: str
    runs: tuple[Run, ...]

    @property
    def value(self) -> float:
        return self.interval.value

    @property
    def half_width(self) -> float | None:
        return self.interval.half_width


@dataclass(frozen=True)
class Standing:
    """A setting in a pattern's table: gains by task, their mean, and a rank where all tasks are there.

    ``adjusted_p`` is of the mean gain against zero, by Holm's method over the settings of the table.
    """

    setting: str
    gains: Mapping[str, Interval]
    tasks: int
    mean: Interval | None = None
    rank: int | None = None
    tied: bool = False
    adjusted_p: float | None = None

    @property
    def coverage(self) -> str:
        return f"{len(self.gains)}/{self.tasks}"

    def keeps(self) -> bool:
        """No task shows it worse than the baseline: every gain's interval reaches zero."""
        return len(self.gains) == self.tasks > 0 and all(
            gain.high is not None and gain.high >= 0 for gain in self.gains.values()
        )


class Quality:
    """The evaluation rows of one section, by pattern, task and setting."""

    def __init__(self, evidence: Evidence, rows: Iterable[Row], baseline: str) -> None:
        self.evidence = evidence
        self.baseline = baseline
        self.problems: list[str] = []
        self._ok: dict[tuple[str | None, str, str, str], list[Row]] = {}
        self._failed: dict[tuple[str | None, str, str], Row] = {}
        self._tasks: dict[str | None, dict[str, Row]] = {}
        self._scores: dict[tuple[str, Column, str], Score | None] = {}
        self._gains: dict[tuple[str, Column, str], Interval | None] = {}
        self._by_run: dict[str, list[Row]] = {}
        for row in rows:
            if row.get("level") not in (None, "model") or row.get("phase") != "evaluate" or not row.get("task"):
                continue
            if row.get("slots") not in (None, "one") or not on_test_data(row):
                continue
            pattern, task, setting = row.get("pattern"), task_of(row), str(row.get("setting"))
            self._tasks.setdefault(pattern, {}).setdefault(task, row)
            if is_ok(row):
                self._ok.setdefault((pattern, task, setting, str(row["metric"])), []).append(row)
                self._by_run.setdefault(str(row["run_key"]), []).append(row)
            else:
                self._failed[pattern, task, setting] = row

    def columns(self, pattern: str) -> list[Column]:
        """The tasks of a pattern: those with records or in the plan, in the order of the cards' names."""
        planned = [str(c["task"]) for c in self.evidence.plan if c.get("task") and c.get("pattern") == pattern]
        tasks = sorted({*self._tasks.get(pattern, {}), *planned})
        return [column for task in tasks if (column := self._column(pattern, task)) is not None]

    def _column(self, pattern: str, task: str) -> Column | None:
        row = self._tasks.get(pattern, {}).get(task)
        name = str(row["task"]) if row else task
        card = self.evidence.cards.get(name)
        if card is not None and card.get("metrics"):
            return _columns(task, card)[0]
        if row is None:
            # Planned and nothing known yet, not even the metric's name: the column says pending.
            return Column(task, task, "", "", True, "mean", "test example", "")
        self._problem(f"task {task!r} has no card in cards/: the metric {row['metric']!r} is taken as the primary one")
        return Column(
            task,
            task,
            str(row["metric"]),
            str(row.get("unit") or ""),
            row.get("higher_is_better") is not False,
            "mean",
            "test example",
            "",
        )

    def every_metric(self, column: Column) -> list[Column]:
        """The column itself and those of the card's further metrics."""
        card = self.evidence.cards.get(column.task.partition("[")[0], {})
        return _columns(column.task, card) if card.get("metrics") else [column]

    def _problem(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def settings(self, pattern: str) -> list[str]:
        """Every setting with an evaluation row in the pattern, floors left out."""
        found = {setting for where, _, setting, _ in self._ok if where == pattern}
        found |= {setting for where, _, setting in self._failed if where == pattern}
        return sorted(name for name in found if not name.startswith(FLOOR))

    def floors(self, pattern: str) -> list[str]:
        """The floors of the pattern's tasks, as ``floor:<name>``."""
        tasks = {column.task for column in self.columns(pattern)}
        return sorted(
            {
                setting
                for (where, task, setting, _) in self._ok
                if setting.startswith(FLOOR) and task in tasks and where in (None, pattern)
            }
        )

    def floor_text(self, column: Column, floor: str) -> str:
        """What a floor of a task does, as its card says."""
        card = self.evidence.cards.get(column.task.partition("[")[0], {})
        return str((card.get("floors") or {}).get(floor, ""))

    def rows_of(self, run_keys: Iterable[str]) -> list[Row]:
        """Every evaluation row of some runs, in the order of the records."""
        return [row for key in sorted(run_keys) for row in self._by_run.get(key, ())]

    def failure(self, pattern: str, column: Column, setting: str) -> Row | None:
        """The row that says why a cell has no value."""
        return self._failed.get((pattern, column.task, setting))

    def score(self, pattern: str, column: Column, setting: str) -> Score | None:
        key = (pattern, column, setting)
        if key not in self._scores:
            self._scores[key] = self._score(pattern, column, setting)
        return self._scores[key]

    def _score(self, pattern: str, column: Column, setting: str) -> Score | None:
        rows = self._ok.get((pattern, column.task, setting, column.metric))
        if rows is None and setting.startswith(FLOOR):
            rows = self._ok.get((None, column.task, setting, column.metric))
        if not rows:
            return None
        runs = tuple(
            self._run(row, column) for row in sorted(rows, key=lambda row: (row.get("seed") or 0, row["run_key"]))
        )
        values = [run.value for run in runs]
        if len(runs) >= SMALLEST_N and len(set(values)) > 1:
            return Score(interval_over_units(values), f"{len(runs)} seeds", runs)
        pooled = _pooled(runs)
        seeds = "" if setting.startswith(FLOOR) else f", {len(runs)} seed{'s' if len(runs) > 1 else ''}"
        over = f"{{n}} test examples ({column.unit_name}){seeds}"
        if pooled is None:
            mean = float(np.mean(values))
            return Score(Interval(mean, None, None, 0.95, "n too small", len(runs)), over.format(n="no"), runs)
        interval = _interval(pooled[0].tobytes(), _bytes(pooled[1]), column.aggregate)
        if column.unit == FRACTION and not setting.startswith(FLOOR):
            interval = without_spread(interval, 0.0, 1.0)
        return Score(replace(interval, value=float(np.mean(values))), over.format(n=interval.n), runs)

    def _run(self, row: Row, column: Column) -> Run:
        try:
            arrays = self.evidence.units(str(row["run_key"]))
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            self._problem(f"units/{row['run_key']}.npz cannot be read ({one_line(error)}); no interval of its run")
            arrays = {}
        values, weights = arrays.get(f"values/{column.metric}"), arrays.get(f"weights/{column.metric}")
        if values is not None and weights is not None and values.shape != weights.shape:
            self._problem(
                f"units/{row['run_key']}.npz: {values.size} values of {column.metric}, {weights.size} weights"
            )
            values = weights = None
        value = float(row["value"])
        units = tuple(arrays["units"].tolist()) if "units" in arrays else ()
        if values is not None:
            mean = float(np.average(values, weights=weights))
            of_units = math.exp(mean) if column.aggregate == "exp_mean" else mean
            # Records hold the full double, so more than rounding apart means a side file of another run.
            if not math.isclose(of_units, value, rel_tol=1e-6, abs_tol=1e-9):
                self._problem(
                    f"units/{row['run_key']}.npz: {column.metric} over the units is {of_units:.6g}, the record says "
                    f"{value:.6g}; its interval is left out"
                )
                values = weights = None
        return Run(row, value, units, values, weights)

    def gain(self, pattern: str, column: Column, setting: str) -> Interval | None:
        """The gain over the baseline; without units or common seeds, a value without an interval."""
        key = (pattern, column, setting)
        if key not in self._gains:
            found = self._gain(pattern, column, setting)
            if found is not None and setting != self.baseline:
                found = not_closer_than(found, RESOLUTION)
            self._gains[key] = found
        return self._gains[key]

    def _gain(self, pattern: str, column: Column, setting: str) -> Interval | None:
        ours, base = self.score(pattern, column, setting), self.score(pattern, column, self.baseline)
        if ours is None or base is None:
            return None
        zeroed = not column.higher_is_better and column.aggregate == "mean" and ours.value > 0 and base.value > 0
        zeroed = zeroed and all((run.values is None or (run.values >= 0).all()) for run in (*ours.runs, *base.runs))
        logarithmic = column.aggregate == "exp_mean" or zeroed

        def transform(x: float, b: float) -> float:
            better = x - b if column.higher_is_better else b - x
            return math.log(b / x) if logarithmic and not column.higher_is_better else better

        by_seed = {run.row.get("seed"): run.value for run in base.runs}
        paired = [
            transform(run.value, by_seed[run.row.get("seed")]) for run in ours.runs if run.row.get("seed") in by_seed
        ]
        if len(paired) >= SMALLEST_N and len(set(paired)) > 1:
            return interval_over_units(paired)
        value = transform(ours.value, base.value)
        point = Interval(value, None, None, 0.95, "n too small", 0)
        a, b = _pooled(ours.runs), _pooled(base.runs)
        if a is None or b is None or ours.runs[0].units != base.runs[0].units:
            if a is not None and b is not None:
                self._problem(f"{column.task}: {setting} and {self.baseline} were scored on different units")
            return point
        if column.aggregate == "exp_mean" and not column.higher_is_better:
            # The log ratio of two perplexities is the difference of the mean negative log-likelihoods.
            return replace(_paired(b[0].tobytes(), a[0].tobytes(), _bytes(a[1])), value=value)
        sign = 1.0 if column.higher_is_better else -1.0
        difference = _paired((sign * a[0]).tobytes(), (sign * b[0]).tobytes(), _bytes(a[1]))
        if column.unit == FRACTION and setting != self.baseline:
            difference = without_spread(difference, -1.0, 1.0)
        if not zeroed or difference.low is None or difference.high is None:
            return replace(difference, value=value)
        # log(b / x) with x = b - d is increasing in d, so it maps the interval of d; b is held at its value.
        low, high = (
            -math.log1p(-d / base.value) if d < base.value else math.inf for d in (difference.low, difference.high)
        )
        return replace(difference, value=value, low=low, high=high)

    def standings(self, pattern: str, settings: Sequence[str]) -> list[Standing]:
        """``settings`` in the order of their mean gain, with ranks; those that miss a task come last, without one."""
        columns = self.columns(pattern)
        found = []
        for setting in settings:
            gains = {column.task: gain for column in columns if (gain := self.gain(pattern, column, setting))}
            complete = len(gains) == len(columns) > 0
            found.append(
                Standing(setting, gains, len(columns), mean_of_independent(list(gains.values())) if complete else None)
            )
        whole = sorted((s for s in found if s.mean), key=lambda s: (-s.mean.value if s.mean else 0.0, s.setting))
        partial = sorted((s for s in found if not s.mean), key=lambda s: (-len(s.gains), s.setting))
        return [*self._compared(_ranked(whole)), *partial]

    def _compared(self, standings: Sequence[Standing]) -> list[Standing]:
        """With p values of all but the baseline itself."""
        against = [s.setting != self.baseline for s in standings]
        found = [p_value(s.mean) if s.mean and other else None for s, other in zip(standings, against, strict=True)]
        return [replace(s, adjusted_p=p) for s, p in zip(standings, holm(found), strict=True)]


def _columns(task: str, card: Mapping[str, Any]) -> list[Column]:
    """A column per metric of a card, the primary one first."""
    return [
        Column(
            task,
            str(card.get("title", task)),
            str(metric["name"]),
            str(metric.get("unit") or ""),
            bool(metric["higher_is_better"]),
            str(metric.get("aggregate", "mean")),
            str(card.get("unit", "test example")),
            str(metric.get("description", "")),
            card.get("floor"),
            tuple(str(other["name"]) for other in card["metrics"] if other is not metric),
        )
        for metric in card["metrics"]
    ]


def task_of(row: Row) -> str:
    """The column that a row belongs to: the task's setting."""
    return str(row.get("task_setting") or row.get("task"))


def _pooled(runs: Sequence[Run]) -> tuple[np.ndarray, np.ndarray | None] | None:
    """Per unit the mean over seeds; None unless all runs have the same units."""
    first = runs[0]
    if any(run.values is None or run.units != first.units for run in runs):
        return None
    values = np.stack([run.values for run in runs if run.values is not None]).mean(axis=0, dtype=np.float64)
    weights = [run.weights for run in runs if run.weights is not None]
    return values, np.stack(weights).mean(axis=0, dtype=np.float64) if len(weights) == len(runs) else None


def _bytes(weights: np.ndarray | None) -> bytes | None:
    return None if weights is None else weights.astype(np.float64).tobytes()


# A page is rebuilt while results come in: an interval is computed once per process for the same units.
@functools.lru_cache(maxsize=4096)
def _interval(values: bytes, weights: bytes | None, aggregate: Any) -> Interval:
    return interval_over_units(np.frombuffer(values), None if weights is None else np.frombuffer(weights), aggregate)


@functools.lru_cache(maxsize=4096)
def _paired(a: bytes, b: bytes, weights: bytes | None) -> Interval:
    w = None if weights is None else np.frombuffer(weights)
    return paired_difference(np.frombuffer(a), np.frombuffer(b), w)


def _ranked(standings: Sequence[Standing]) -> list[Standing]:
    """Ranks down the order; a setting whose interval overlaps that of the first of a rank shares that rank.

    The baseline's gain is zero by definition, with an interval of width zero.
    """
    groups: list[list[Standing]] = []
    for standing in standings:
        if groups and _overlap(groups[-1][0].mean, standing.mean):
            groups[-1].append(standing)
        else:
            groups.append([standing])
    ranked: list[Standing] = []
    rank = 1
    for group in groups:
        ranked.extend(replace(standing, rank=rank, tied=len(group) > 1) for standing in group)
        rank += len(group)
    return ranked


def _overlap(better: Interval | None, worse: Interval | None) -> bool:
    if better is None or worse is None:
        return False
    if better.low is None or worse.high is None:
        return True  # nothing tells them apart
    return better.low <= worse.high
