"""Keeps a run apart from its tracker: whatever a tracker does, the run computes and records what it would without."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import ClassVar

import numpy as np
import torch

from cab.errors import one_line
from cab.tracking import INTERRUPTED, Outcome, TrackedRun, Tracker


class Mirror:
    """Passes on to ``tracker`` what a run tells, until the tracker fails; then says so once and goes on without it.

    A block that is left by an exception closes the run in the tracker, as interrupted or with the reason.
    """

    PATIENCE_S = 5.0  # with one logged step; a start and an end may take as long as the tracker's own limits say
    RETRY_S = 600.0  # after a start that failed: a server that is gone would cost every run of a sweep its limit

    _failed: ClassVar[dict[str, float]] = {}

    def __init__(self, tracker: Tracker, say: Callable[[str], None]) -> None:
        self._tracker: Tracker | None = tracker
        self._say = say
        self._name = type(tracker).__name__.removesuffix("Tracker").lower()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.finish(Outcome(INTERRUPTED))
        elif error is not None:
            self.finish(Outcome("error", f"{type(error).__name__}: {one_line(error)}"))

    def start(self, run: TrackedRun) -> None:
        if time.monotonic() - self._failed.get(self._name, -math.inf) < self.RETRY_S:
            self._tracker = None  # said then
        if self._tracker is not None and not self._tell(self._tracker.start, run):
            self._failed[self._name] = time.monotonic()

    def log(self, step: int, values: Mapping[str, float]) -> None:
        if self._tracker is None:
            return
        begin = time.monotonic()
        self._tell(self._tracker.log, step, values)
        if (took := time.monotonic() - begin) > self.PATIENCE_S:
            self._give_up(f"one step took {took:.0f} s")

    def finish(self, outcome: Outcome) -> None:
        if self._tracker is not None:
            self._tell(self._tracker.finish, outcome)
        self._tracker = None

    def _tell(self, call: Callable[..., None], *arguments: object) -> bool:
        try:
            with _untouched():
                call(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a tracker dies of, the run goes on
            self._give_up(f"{type(error).__name__}: {one_line(error)}")
            return False
        return True

    def _give_up(self, why: str) -> None:
        if self._tracker is not None:
            self._tracker = None
            self._say(f"tracker {self._name} is left out from here on, the records are complete without it: {why}")


@contextmanager
def _untouched() -> Iterator[None]:
    """Random states and torch's threads are afterwards what they were before."""
    python, numpy, threads = random.getstate(), np.random.get_state(), torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)
