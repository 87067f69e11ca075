"""Whether intervals of paired ratios hold what they promise: ``python -m cab.measure.calibration FOLDER``.

Two operations of known times, one that spins to a deadline of 5.00 ms and one to 5.50 ms, are measured as a mechanism
and its baseline are: children of the fork server, paired calls, a ratio per process, a 95 % interval over processes. As
real operations do, each has a speed of its own in each process: its deadline is multiplied by a factor whose logarithm
is normal with deviation ``SPREAD``, the same for all calls of the process. Of many such measurements the intervals
should hold the true ratio, 1.100, in about 95 of 100; and 1 for two copies of one operation, which a table then shows
as a tie.

Without the factor all that is left is the error of the clock: a call carries about a microsecond of overhead, more in a
process that has just been forked. How far off ratios are then, the *resolution*, is measured too; it is far below any
interval of a real operation, and an interval of its width would be wrong about it.

``coverage.csv`` gets every interval, ``coverage.json`` the counts, the resolution and the machine (``make
benchmark-statistics``).
"""

from __future__ import annotations

import csv
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cab.measure.environment import describe, hardware_id
from cab.measure.isolate import IsolatedRunner
from cab.measure.progress import Progress
from cab.measure.timing import CPUClock, paired_times
from cab.records import Status
from cab.stats.intervals import ratio_interval

REPEATS, PROCESSES = 200, 5
SPREAD = 0.01  # of a process's speed: as the quietest tenth of the cells in results/reference/zoo scatters
# The pairs of true times in seconds.
CASES = {"5.50 ms against 5.00 ms": (5.5e-3, 5.0e-3), "two copies of 5.00 ms": (5.0e-3, 5.0e-3)}
ALLOWED = (0.91, 0.98)  # shares of 200 that 95 % allows: 1.96 standard errors are 3 %


def spin(seconds: float) -> None:
    """Busy until a deadline, so that the time is known whatever the processor does."""
    end = time.perf_counter_ns() + round(seconds * 1e9)
    while time.perf_counter_ns() < end:
        pass


def spin_pair(mechanism_s: float, baseline_s: float, spread: float, seed: tuple[int, ...]) -> float:
    """The ratio that one process finds; its two speeds are drawn from ``seed``."""
    factors = np.exp(spread * np.random.default_rng(seed).standard_normal(2))
    mechanism_s, baseline_s = mechanism_s * float(factors[0]), baseline_s * float(factors[1])
    times = paired_times(
        lambda: spin(mechanism_s),
        lambda: spin(baseline_s),
        CPUClock(),
        min_time_s=0.1,
        warmup_time_s=0.02,
        min_pairs=5,
    )
    return times.ratio


@dataclass(frozen=True)
class Held:
    """One measurement: its interval, and whether it holds the true ratio."""

    case: str
    repeat: int
    true_ratio: float
    ratio: float
    low: float
    high: float
    held: bool


def calibrate(repeats: int = REPEATS, processes: int = PROCESSES) -> list[Held]:
    """``repeats`` intervals of each case, in turns, over ``processes`` processes each."""
    found: list[Held] = []
    progress = Progress("intervals", repeats * len(CASES))
    with IsolatedRunner(threads=1, preload=["cab.measure.calibration"]) as runner:
        for repeat in range(repeats):
            for number, (case, (mechanism_s, baseline_s)) in enumerate(CASES.items()):
                ratios = [
                    _ratio(runner, mechanism_s, baseline_s, SPREAD, (number, repeat, process))
                    for process in range(processes)
                ]
                interval = ratio_interval(ratios)
                assert interval.low is not None
                assert interval.high is not None
                true = mechanism_s / baseline_s
                held = interval.holds(true)
                found.append(Held(case, repeat, true, interval.value, interval.low, interval.high, held))
                progress.advance()
    progress.close()
    return found


def resolution(processes: int = 4 * PROCESSES) -> dict[str, float]:
    """Per case the median over processes of measured over true ratio, less one, where every process is as fast."""
    with IsolatedRunner(threads=1, preload=["cab.measure.calibration"]) as runner:
        return {
            case: float(np.median([_ratio(runner, *times, 0.0, (0,)) for _ in range(processes)])) * times[1] / times[0]
            - 1.0
            for case, times in CASES.items()
        }


def _ratio(
    runner: IsolatedRunner, mechanism_s: float, baseline_s: float, spread: float, seed: tuple[int, ...]
) -> float:
    outcome = runner.run(spin_pair, mechanism_s, baseline_s, spread, seed)
    if outcome.status is not Status.OK:
        raise RuntimeError(f"a process failed: {outcome.reason}")
    return float(outcome.value)


def main(folder: Path) -> int:
    """Writes the two files into ``folder/<hardware>``; 1 where a share is outside of what 95 % allows."""
    place = folder / hardware_id("cpu")
    place.mkdir(parents=True, exist_ok=True)
    found = calibrate()
    with (place / "coverage.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(found[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(held) for held in found)
    shares = {}
    for case in CASES:
        of_case = [held.held for held in found if held.case == case]
        shares[case] = sum(of_case) / len(of_case)
    summary = {
        "repeats": REPEATS,
        "processes": PROCESSES,
        "level": 0.95,
        "allowed": ALLOWED,
        "spread": SPREAD,
        "share_that_holds_the_true_ratio": shares,
        "resolution": resolution(),
        "command": "make benchmark-statistics",
        "environment": {k: v for k, v in describe("cpu").items() if k != "host"},
    }
    (place / "coverage.json").write_text(json.dumps(summary, indent=1, default=str) + "\n", encoding="utf-8")
    allowed = f"allowed {ALLOWED[0]:.0%} to {ALLOWED[1]:.0%}"
    for case, share in shares.items():
        print(f"{case}: {share:.1%} of {REPEATS} intervals hold the true ratio ({allowed})")
    return 0 if all(ALLOWED[0] <= share <= ALLOWED[1] for share in shares.values()) else 1


if __name__ == "__main__":
    from cab.measure import calibration  # children find what they run by its module's name, not in __main__

    sys.exit(calibration.main(Path(sys.argv[1])))
