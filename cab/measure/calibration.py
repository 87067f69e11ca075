"""Whether intervals of paired ratios hold what they promise: ``python -m cab.measure.calibration FOLDER``.

Two operations of known times, one that spins to a deadline of 5.00 ms and one to 5.50 ms, are measured as a mechanism
and its baseline are: children of the fork server, paired calls, a ratio per process, a 95 % interval over processes. Of
many such measurements the intervals should hold the true ratio, 1.100, in about 95 of 100; and 1 for two copies of one
operation. A spin ends 0.2 to 3 us after its deadline, differently in each process (the call, and the last look at the
time); deadlines are earlier by what spins are late in the same process, so that an operation takes the time that is
meant.

Twice. *With speeds* each operation of each process has a speed of its own, a factor whose logarithm is normal with
deviation ``SPREAD``, as real operations have. It asks whether the process is the right unit: intervals over the calls
of a process, which agree with each other far better than processes do, would fail it. The factors come from the
operating system's randomness, not from a seed, and stand in ``coverage.csv`` beside what was measured.

*As they are* the operations scatter by some ten millionths, far less than any attention, and what is seen is the
resolution of the clock: the offset of the ratio that all processes have in common from the true one. Intervals are as
narrow as that offset, so fewer hold the true ratio; how many hold the common one is given beside it. Only the shares
with speeds decide the exit status.

``coverage.csv`` gets every interval, ``coverage.json`` the shares and the machine (``make benchmark-statistics``).
"""

from __future__ import annotations

import csv
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cab.measure.isolate import IsolatedRunner
from cab.measure.kept import keep, place_of
from cab.measure.progress import Progress
from cab.measure.timing import CPUClock, paired_times
from cab.records import Status
from cab.stats.intervals import ratio_interval

REPEATS, PROCESSES = 200, 5
SPREAD = 0.01  # of a process's speed: as the quietest tenth of the cells in results/reference/zoo scatters
SPREADS = {"as they are": 0.0, "with speeds": SPREAD}
_OVERSHOOT_SPINS = 10
# The pairs of true times in seconds.
CASES = {"5.50 ms against 5.00 ms": (5.5e-3, 5.0e-3), "two copies of 5.00 ms": (5.0e-3, 5.0e-3)}
ALLOWED = (0.91, 0.98)  # shares of 200 that 95 % allows: 1.96 standard errors are 3 %


def spin(seconds: float) -> None:
    """Busy until a deadline, so that the time is known whatever the processor does."""
    end = time.perf_counter_ns() + round(seconds * 1e9)
    while time.perf_counter_ns() < end:
        pass


def _overshoot(seconds: float) -> float:
    """Seconds by which a spin of ``seconds`` ends late in this process: the call, and the last look at the time."""
    late: list[int] = []
    for _ in range(_OVERSHOOT_SPINS):
        start = time.perf_counter_ns()
        spin(seconds)
        late.append(time.perf_counter_ns() - start)
    return float(np.median(late)) * 1e-9 - seconds


def spin_pair(mechanism_s: float, baseline_s: float, factors: tuple[float, float]) -> float:
    """The ratio that one process finds of two operations, whose times are multiplied by ``factors``."""
    clock = CPUClock()
    overshoot = _overshoot(baseline_s)
    mechanism_s, baseline_s = mechanism_s * factors[0] - overshoot, baseline_s * factors[1] - overshoot
    times = paired_times(
        lambda: spin(mechanism_s),
        lambda: spin(baseline_s),
        clock,
        min_time_s=0.1,
        warmup_time_s=0.02,
        min_pairs=5,
        warmup_pairs=3,
    )
    return times.ratio


@dataclass(frozen=True)
class Held:
    """One measurement: its interval, and whether it holds the true ratio."""

    case: str
    speeds: str
    repeat: int
    true_ratio: float
    ratio: float
    low: float
    high: float
    held: bool
    drawn: str


