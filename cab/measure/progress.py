"""How far a grid of cells is, and how long it will take: one line, rewritten on a terminal, repeated elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TextIO


class Progress:
    """Counts cells; their order is random, so the mean time so far foretells the rest."""

    def __init__(self, what: str, total: int, *, every_s: float = 15.0, stream: TextIO | None = None) -> None:
        self._what, self._total, self._done = what, total, 0
        self._stream = stream or sys.stderr
        self._every_s = 0.2 if self._stream.isatty() else every_s
        self._started = time.monotonic()
        self._shown = self._started

    def advance(self) -> None:
        """One more cell has ended."""
        self._done += 1
        if time.monotonic() - self._shown >= self._every_s:
            self._show()

    def close(self) -> None:
        """Shows the last count."""
        if self._done:
            self._show()
            if self._stream.isatty():
                self._stream.write("\n")

    def _show(self) -> None:
        self._shown = time.monotonic()
        spent = self._shown - self._started
        left = spent / self._done * (self._total - self._done) if self._done else 0.0
        line = f"{self._what}: {self._done}/{self._total}, {_duration(spent)} spent, about {_duration(left)} left"
        self._stream.write(f"\r\033[K{line}" if self._stream.isatty() else f"{line}\n")
        self._stream.flush()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
