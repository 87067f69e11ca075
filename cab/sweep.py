"""The sweeper that plans: expands grids to cells, drops what is complete, hands the rest to the configured launcher.

It is a Hydra :class:`~hydra.plugins.sweeper.Sweeper`, so every Hydra launcher works under it; ``cab run -m`` and
``cab leaderboard`` both use it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, cast

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from hydra.utils import instantiate
from omegaconf import DictConfig

from cab.cells import Cell, digest, resolve
from cab.compose import Composer
from cab.errors import UserError, one_line
from cab.estimate import Estimator
from cab.launching import Launching, PlannedCell, duration
from cab.protocol import require_writable
from cab.records import Status
from cab.report.numbers import size
from cab.run import execute, record_failure
from cab.say import say
from cab.sweep_loader import SweepLoader
from cab.tracking import NoTracker, Tracker, make_tracker
from tasks.sources import DataUnavailable

Refusal = tuple[Status, str]
# Words of a command that do not say which sweep it is: how and where it runs, and who watches.
NOT_NAMING = ("hydra", "tracker", "results=", "device=", "threads=", "dry_run=", "~tracker", "+tracker", "++tracker")


@dataclass
class SweepSummary:
    """How many cells were asked for, were complete before, and how the others ended.

    ``failures`` says, for those that ran and gave no value, why, and with which command to look at or repeat each.
    """

    planned: int = 0
    complete: int = 0
    ended: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def count(self, status: str) -> None:
        self.ended[status] = self.ended.get(status, 0) + 1

    def __str__(self) -> str:
        parts = [f"{count} {status.replace('_', ' ')}" for status, count in sorted(self.ended.items())]
        new = ", ".join(parts) if parts else "nothing new"
        return "\n".join([f"{self.planned} runs: {self.complete} were complete; {new}", *self.failures])


def launched(config: DictConfig) -> str:
    """The task function that launchers call: one cell, in whatever process they chose; returns its status."""
    runtime = cast(DictConfig, HydraConfig.get().runtime)
    # A pool keeps its processes from one sweep to the next, and they stand where the first of them was started.
    os.chdir(runtime.cwd)
    cell = resolve(config, runtime)
    _spare_imports()
    return str(ended(cell))


def ended(cell: Cell, say: Callable[[str], None] = say) -> Status:
    """Runs one cell of several: what a single run would tell as the user's mistake is an ``error`` row."""
    try:
        return execute(cell, tracker=_tracker(cell), say=say)
    except (UserError, DataUnavailable) as error:
        return record_failure(cell, Status.ERROR, one_line(error))


@cache
def _spare_imports() -> None:
    """Once per process: measuring memory collects garbage in each cell, and what imports made is a million objects."""
    gc.collect()
    gc.freeze()


def _tracker(cell: Cell) -> Tracker:
    """The cell's tracker; none where this worker cannot have it, though the machine that planned the sweep could."""
    try:
        return make_tracker(cell.config.tracker)
    except UserError as error:
        say(f"{one_line(error)}; the records are complete without it")
        return NoTracker()


