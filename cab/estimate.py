"""What planned runs will take, from the records of like ones: median seconds, and the largest memory of a step."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from cab.cells import Cell
from cab.records import Status

# What a like run has in common with the planned one, the likest first.
_LIKE = (
    ("task_setting", "size", "pattern", "setting"),
    ("task_setting", "size", "pattern"),
    ("task_setting", "size"),
)


@dataclass(frozen=True)
class Estimate:
    """Of one run; None where no like run is recorded. ``bytes`` is the peak of a step, or of a forward pass where a run
    has no steps, beyond model and batch."""

    seconds: float | None
    bytes: float | None


class Estimator:
    """Reads ``rows`` once. Runs on other hardware, with another dtype or number of threads are not like."""

    def __init__(self, rows: Iterable[Mapping[str, Any]]) -> None:
        self._seconds: dict[tuple[Any, ...], list[float]] = {}
        self._bytes: dict[tuple[Any, ...], list[float]] = {}
        for row in rows:
            if row["status"] != Status.OK or row.get("level") != "model" or not row.get("task"):
                continue
            for names in _LIKE:
                key = (names, *(row.get(name) for name in names), row.get("dtype"), row.get("threads"))
                # Of the rows of a run, which share its duration, one that every run has.
                if row["metric"] == "parameters" and row.get("duration_s") is not None:
                    self._seconds.setdefault(key, []).append(float(row["duration_s"]))
                if row["metric"] == "peak_extra_bytes":
                    self._bytes.setdefault(key, []).append(float(row["value"]))

    def of(self, cell: Cell) -> Estimate:
        """From the likest runs that are there."""
        columns = cell.columns() | {"setting": cell.setting.name}
        keys = [(names, *(columns[name] for name in names), columns["dtype"], columns["threads"]) for names in _LIKE]
        seconds = next((self._seconds[key] for key in keys if key in self._seconds), None)
        peaks = next((self._bytes[key] for key in keys if key in self._bytes), None)
        return Estimate(statistics.median(seconds) if seconds else None, max(peaks) if peaks else None)