def calibrate(repeats: int = REPEATS, processes: int = PROCESSES) -> list[Held]:
    """``repeats`` intervals of each case, as they are and with speeds, in turns, over ``processes`` processes each."""
    found: list[Held] = []
    draw = np.random.default_rng()  # of the operating system's randomness
    cases = [(case, times, speeds) for case, times in CASES.items() for speeds in SPREADS]
    progress = Progress("intervals", repeats * len(cases))
    with IsolatedRunner(threads=1, preload=["cab.measure.calibration"]) as runner:
        for repeat in range(repeats):
            for case, (mechanism_s, baseline_s), speeds in cases:
                factors = np.exp(SPREADS[speeds] * draw.standard_normal((processes, 2)))
                ratios = [_ratio(runner, mechanism_s, baseline_s, (float(a), float(b))) for a, b in factors]
                interval = ratio_interval(ratios)
                assert interval.low is not None
                assert interval.high is not None
                true = mechanism_s / baseline_s
                drawn = " ".join(f"{a / b:.6f}" for a, b in factors)
                ends = (interval.value, interval.low, interval.high, interval.holds(true))
                found.append(Held(case, speeds, repeat, true, *ends, drawn))
                progress.advance()
    progress.close()
    return found


def _ratio(runner: IsolatedRunner, mechanism_s: float, baseline_s: float, factors: tuple[float, float]) -> float:
    outcome = runner.run(spin_pair, mechanism_s, baseline_s, factors)
    if outcome.status is not Status.OK:
        raise RuntimeError(f"a process failed: {outcome.reason}")
    return float(outcome.value)


def summarise(found: list[Held]) -> list[dict[str, object]]:
    """Per case and speeds: the shares that hold the true and the common ratio, errors, and half-widths."""
    summary: list[dict[str, object]] = []
    for case, speeds in dict.fromkeys((held.case, held.speeds) for held in found):
        part = [held for held in found if (held.case, held.speeds) == (case, speeds)]
        common = float(np.exp(np.mean([np.log(held.ratio) for held in part])))
        summary.append(
            {
                "case": case,
                "speeds": speeds,
                "intervals": len(part),
                "share_that_holds_the_true_ratio": sum(held.held for held in part) / len(part),
                "share_that_holds_the_common_ratio": sum(h.low <= common <= h.high for h in part) / len(part),
                "offset_of_the_common_ratio": common / part[0].true_ratio - 1,
                "median_relative_half_width": float(np.median([(h.high - h.low) / 2 / h.ratio for h in part])),
            }
        )
    return summary


def main(folder: Path) -> int:
    """Writes the two files into ``folder/<hardware>``; 1 where a share with speeds is not what 95 % allows."""
    place = place_of(folder)
    found = calibrate()
    with (place / "coverage.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(asdict(found[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(held) for held in found)
    parts = summarise(found)
    summary = {
        "repeats": REPEATS,
        "processes": PROCESSES,
        "level": 0.95,
        "allowed": ALLOWED,
        "spread": SPREAD,
        "parts": parts,
    }
    keep(place / "coverage.json", "make benchmark-statistics", summary)
    right = True
    for part in parts:
        share = part["share_that_holds_the_true_ratio"]
        assert isinstance(share, float)
        right &= not SPREADS[str(part["speeds"])] or ALLOWED[0] <= share <= ALLOWED[1]
        print(
            f"{part['case']}, {part['speeds']}: {share:.1%} of {part['intervals']} intervals hold the true ratio,"
            f" {part['share_that_holds_the_common_ratio']:.1%} the common one;"
            f" offset {part['offset_of_the_common_ratio']:.1e}, half-width {part['median_relative_half_width']:.1e}"
        )
    return 0 if right else 1


if __name__ == "__main__":
    from cab.measure import calibration  # children find what they run by its module's name, not in __main__

    sys.exit(calibration.main(Path(sys.argv[1])))
