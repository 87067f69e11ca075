"""Costs of one section: time ratios to the baselines with intervals over processes, memory, FLOPs, crossings.

A *variant* is everything besides setting, pattern and lengths that a cost depends on (level, phase, batch, heads, width
of a head, compilation); rows of different variants never share a table.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cab.records import Status
from cab.report.evidence import Row, is_ok
from cab.stats.efficiency_length import EfficiencyLength, efficiency_length
from cab.stats.intervals import Interval, ratio_interval

LEVELS = ("layer", "op", "model")
PHASES = ("inference", "training_forward", "training", "decode")

# Statuses that a whole cell gets before anything is measured in it.
NEVER_MEASURED = frozenset({Status.UNSUPPORTED, Status.FAILED_CERTIFICATE})

Length = tuple[int, int]

# In place of a ratio of zero, which has no logarithm: what mixes nothing takes no memory beyond its output.
NEXT_TO_NOTHING = 1e-9


@dataclass(frozen=True)
class Variant:
    level: str
    phase: str
    batch: int | None
    heads: int | None
    head_dim: int | None
    compiled: bool

    @property
    def title(self) -> str:
        """In words, such as ``layer, inference, batch 1, 8 heads of 64``."""
        parts = [self.level, self.phase.replace("_", " ")]
        if self.batch is not None:
            parts.append(f"batch {self.batch}")
        if self.heads is not None:
            parts.append(f"{self.heads} heads" + (f" of {self.head_dim}" if self.head_dim is not None else ""))
        return ", ".join(parts + (["compiled"] if self.compiled else []))

    def order(self) -> tuple[Any, ...]:
        """Headline first: the layer, at inference, not compiled."""
        level = LEVELS.index(self.level) if self.level in LEVELS else len(LEVELS)
        phase = PHASES.index(self.phase) if self.phase in PHASES else len(PHASES)
        return (level, phase, self.compiled, self.batch or 0, self.heads or 0, self.head_dim or 0)


TIMED = ("time_s", "ratio")


def _timed(rows: Iterable[Row]) -> bool:
    return any(row["metric"] in TIMED for row in rows)


@dataclass(frozen=True)
class Measured:
    """A cost cell: its value, an interval where replicates give one, and the rows behind it."""

    interval: Interval
    rows: tuple[Row, ...]

    @property
    def value(self) -> float:
        return self.interval.value


class Costs:
    """The cost rows of one section in one variant."""

    def __init__(self, rows: Iterable[Row], variant: Variant, baseline: str) -> None:
        self.variant = variant
        self.baseline = baseline
        self._values: dict[tuple[str, str, Length, str, str | None], list[Row]] = {}
        self._failed: dict[tuple[str, str, Length | None], list[Row]] = {}
        self._baselines: dict[str, list[str]] = {}
        self._lengths: dict[str, list[Length]] = {}
        self._ratios: dict[tuple[str, str, Length, str], Measured | None] = {}
        for row in rows:
            setting, pattern, length = str(row.get("setting")), str(row.get("pattern")), length_of(row)
            if is_ok(row):
                if length is not None:
                    key = (setting, pattern, length, str(row["metric"]), row.get("baseline"))
                    self._values.setdefault(key, []).append(row)
            else:
                self._failed.setdefault((setting, pattern, length), []).append(row)

    def lengths(self, pattern: str) -> list[Length]:
        """Every length with a row in the pattern, ascending."""
        if pattern not in self._lengths:
            found = {length for _, where, length, *_ in self._values if where == pattern}
            found |= {length for _, where, length in self._failed if where == pattern and length is not None}
            self._lengths[pattern] = sorted(found, key=lambda length: (length[1], length[0]))
        return self._lengths[pattern]

    def settings(self, pattern: str) -> list[str]:
        """What was to be timed; not what only had its memory traced, to be the baseline of others."""
        found = {key[0] for key in self._values if key[1] == pattern and key[3] in TIMED}
        failed = {key[0] for key, rows in self._failed.items() if key[1] == pattern and _timed(rows)}
        return sorted(found | failed)

    def baselines(self, pattern: str) -> list[str]:
        """The settings that ratios are to; the headline's baseline first."""
        if pattern not in self._baselines:
            found = {key[4] for key in self._values if key[1] == pattern and key[3] == "ratio" and key[4]}
            self._baselines[pattern] = sorted(map(str, found), key=lambda name: (name != self.baseline, name))
        return self._baselines[pattern]

    def ratio(self, setting: str, pattern: str, length: Length, baseline: str | None = None) -> Measured | None:
        """Time over the baseline's: the geometric mean over processes of their paired ratios."""
        key = (setting, pattern, length, baseline or self.baseline)
        if key not in self._ratios:
            self._ratios[key] = self._ratio(*key)
        return self._ratios[key]

    def _ratio(self, setting: str, pattern: str, length: Length, baseline: str) -> Measured | None:
        rows = self._values.get((setting, pattern, length, "ratio", baseline))
        if not rows:
            return None
        ordered = _by_replicate(rows)
        return Measured(ratio_interval([float(row["value"]) for row in ordered]), tuple(ordered))

    def crossing(self, setting: str, pattern: str, baseline: str | None = None) -> EfficiencyLength | None:
        """From which key length a setting is faster than the baseline; None without two comparable lengths.

        Comparable are lengths with as many keys as queries, or of one number of queries.
        """
        against = baseline or self.baseline
        if setting == against:
            return None
        measured = {
            length: ratio
            for length in self.lengths(pattern)
            if (ratio := self.ratio(setting, pattern, length, against))
        }
        lengths = _comparable(list(measured))
        samples = tuple(tuple(float(row["value"]) for row in measured[length].rows) for length in lengths)
        return _crossing(tuple(keys for _, keys in lengths), samples) if lengths else None

    def memory_crossing(self, setting: str, pattern: str, baseline: str | None = None) -> EfficiencyLength | None:
        """From which key length a setting takes less memory: counted bytes of one pass, so without an interval."""
        against = baseline or self.baseline
        if setting == against:
            return None
        ratios = {
            length: max(ratio.value, NEXT_TO_NOTHING)
            for length in self.lengths(pattern)
            if (ratio := self.memory_ratio(setting, pattern, length, against))
        }
        lengths = _comparable(list(ratios))
        return _crossing(tuple(k for _, k in lengths), tuple((ratios[n],) for n in lengths)) if lengths else None

    def median(self, setting: str, pattern: str, length: Length, metric: str) -> Measured | None:
        """The median over processes of a metric in its own unit, without an interval."""
        # Times are recorded by the mechanism's child and again beside each baseline's: those of the headline are taken.
        for baseline in (None, self.baseline, *self.baselines(pattern)):
            rows = self._values.get((setting, pattern, length, metric, baseline))
            if rows:
                ordered = _by_replicate(rows)
                value = statistics.median([float(row["value"]) for row in ordered])
                return Measured(Interval(value, None, None, 0.95, "median", len(ordered)), tuple(ordered))
        return None

    def memory_ratio(self, setting: str, pattern: str, length: Length, baseline: str | None = None) -> Measured | None:
        """Peak extra memory over the baseline's at the same length."""
        ours = self.median(setting, pattern, length, "peak_extra_bytes")
        base = self.median(baseline or self.baseline, pattern, length, "peak_extra_bytes")
        if ours is None or base is None or base.value <= 0:
            return None
        value = ours.value / base.value
        return Measured(Interval(value, None, None, 0.95, "ratio of medians", ours.interval.n), ours.rows)

    def failures(
        self, setting: str, pattern: str, length: Length, metric: str, baseline: str | None = None
    ) -> list[Row]:
        """Rows that say why a cell has no value, or fewer processes than planned: those of its own metric and pair."""
        rows = self._failed.get((setting, pattern, length), [])
        own = [row for row in rows if row["metric"] == metric and row.get("baseline") == baseline]
        return own or [row for row in rows if row["status"] in NEVER_MEASURED]

    def refusal(self, setting: str, pattern: str) -> Row | None:
        """The first row that says why a setting has no cost in a pattern at all."""
        found = (
            row
            for (name, where, _), rows in self._failed.items()
            for row in rows
            if (name, where) == (setting, pattern) and row["status"] in NEVER_MEASURED
        )
        return next(found, None)


