"""Hands planned cells to a Hydra launcher until each of them has a record, whatever happens to its workers.

With the basic launcher cells run here, one after the other. Any other launcher gets all of them at once, and what they
came to is read from the records, not from what the launcher says: a worker that is killed takes the launcher's whole
batch with it. Then what has no record yet is handed over again; cells whose process died are set aside and run alone
after all others, so that none pays for its neighbour; and one that dies alone is an ``error`` with its reason.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import psutil
from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.plugins.launcher import Launcher

from cab.arrivals import Arrivals
from cab.cells import Cell
from cab.claims import claims_of, left_behind
from cab.errors import UserError, one_line
from cab.leaving import interrupted
from cab.records import RETRIED, Status
from cab.run import record_failure

GRACE_S = 3.0  # for workers to write their checkpoints
DEATHS = 2  # of a cell that runs alone, before its row says so


@dataclass(frozen=True)
class PlannedCell:
    """A cell and the overrides that compose it."""

    overrides: list[str]
    cell: Cell

    def describe(self) -> str:
        cell = self.cell
        return f"{cell.task_setting} {cell.pattern} {cell.setting.name} seed {cell.config.seed}"


class Launching:
    """Args:
    launcher: set up with the task function.
    say: prints a line.
    on_cell: called when cells have ended.
    """

    POLL_S = 1.0

    def __init__(self, launcher: Launcher, say: Callable[[str], None], on_cell: Callable[[], None]) -> None:
        self._launcher = launcher
        self._say = say
        self._on_cell = on_cell

    def run(self, cells: Sequence[PlannedCell]) -> list[Status]:
        """How each of ``cells`` ended, in their order.

        Raises:
            UserError: the launcher starts nothing at all.
        """
        if isinstance(self._launcher, BasicLauncher):
            return self._one_by_one(cells)
        deaths: dict[str, int] = {}
        ran: dict[str, Status] = {}
        errors = {key: len(rows) for key, rows in _rows(cells).items()}  # of earlier commands, to be tried again
        while left := [planned for planned in cells if planned.cell.key not in ran]:
            healthy = [planned for planned in left if planned.cell.key not in deaths]
            batch = healthy or left[:1]
            fault = self._launch(batch, len(cells), len(ran))
            for key, rows in _rows(batch).items():
                final = [row for row in rows if row["status"] not in RETRIED]
                if final or len(rows) > errors.get(key, 0):
                    ran[key] = Status((final or rows)[-1]["status"])
            dead = [p for p in batch if p.cell.key not in ran and left_behind(p.cell.store.folder, p.cell.key)]
            for planned in dead:
                key = planned.cell.key
                deaths[key] = deaths.get(key, 0) + 1
                if not healthy and deaths[key] > DEATHS:
                    reason = f"its process died {deaths[key]} times, the last {DEATHS} alone: {fault}"
                    record_failure(planned.cell, Status.ERROR, reason)
                    ran[key] = Status.ERROR
            if not dead and not any(planned.cell.key in ran for planned in batch):
                raise UserError(f"hydra/launcher={_name(self._launcher)} ran nothing: {fault}")
            if dead and healthy:
                names = ", ".join(planned.describe() for planned in dead)
                self._say(f"a worker died ({fault}); again, alone and last: {names}")
        return [ran[planned.cell.key] for planned in cells]

    def _one_by_one(self, cells: Sequence[PlannedCell]) -> list[Status]:
        begin = time.monotonic()
        found: list[Status] = []
        for number, planned in enumerate(cells, start=1):
            tick = time.monotonic()
            (returned,) = self._launcher.launch([planned.overrides], initial_job_idx=number - 1)
            # Not by its property, which writes a line of Hydra's before what the task function raised.
            if isinstance(value := returned._return_value, BaseException):
                raise value
            found.append(Status(value))
            if interrupted():
                raise KeyboardInterrupt
            left = (time.monotonic() - begin) / number * (len(cells) - number)
            note = "" if found[-1] is Status.OK else f": {found[-1].replace('_', ' ')}"
            took = f"{time.monotonic() - tick:.1f} s"
            self._say(f"[{number}/{len(cells)}] {planned.describe()}{note} ({took}; about {duration(left)} left)")
            self._on_cell()
        return found

    def _launch(self, batch: Sequence[PlannedCell], of: int, before: int) -> str:
        """What went wrong with the batch as a whole, or an empty text.

        Raises:
            OSError: a worker could not write its records.
        """
        folders = {planned.cell.store.folder for planned in batch}
        with self._watching(batch, of, before), _passing_signals_on(folders):
            try:
                returns = self._launcher.launch([planned.overrides for planned in batch], initial_job_idx=before)
            except Exception as error:  # noqa: BLE001 - whatever a launcher's worker dies of, the sweep goes on
                return f"{type(error).__name__}: {one_line(error)}"
        faults = [value for each in returns if isinstance(value := each._return_value, BaseException)]
        for fault in faults:
            if isinstance(fault, OSError | KeyboardInterrupt):
                raise fault
        return f"{type(faults[0]).__name__}: {one_line(faults[0])}" if faults else ""

    @contextmanager
    def _watching(self, batch: Sequence[PlannedCell], of: int, before: int) -> Iterator[None]:
        """Tells how far a batch is while the launcher holds this thread."""
        names = {planned.cell.key: planned.describe() for planned in batch}
        arrivals = [Arrivals(store) for store in {p.cell.store.folder: p.cell.store for p in batch}.values()]
        for each in arrivals:
            each.new()
        over, begin = threading.Event(), time.monotonic()

        def tell() -> None:
            count = 0
            while True:
                ending = over.wait(self.POLL_S)
                for key, status in (pair for each in arrivals for pair in each.new().items()):
                    if key not in names:
                        continue
                    count += 1
                    left = (time.monotonic() - begin) / count * (len(batch) - count)
                    note = "" if status == Status.OK else f": {status.replace('_', ' ')}"
                    self._say(f"[{before + count}/{of}] {names.pop(key)}{note} (about {duration(left)} left)")
                if ending:
                    return
                self._on_cell()

        teller = threading.Thread(target=tell, name="cab-progress", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join()


@contextmanager
def _passing_signals_on(folders: Collection[Path]) -> Iterator[None]:
    """SIGINT and SIGTERM reach the workers, which have some seconds to write their checkpoints before this ends."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        for handled in before:
            signal.signal(handled, signal.default_int_handler)  # a second one is immediate
        at_work = [path for folder in folders for path in claims_of(folder)]
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.terminate()
        deadline = time.monotonic() + GRACE_S
        while any(path.exists() for path in at_work) and time.monotonic() < deadline:
            time.sleep(0.05)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, pass_on)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _rows(cells: Sequence[PlannedCell]) -> dict[str, list[dict[str, Any]]]:
    """All rows of some cells, by key."""
    found: dict[str, list[dict[str, Any]]] = {}
    for store in {planned.cell.store.folder: planned.cell.store for planned in cells}.values():
        found |= store.of_runs({planned.cell.key for planned in cells})
    return found


def _name(launcher: Launcher) -> str:
    return type(launcher).__name__.removesuffix("Launcher").lower()


def duration(seconds: float) -> str:
    """In words, to a person's precision."""
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
