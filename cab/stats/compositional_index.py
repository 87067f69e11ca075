"""CAB's compositional index, exactly as published: standardised metrics, averaged by task, tasks averaged by pattern.

    z_m = s_m (x_m - mu_m) / sigma_m,    index of a task = mean of its z_m,    index of a pattern = mean of its tasks

with s_m = +1 where higher is better and -1 where lower is, and mu_m and sigma_m the mean and the sample deviation over
CAB's reference methods, frozen (``results/published/cab2023-index-constants.csv``). Tasks weigh equally, whatever their
number of metrics. A task without all its metrics has no index, and a pattern without all its tasks has none.

The constants stand as published, their errors too: the constant of NS ROUGE-L is not the mean that CAB's printed
leaderboard was made with (0.0025 in the index of that task), and the slots ``ECL_*`` and ``WTH_*`` hold each other's
constants, so that they want each other's metrics, as the published table gives them.

Source: J. Zhang et al., "CAB: Comprehensive Attention Benchmarking on Long Sequence Modeling", ICML 2023,
arXiv:2210.07661, section 3; constants: ``compositional_index.py`` of its repository.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from attention_zoo.contract import Pattern
from attention_zoo.errors import UnknownName
from cab.stats.published import published_rows

CONSTANTS = "cab2023-index-constants.csv"


@dataclass(frozen=True)
class Constant:
    """Of one metric: its task, the sign s, mu and sigma."""

    task: str
    sign: int
    mean: float
    deviation: float

    def standardise(self, value: float) -> float:
        """z of a value."""
        return self.sign * (value - self.mean) / self.deviation


@dataclass(frozen=True)
class PublishedIndex:
    """The index of one method in one pattern; larger is better, and 0 is the mean of CAB's reference methods.

    Attributes:
        tasks: by task; None where one of its metrics is missing.
        mean: over the tasks; None where one of them is missing.
    """

    tasks: Mapping[str, float | None]
    mean: float | None


@functools.cache
def published_constants() -> Mapping[Pattern, Mapping[str, Constant]]:
    """By pattern and metric, in CAB's order."""
    by_short = {pattern.short: pattern for pattern in Pattern}
    found: dict[Pattern, dict[str, Constant]] = {pattern: {} for pattern in Pattern}
    for row in published_rows(CONSTANTS):
        constant = Constant(row["task"], int(row["sign"]), float(row["mean"]), float(row["deviation"]))
        found[by_short[row["pattern"]]][row["metric"]] = constant
    return MappingProxyType(found)


def published_index(pattern: Pattern | str, metrics: Mapping[str, float]) -> PublishedIndex:
    """The index of a method from its metrics.

    Args:
        pattern: a pattern, its name, or its two letters.
        metrics: values by metric (``FS2_MCD``, ``R1``, ``LM_PPL`` ...), in the units of CAB's tables; those that are
            missing leave their task without an index.

    Raises:
        UnknownName: for a pattern or metric that CAB did not score.
    """
    constants = published_constants()[_pattern(pattern)]
    for name in metrics:
        if name not in constants:
            raise UnknownName("metric", name, constants)
    by_task: dict[str, list[float | None]] = {}
    for name, constant in constants.items():
        z = constant.standardise(metrics[name]) if name in metrics else None
        by_task.setdefault(constant.task, []).append(z)
    tasks = {task: _mean(values) for task, values in by_task.items()}
    return PublishedIndex(MappingProxyType(tasks), _mean(list(tasks.values())))


def _mean(values: list[float | None]) -> float | None:
    """None where one is missing: nothing is imputed."""
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _pattern(name: Pattern | str) -> Pattern:
    known = {word: pattern for pattern in Pattern for word in (pattern.value, pattern.short)}
    if str(name) not in known:
        raise UnknownName("pattern", str(name), known)
    return known[str(name)]