# A page is rebuilt while results come in: a crossing is computed once per process for the same ratios.
@functools.lru_cache(maxsize=1024)
def _crossing(lengths: tuple[int, ...], samples: tuple[tuple[float, ...], ...]) -> EfficiencyLength:
    return efficiency_length(lengths, samples)


def _comparable(lengths: Sequence[Length]) -> list[Length]:
    """Those of a curve over key lengths: with as many keys as queries, else all where each key length is there once."""
    square = [length for length in lengths if length[0] == length[1]]
    found = square if len(square) > 1 else list(lengths)
    return found if len(found) > 1 and len({keys for _, keys in found}) == len(found) else []


def length_of(row: Row) -> Length | None:
    queries = row.get("length_q")
    if queries is None:
        return None
    return int(queries), int(row.get("length_kv") or queries)


def _by_replicate(rows: Sequence[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row.get("replicate") or 0, row["run_key"]))


def variants(rows: Iterable[Row], baseline: str) -> list[Costs]:
    """The costs of a section by variant, the headline first; rows that name no variant belong to all."""
    rows = [row for row in rows if row.get("level") in LEVELS]
    whole: dict[Variant, list[Row]] = {}
    for row in rows:
        if row.get("phase"):
            whole.setdefault(_variant(row), []).append(row)
    for row in rows:
        if not row.get("phase"):
            for variant, members in whole.items():
                if variant.level == row["level"] and all(
                    row.get(name) in (None, getattr(variant, name)) for name in ("batch", "heads", "head_dim")
                ):
                    members.append(row)
    return [Costs(whole[variant], variant, baseline) for variant in sorted(whole, key=Variant.order)]


def _variant(row: Row) -> Variant:
    return Variant(
        str(row["level"]),
        str(row["phase"]),
        row.get("batch"),
        row.get("heads"),
        row.get("head_dim"),
        bool(row.get("compiled")),
    )
