"""What a search came to: its trials as the records tell them, the best one, and the file that says how it was chosen.

    <results>/<protocol>/<hardware>/searches/<name>.json

The name is a hash of the space, the budget, the seed, and of what the trials have in common. The same records give the
same bytes. The file also stands where the chosen setting is scored on test data, so that a report finds it there.
"""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cab.cells import Cell
from cab.records import Status
from cab.report.quality import FRACTION
from cab.schema import Tune
from cab.stats.intervals import Interval, interval_over_units, without_spread
from tasks.contract import Metric
from tasks.whole_file import write_whole

FOLDER = "searches"


@dataclass(frozen=True)
class Trial:
    """A setting, and what its run came to. ``words`` are its overrides; ``value`` is None where it has a reason."""

    words: tuple[str, ...]
    cell: Cell
    status: Status
    value: float | None
    reason: str | None

    @classmethod
    def recorded(cls, words: tuple[str, ...], cell: Cell, metric: Metric) -> Trial:
        """From the records, whoever made them: a replay gives what the first way gave."""
        rows = cell.store.final(cell.key) or cell.store.of_run(cell.key)
        row = next((row for row in rows if row["metric"] == metric.name and row["status"] == Status.OK), rows[-1])
        return cls(words, cell, Status(row["status"]), row["value"], row["reason"])

    @staticmethod
    def best(trials: Iterable[Trial], metric: Metric) -> Trial | None:
        """The first of those with the best value."""
        sign = 1.0 if metric.higher_is_better else -1.0
        found = [trial for trial in trials if trial.value is not None]
        return max(found, key=lambda trial: sign * (trial.value or 0.0), default=None)

    def said(self, metric: Metric) -> str:
        if self.value is not None:
            return f"{metric.name} {self.value:.6g}"
        return f"{self.status.replace('_', ' ')}: {self.reason}"

    def interval(self, metric: Metric) -> Interval | None:
        """Over validation examples; None without values for each."""
        arrays = self.cell.store.read_units(self.cell.key)
        values = arrays.get(f"values/{metric.name}")
        if values is None:
            return None
        interval = interval_over_units(values, arrays.get(f"weights/{metric.name}"), metric.aggregate)
        return without_spread(interval, 0.0, 1.0) if metric.unit == FRACTION else interval


@dataclass(frozen=True)
class Outcome:
    """``first`` is the first setting that was tried out, ``chosen`` the best one as a run on test data, and ``command``
    the line that makes it. ``wanted`` are the trials that the space has room for."""

    name: str
    first: Cell
    config: Tune
    sampler: str
    metric: Metric
    trials: tuple[Trial, ...]
    wanted: int
    fixed: tuple[str, ...]
    command: tuple[str, ...]
    chosen: Cell | None

    @property
    def best(self) -> Trial | None:
        return Trial.best(self.trials, self.metric)

    def plan(self) -> str:
        """For a dry run: the space, what is fixed, and how far the records go."""
        goal = "highest" if self.metric.higher_is_better else "lowest"
        lines = [f"search for the {goal} {self.metric.name} of {self.first.task_setting} on validation data"]
        lines += [f"  {key}={text}" for key, text in self.config.space.items()]
        lines.append(f"fixed: {shlex.join(self.fixed)}")
        lines.append(f"{self.wanted} trials: {len(self.trials)} recorded, {self.wanted - len(self.trials)} to run")
        return "\n".join(lines)

    def __str__(self) -> str:
        ended = Counter(trial.status.replace("_", " ") for trial in self.trials)
        counts = ", ".join(f"{count} {status}" for status, count in sorted(ended.items()))
        lines = [f"{len(self.trials)} trials: {counts}"]
        if len(self.trials) < self.wanted:
            lines[0] += f"; {self.wanted} were asked for, but nothing new was proposed any more"
        best = self.best
        if best is None:
            return "\n".join([*lines, "no trial has a value, so nothing is chosen"])
        interval = best.interval(self.metric)
        around = (
            f" (95 % interval over {interval.n} validation examples: {interval.low:.6g} to {interval.high:.6g})"
            if interval is not None and interval.low is not None and interval.high is not None
            else ""
        )
        lines.append(f"best on validation data: {self.metric.name} {best.value:.6g}{around}")
        lines += [f"  {word}" for word in best.words]
        lines += ["the best of many looks better than it is; its value on test data:", f"  {shlex.join(self.command)}"]
        return "\n".join(lines)

    def content(self) -> dict[str, Any]:
        best, chosen = self.best, self.chosen
        return {
            "search": self.name,
            "task": self.first.task_setting,
            "pattern": str(self.first.pattern),
            "metric": self.metric.name,
            "higher_is_better": self.metric.higher_is_better,
            "split": self.config.split,
            "space": self.config.space,
            "fixed": list(self.fixed),
            "trials": self.config.trials,
            "sampler": self.sampler,
            "sampler_seed": self.config.sampler_seed,
            "ended": dict(sorted(Counter(str(trial.status) for trial in self.trials).items())),
            "runs": [
                {"overrides": list(t.words), "run_key": t.cell.key, "status": str(t.status), "value": t.value}
                for t in self.trials
            ],
            "best": None if best is None else {"overrides": list(best.words), "run_key": best.cell.key},
            "chosen_run_key": None if chosen is None else chosen.key,
        }

    def write(self) -> Sequence[Path]:
        """Writes the file beside the trials, and beside the records of the chosen setting."""
        text = json.dumps(self.content(), indent=1, sort_keys=True) + "\n"
        folders = dict.fromkeys(cell.store.folder for cell in (self.first, self.chosen) if cell is not None)
        return [write_whole(folder / FOLDER / f"{self.name}.json", text.encode()) for folder in folders]
