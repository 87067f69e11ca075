"""Paired timing on a clock whose readings are known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from cab.measure.timing import CPUClock, paired_times


class ScriptedClock:
    """Reads ``durations[call]`` each time; drifts by a factor per reading."""

    def __init__(self, durations: dict[str, Iterator[float]], drift: float = 1.0) -> None:
        self.order: list[str] = []
        self._durations, self._drift, self._factor = durations, drift, 1.0

    def seconds(self, call: Callable[[], object]) -> float:
        name = str(call())
        self.order.append(name)
        self._factor *= self._drift
        return next(self._durations[name]) * self._factor


def constant(value: float) -> Iterator[float]:
    while True:
        yield value


def mechanism() -> str:
    return "mechanism"


def baseline() -> str:
    return "baseline"


def test_calls_alternate_and_the_first_turn_changes_sides() -> None:
    clock = ScriptedClock({"mechanism": constant(0.01), "baseline": constant(0.02)})
    times = paired_times(mechanism, baseline, clock, min_time_s=0.0, warmup_time_s=0.0, min_pairs=4)
    assert times.warmup_pairs == 1
    assert clock.order[2:] == ["mechanism", "baseline", "baseline", "mechanism"] * 2
    assert (times.time_s, times.ratio) == pytest.approx((0.01, 0.5))


def test_first_calls_are_kept_apart() -> None:
    clock = ScriptedClock({"mechanism": iter([9.0, *[1.0] * 50]), "baseline": iter([5.0, *[1.0] * 50])})
    times = paired_times(mechanism, baseline, clock, min_time_s=4.0, warmup_time_s=1.0, min_pairs=1)
    assert (times.mechanism_first_s, times.baseline_first_s) == (9.0, 5.0)
    assert times.mechanism_s.tolist() == [1.0, 1.0]


def test_warm_up_goes_on_until_times_settle() -> None:
    falling = [2.0 ** -min(i, 10) + 1.0 for i in range(100)]
    clock = ScriptedClock({"mechanism": iter(falling), "baseline": constant(1.0)})
    times = paired_times(mechanism, baseline, clock, min_time_s=0.0, warmup_time_s=1e9, min_pairs=3)
    assert times.stable
    # Windows agree within 5 % once 2^-(i - 3) is below a twentieth: neither at once nor at the end.
    assert 7 < times.warmup_pairs < 20
    assert np.all(times.mechanism_s < 1.01)


def test_warm_up_has_its_pairs_however_long_they_take() -> None:
    clock = ScriptedClock({"mechanism": constant(10.0), "baseline": constant(1.0)})
    times = paired_times(mechanism, baseline, clock, min_time_s=0.0, warmup_time_s=0.5, min_pairs=2, warmup_pairs=3)
    assert (times.warmup_pairs, len(times.mechanism_s), times.stable) == (3, 2, False)


def test_warm_up_that_never_settles_ends_at_its_limit_and_says_so() -> None:
    clock = ScriptedClock({"mechanism": iter(1.5**i for i in range(100)), "baseline": constant(1.0)})
    times = paired_times(mechanism, baseline, clock, min_time_s=0.0, warmup_time_s=50.0, min_pairs=1)
    assert not times.stable


def test_drift_cancels_in_the_ratio() -> None:
    clock = ScriptedClock({"mechanism": constant(1.1), "baseline": constant(1.0)}, drift=1.01)
    times = paired_times(mechanism, baseline, clock, min_time_s=0.0, warmup_time_s=0.0, min_pairs=100)
    # Each pair is off by the drift of one reading, to either side in turn; the median of an even number is between.
    assert times.ratio == pytest.approx(1.1, rel=1e-4)
    assert times.mechanism_s.max() / times.mechanism_s.min() > 5


def test_going_second_costs_both_alike() -> None:
    clock = ScriptedClock({"mechanism": itertools.cycle([1.0, 1.01])})
    times = paired_times(mechanism, mechanism, clock, min_time_s=0.0, warmup_time_s=0.0, min_pairs=5)
    assert len(times.mechanism_s) == 6
    # The mean of x and 1/x is off one by the square of the cost, halved.
    assert times.ratio == pytest.approx(1.0, abs=0.01**2)


def test_all_times_are_kept() -> None:
    wild = [1.0, 1.0, 500.0, 1.0, 1.0, 1.0, 1.0]
    clock = ScriptedClock({"mechanism": iter(wild), "baseline": constant(1.0)})
    times = paired_times(mechanism, baseline, clock, min_time_s=0.0, warmup_time_s=0.0, min_pairs=5)
    assert times.mechanism_s.tolist() == wild[1:]


def test_the_cpu_clock_counts_seconds() -> None:
    assert 0.0 < CPUClock().seconds(lambda: sum(range(1000))) < 10.0
