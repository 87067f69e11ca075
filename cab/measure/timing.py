"""Times of paired calls: mechanism and baseline take turns in one process, so that drift hits both alike.

Nothing is deleted: all times after warm-up are kept, and the statistics are over the ratios of neighbours. With a_i
and b_i the i-th calls of mechanism and baseline, the process's ratio is the median of a_i / b_i. Which of the two goes
first changes with every pair, and the number of pairs is even, so that a linear drift cancels, and what going second
costs too. The unit of replication is the process, never the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

Call = Callable[[], object]

# Warm-up is over when two neighbouring windows of calls agree to this, both for the mechanism and for the baseline.
STABLE_WITHIN = 0.05
_WINDOW = 3


class Clock(Protocol):
    """Seconds that one call takes."""

    def seconds(self, call: Call) -> float: ...


class CPUClock:
    """Wall time of a call; torch's CPU operators have finished when they return."""

    def seconds(self, call: Call) -> float:
        start = time.perf_counter_ns()
        call()
        return (time.perf_counter_ns() - start) * 1e-9


class CUDAClock:
    """Time on the device between two events around a call.

    Before each call a buffer of the size of the L2 cache is overwritten, so that no call finds its inputs there; as the
    device is busy with that, the host is ahead with its launches, and short calls are not timed by launch overhead.
    """

    def __init__(self, device: str) -> None:
        self._device = torch.device(device)
        size = torch.cuda.get_device_properties(self._device).L2_cache_size
        # Twice the cache, and at least 32 MiB: long enough to hide the launches of a call.
        self._flush = torch.empty(max(2 * size, 1 << 25), dtype=torch.uint8, device=self._device)

    def seconds(self, call: Call) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        with torch.cuda.device(self._device):
            self._flush.zero_()
            start.record()
            call()
            end.record()
        end.synchronize()
        return start.elapsed_time(end) * 1e-3


def clock_of(device: str) -> Clock:
    """The clock for a device."""
    return CUDAClock(device) if device.startswith("cuda") else CPUClock()


@dataclass(frozen=True)
class PairedTimes:
    """Times in seconds of one process.

    Attributes:
        mechanism_s, baseline_s: per call after warm-up; equal lengths, pair by pair.
        mechanism_first_s, baseline_first_s: of the very first call, where caches are cold and compilers run.
        warmup_pairs: pairs before the first one that counts, the first calls among them.
        stable: whether warm-up ended because times had settled, and not at its time limit.
    """

    mechanism_s: npt.NDArray[np.float64]
    baseline_s: npt.NDArray[np.float64]
    mechanism_first_s: float
    baseline_first_s: float
    warmup_pairs: int
    stable: bool

    @property
    def time_s(self) -> float:
        """Median of the mechanism's calls."""
        return float(np.median(self.mechanism_s))

    @property
    def ratio(self) -> float:
        """Median over pairs of mechanism over baseline; below one the mechanism is faster."""
        return float(np.median(self.mechanism_s / self.baseline_s))


def paired_times(
    mechanism: Call,
    baseline: Call,
    clock: Clock,
    *,
    min_time_s: float,
    warmup_time_s: float,
    min_pairs: int = 3,
    warmup_pairs: int = 1,
    after_first: Callable[[], None] = lambda: None,
) -> PairedTimes:
    """Warms up, then times an even number of pairs: until ``min_time_s`` is spent, and at least ``min_pairs``.

    ``after_first`` is called after the first pair, outside all timed calls. Warm-up is ``warmup_pairs``, however long
    they take, and then goes on until the last two windows of three pairs agree within 5 %, at the latest after
    ``warmup_time_s``.
    """
    first = _pair(mechanism, baseline, clock, turn=0)
    after_first()
    spent, warmup, stable = sum(first), [first], False
    while len(warmup) < warmup_pairs or (spent < warmup_time_s and not stable):
        warmup.append(_pair(mechanism, baseline, clock, turn=len(warmup)))
        spent += sum(warmup[-1])
        stable = _settled(np.asarray(warmup))
    pairs: list[tuple[float, float]] = []
    spent = 0.0
    while spent < min_time_s or len(pairs) < min_pairs or len(pairs) % 2:
        pairs.append(_pair(mechanism, baseline, clock, turn=len(pairs)))
        spent += sum(pairs[-1])
    times = np.asarray(pairs)
    return PairedTimes(times[:, 0], times[:, 1], first[0], first[1], len(warmup), stable)


def _pair(mechanism: Call, baseline: Call, clock: Clock, *, turn: int) -> tuple[float, float]:
    if turn % 2 == 0:
        first = clock.seconds(mechanism)
        return first, clock.seconds(baseline)
    first = clock.seconds(baseline)
    return clock.seconds(mechanism), first


def _settled(warmup: npt.NDArray[np.float64]) -> bool:
    """Medians over the last and the last but one window agree, for both columns; first calls left out."""
    if len(warmup) < 2 * _WINDOW + 1:
        return False
    before = np.median(warmup[-2 * _WINDOW : -_WINDOW], axis=0)
    last = np.median(warmup[-_WINDOW:], axis=0)
    return bool((np.abs(last - before) <= STABLE_WITHIN * before).all())
