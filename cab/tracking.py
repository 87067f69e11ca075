"""Trackers: mirrors of curves and values for people who watch runs elsewhere; never the only copy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from cab.errors import UserError, one_line

INTERRUPTED = "interrupted"


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run at its start.

    Attributes:
        key: of the run; the same when it goes on after a kill.
        name: for people.
        group: of the sweep that it belongs to; None for a single run.
        config: resolved.
        folder: where a tracker may keep files.
    """

    key: str
    name: str
    group: str | None
    config: Mapping[str, Any]
    folder: Path


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        status: of its records, or ``interrupted``.
        reason: why it has no values.
        rows: metric, value, unit, phase and split of each value.
        samples: the files of the task's sample outputs, and their media types.
    """

    status: str
    reason: str | None = None
    rows: Sequence[Mapping[str, Any]] = ()
    samples: Sequence[tuple[Path, str]] = ()

    @property
    def values(self) -> dict[str, float]:
        """The values by metric."""
        return {str(row["metric"]): float(row["value"]) for row in self.rows}

    def table(self) -> list[list[Any]]:
        """The rows as ``COLUMNS``."""
        return [[row.get(column) for column in COLUMNS] for row in self.rows]


COLUMNS = ("metric", "value", "unit", "phase", "split")


class Tracker(Protocol):
    """What a run tells: its start, its curve, and how it ended. Whatever is raised costs the mirror, not the run.

    A run that goes on after a kill starts anew with the key it had, and logs steps again that came after its last
    checkpoint.
    """

    def start(self, run: TrackedRun) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, outcome: Outcome) -> None: ...


class NoTracker:
    """Tracks nothing: the records are enough."""

    def start(self, run: TrackedRun) -> None: ...

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def finish(self, outcome: Outcome) -> None: ...


def make_tracker(config: Any) -> Tracker:
    """The tracker of a config node; what the user can mend in it is a :class:`UserError`."""
    try:
        return cast(Tracker, instantiate(config) or NoTracker())
    except InstantiationException as error:
        raise UserError(f"tracker: {one_line(error.__cause__ or error)}") from error
