"""A robust index: how far a value lies from the middle of a frozen reference set, in units of the set's spread.

    z = s (t(x) - median) / (1.4826 MAD),   index of a pattern = mean over its tasks

with t = log for perplexities and errors, which live on a ratio scale, and the identity for scores, s = +1 where higher
is better and -1 where lower is, and MAD the median absolute deviation of t over the settings of the reference set
(times 1.4826 it is the standard deviation of a normal distribution). A task counts by its primary metric, all tasks
equally; a pattern without one of them has no index.

CAB's own index (:mod:`cab.stats.compositional_index`) takes mean and deviation, so that one failed method decides the
scale: with a deviation of 62 on a mean of 36, nine of eleven methods lie within 0.35 of each other there. Median and
MAD do not move with it. Reference sets are versioned (``results/reference/index-v<version>.csv``), and never change:
indices of one version can be compared over time.
"""

from __future__ import annotations

import csv
import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from cab.stats.intervals import Interval

LATEST = 1
SMALLEST = 5  # settings of a reference set: a MAD of fewer says nothing
NORMAL = 1.4826  # MAD of a normal distribution is its deviation over this
FIELDS = ("size", "pattern", "task", "metric", "sign", "scale", "median", "spread", "settings")


class Key(NamedTuple):
    """What a reference belongs to."""

    size: str
    pattern: str
    task: str
    metric: str


@dataclass(frozen=True)
class Reference:
    """Sign, scale, middle and spread (1.4826 MAD) of one task's metric, over ``settings`` settings."""

    sign: int
    logarithmic: bool
    median: float
    spread: float
    settings: int

    @classmethod
    def of(cls, values: Sequence[float], *, higher_is_better: bool, logarithmic: bool) -> Reference | None:
        """None where the set is too small, or more than half of it is of one value."""
        t = np.log(values) if logarithmic else np.asarray(values, dtype=np.float64)
        if len(t) < SMALLEST:
            return None
        median = float(np.median(t))
        spread = NORMAL * float(np.median(np.abs(t - median)))
        return cls(1 if higher_is_better else -1, logarithmic, median, spread, len(t)) if spread > 0 else None

    def tells_apart(self, intervals: Sequence[Interval]) -> bool:
        """Whether the settings lie further apart than half of their intervals reach; else z would be mostly noise."""
        widths = [self.standardise(interval).half_width for interval in intervals]
        known = [width for width in widths if width is not None]
        return bool(known) and float(np.median(known)) < 1.0

    def standardise(self, interval: Interval) -> Interval:
        """z of a value, and of the ends of its interval."""

        def z(x: float) -> float:
            t = (math.log(x) if x > 0 else -math.inf) if self.logarithmic else x
            return self.sign * (t - self.median) / self.spread

        if interval.low is None or interval.high is None:
            return replace(interval, value=z(interval.value))
        low, high = sorted((z(interval.low), z(interval.high)))
        return replace(interval, value=z(interval.value), low=low, high=high)


def read(text: str) -> Mapping[Key, Reference]:
    """A reference set from the text of its file."""
    found = {}
    for row in csv.DictReader(text.splitlines()):
        found[Key(row["size"], row["pattern"], row["task"], row["metric"])] = Reference(
            int(row["sign"]), row["scale"] == "log", float(row["median"]), float(row["spread"]), int(row["settings"])
        )
    return MappingProxyType(found)


@functools.cache
def reference_set(version: int = LATEST) -> Mapping[Key, Reference]:
    """A published reference set; empty where there is none of that version."""
    path = resources.files("cab.reference") / f"index-v{version}.csv"
    return read(path.read_text(encoding="utf-8")) if path.is_file() else MappingProxyType({})