class PlanningSweeper(Sweeper):
    """Args:
    composer: the open Hydra context.
    on_cell: called after each batch of cells that ended.
    refuse: the status and reason of a cell that is not to be run (no certificate, say), or None.
    dry_run: show the plan and run nothing.
    say: prints a line.
    """

    def __init__(
        self,
        composer: Composer,
        *,
        on_cell: Callable[[], None] = lambda: None,
        refuse: Callable[[Cell], Refusal | None] = lambda cell: None,
        dry_run: bool = False,
        say: Callable[[str], None] = say,
    ) -> None:
        self.composer = composer
        self.on_cell = on_cell
        self.refuse = refuse
        self.dry_run = dry_run
        self.say = say
        self.summary = SweepSummary()

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.loader = SweepLoader(hydra_context.config_loader.get_search_path())
        hydra_context = HydraContext(config_loader=self.loader, callbacks=hydra_context.callbacks)
        self.master = config
        with self.composer.one_line_errors("run"):
            self.launcher: Launcher = _launcher(hydra_context, task_function, config)

    def plan(self, grids: Sequence[Sequence[str]]) -> list[PlannedCell]:
        """The cells of all grids, in order, each once; a mistake in any of them is a ``UserError`` before any runs."""
        cells: dict[str, PlannedCell] = {}
        for grid in grids:
            parsed = self.composer.parse(grid)
            with self.composer.one_line_errors("run"):
                combinations = BasicSweeper.split_arguments(parsed, None)[0]
            for overrides in combinations:
                with self.composer.one_line_errors("run"):
                    config, hydra = self.loader.apart(self.master, overrides)
                    cell = resolve(config, hydra.runtime)
                cells.setdefault(f"{cell.store.folder}/{cell.key}", PlannedCell(overrides, cell))
        return list(cells.values())

    def sweep(self, arguments: list[str]) -> Any:
        """One grid, as Hydra calls it."""
        return self.sweep_grids([arguments])

    def sweep_grids(self, grids: Sequence[Sequence[str]]) -> SweepSummary:
        """Runs what is missing of the union of the grids."""
        planned = self.plan([[*grid, *self._threads(), *self._group(grids)] for grid in grids])
        done: dict[str, set[str]] = {}
        missing: list[PlannedCell] = []
        for item in planned:
            store = item.cell.store
            folder = str(store.folder)
            if folder not in done:
                require_writable(store.folder)
                done[folder] = store.complete()
            if item.cell.key not in done[folder]:
                missing.append(item)
        self.summary = SweepSummary(planned=len(planned), complete=len(planned) - len(missing))
        self.say(f"{len(planned)} runs planned, {self.summary.complete} complete, {len(missing)} to run")
        for tracker in {str(item.cell.config.tracker): item.cell.config.tracker for item in missing}.values():
            make_tracker(tracker)  # refuses now what it would in every cell
        if self.dry_run:
            self._tell_plan(missing)
            return self.summary
        self._run(missing)
        return self.summary

    def _threads(self) -> list[str]:
        """The threads of each worker, where neither the user nor the launcher says it: the cores, shared out."""
        launcher, cores = self.master.hydra.launcher, len(os.sched_getaffinity(0))
        reserved = launcher.get("cpus_per_run") or launcher.get("cpus_per_task")
        if (workers := launcher.get("n_jobs")) is not None:
            reserved = cores // (workers if workers > 0 else max(1, cores + 1 + workers))
        return [] if self.master.threads is not None or reserved is None else [f"threads={max(1, int(reserved))}"]

    def _group(self, grids: Sequence[Sequence[str]]) -> list[str]:
        """The sweep's name for trackers, where the user gives none: the same for the same cells asked for again."""
        if self.master.sweep is not None:
            return []
        asked = [sorted(word for word in grid if not word.startswith(NOT_NAMING)) for grid in grids]
        return [f"sweep=sweep-{digest({'grids': sorted(asked)})[:8]}"]

    def _tell_plan(self, missing: Sequence[PlannedCell]) -> None:
        """What would run, and about what each takes by the records of like runs."""
        estimators: dict[Path, Estimator] = {}
        seconds: list[float] = []
        for item in missing:
            store = item.cell.store
            if store.folder not in estimators:
                estimators[store.folder] = Estimator(store.lines())
            found = estimators[store.folder].of(item.cell)
            parts = [f"about {duration(found.seconds)}"] if found.seconds is not None else []
            parts += [f"{size(found.bytes)} a step"] if found.bytes is not None else []
            self.say(f"  {item.describe()}" + (f" ({', '.join(parts)})" if parts else ""))
            seconds += [found.seconds] if found.seconds is not None else []
        if seconds:
            unknown_ones = f"; {len(missing) - len(seconds)} have no like run" if len(seconds) < len(missing) else ""
            self.say(f"about {duration(sum(seconds))} one after the other, by the records of like runs{unknown_ones}")

    def _recorded_gap(self, cell: Cell) -> bool:
        """Records a cell that needs no run to be known as a gap: unsupported, or refused."""
        refusal = self.refuse(cell)
        if refusal is None and cell.unsupported is not None:
            refusal = (Status.UNSUPPORTED, cell.unsupported)
        if refusal is None:
            return False
        self.summary.count(record_failure(cell, *refusal))
        return True

    def _run(self, missing: list[PlannedCell]) -> None:
        missing = [item for item in missing if not self._recorded_gap(item.cell)]
        for task in {item.cell.task_setting: item.cell.task for item in missing}.values():
            # Here, so that workers do not all fetch; what is missing or damaged fails in its own cell.
            with contextlib.suppress(ValueError):
                task.prepare()
        statuses = Launching(self.launcher, self.say, self.on_cell).run(missing)
        for status in statuses:
            self.summary.count(status)
        folder = self.composer.config_dir
        command = ["cab", "run", *(["--config-dir", str(folder)] if folder is not None else [])]
        self.summary.failures = _failures(missing, statuses, command)
        if missing:
            self.on_cell()


def _launcher(context: HydraContext, task_function: TaskFunction, config: DictConfig) -> Launcher:
    """The configured launcher. Hydra makes those that come as its plug-ins; ours are no plug-ins."""
    if not str(config.hydra.launcher._target_).startswith("cab."):
        return Plugins.instance().instantiate_launcher(
            hydra_context=context, task_function=task_function, config=config
        )
    launcher: Launcher = instantiate(config.hydra.launcher)
    launcher.setup(hydra_context=context, task_function=task_function, config=config)
    return launcher


def _failures(ran: Sequence[PlannedCell], statuses: Sequence[Status], command: Sequence[str]) -> list[str]:
    """Two lines for each run without a value: why, and ``command`` with its overrides."""
    failed = [(item, status) for item, status in zip(ran, statuses, strict=True) if status is not Status.OK]
    reasons: dict[str, str] = {}
    for store in {item.cell.store.folder: item.cell.store for item, _ in failed}.values():
        for key, rows in store.of_runs({item.cell.key for item, _ in failed}).items():
            reasons[key] = str(rows[-1].get("reason"))
    lines = []
    for item, status in failed:
        lines.append(f"  {str(status).replace('_', ' ')}: {item.describe()}: {reasons.get(item.cell.key, '')}")
        lines.append(f"    {shlex.join([*command, *item.overrides])}")
    return lines
