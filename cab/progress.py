"""Tells a person at the terminal how a single run goes: steps, loss, time left, and its values at the end."""

from __future__ import annotations

import time

from cab.cells import Cell
from cab.errors import UserError
from cab.protocol import require_writable
from cab.records import Status
from cab.run import execute
from cab.say import say
from cab.tracking import make_tracker


class RunNarrator:
    """Runs one cell and speaks on stderr, at most every two seconds; the values go to stdout."""

    INTERVAL_S = 2.0

    def __init__(self, cell: Cell) -> None:
        self.cell = cell
        self.begin = time.monotonic()
        self.first_step: int | None = None
        self.spoken = 0.0

    def run(self) -> Status:
        """Ends at once where the run is complete.

        Raises:
            UserError: the mechanism has no form for the pattern, or the results folder cannot be written.
        """
        cell = self.cell
        if cell.unsupported is not None:
            allowed = ", ".join(str(pattern) for pattern in cell.setting.card.supports)
            raise UserError(
                f"attention {cell.setting.name!r} has no {cell.pattern} form: {cell.unsupported}; allowed: {allowed}"
            )
        require_writable(cell.store.folder)
        steps = cell.recipe.max_steps
        if cell.key in cell.store.complete():
            say(f"{self._name()} is complete; its records are in {cell.store.folder}")
        else:
            tracker = make_tracker(cell.config.tracker)
            if cell.config.dry_run:
                say(f"would run {self._name()}: {steps} steps, into {cell.store.folder}")
                return Status.OK
            say(f"{self._name()}: {steps} steps, into {cell.store.folder}")
            execute(cell, tracker=tracker, on_log=self._log, say=say)
        return self._tell_values()

    def _name(self) -> str:
        cell = self.cell
        return f"{cell.task_setting} {cell.pattern} {cell.setting.name} seed {cell.config.seed}"

    def _log(self, step: int, loss: float) -> None:
        now, steps = time.monotonic(), self.cell.recipe.max_steps
        if self.first_step is None:
            self.first_step, self.begin = step, now
        if now - self.spoken < self.INTERVAL_S and step < steps:
            return
        self.spoken = now
        done = step - self.first_step
        left = f", {(now - self.begin) / done * (steps - step):.0f} s left" if done else ""
        say(f"  step {step}/{steps}  loss {loss:.4f}{left}")

    def _tell_values(self) -> Status:
        rows = self.cell.store.of_run(self.cell.key)
        status = Status.OK
        for row in rows:
            if row["status"] == Status.OK:
                print(f"{row['metric']:<18} {row['value']:.6g} {row['unit'] or ''}")
            else:
                status = Status(row["status"])
                print(f"{row['metric']:<18} {row['status'].replace('_', ' ')}: {row['reason']}")
        return Status.OK if any(row["status"] == Status.OK for row in rows) else status
