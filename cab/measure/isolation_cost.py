"""What a process of its own costs: ``python -m cab.measure.isolation_cost FOLDER`` (``make benchmark-statistics``).

A fork of a server that has imported torch and run no operator, against a fresh interpreter that imports it: seconds
until the result of an empty function is back. ``isolation.json`` gets every time and the machine.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from cab.measure.isolate import IsolatedRunner
from cab.measure.kept import keep, place_of
from cab.records import Status

FORKS, INTERPRETERS = 50, 10


def nothing() -> None:
    """What the children do."""


def seconds(*, fresh: bool, calls: int) -> list[float]:
    """Per call, of the children after the first, which starts the server."""
    with IsolatedRunner(threads=1, fresh=fresh) as runner:
        outcomes = [runner.run(nothing) for _ in range(calls + 1)][1:]
    failed = next((outcome for outcome in outcomes if outcome.status is not Status.OK), None)
    if failed is not None:
        raise RuntimeError(f"a process failed: {failed.reason}")
    return [outcome.duration_s for outcome in outcomes]


def main(folder: Path) -> None:
    """Writes ``isolation.json`` into ``folder/<hardware>``."""
    times = {"fork_s": seconds(fresh=False, calls=FORKS), "interpreter_s": seconds(fresh=True, calls=INTERPRETERS)}
    medians = {name: statistics.median(values) for name, values in times.items()}
    keep(place_of(folder) / "isolation.json", "make benchmark-statistics", {"median": medians, **times})
    print(f"a fork takes {medians['fork_s'] * 1e3:.0f} ms, a fresh interpreter {medians['interpreter_s']:.2f} s")


if __name__ == "__main__":
    from cab.measure import isolation_cost  # children find what they run by its module's name, not in __main__

    isolation_cost.main(Path(sys.argv[1]))
