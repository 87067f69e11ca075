"""The settings of a drop-in study: each mechanism at the budgets that its ladder spends.

A budget b is the share of dense attention's weights per query that a mechanism keeps. An option that costs w weights
per query and unit is set to b L / w at length L, as SMYRF counts its rounds x cluster size (arXiv:2010.05315, table 1).
What memory and time come of it is measured, not computed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from attention_zoo.contract import Pattern
from cab.schema import Experiment, Ladder


@dataclass(frozen=True, eq=False)  # each is one place of a study, whatever its options
class Rung:
    """A setting of a study: a config of ``conf/attention`` and options of it; ``budget`` None: it has none to spend."""

    attention: str
    options: dict[str, Any]
    budget: float | None

    @property
    def overrides(self) -> list[str]:
        """Of a run."""
        options = (f"attention.{key}={json.dumps(value)}" for key, value in self.options.items())
        return [f"attention={self.attention}", *options]


def rungs(experiment: Experiment, pattern: Pattern, length: int, budgets: list[float]) -> Iterator[Rung]:
    """The settings for a task with that pattern and length; budgets that come to the same options are one rung."""
    for name in experiment.plain:
        yield Rung(name, {}, None)
    for name, ladder in experiment.ladders.items():
        weights = ladder.weights.get(str(pattern))
        if weights is None:
            continue
        seen = set()
        for budget in sorted(budgets, reverse=True):
            value = unit(ladder, weights, budget, length)
            if value not in seen:
                seen.add(value)
                yield Rung(name, {**ladder.fixed, ladder.option: value}, budget)


def unit(ladder: Ladder, weights: float, budget: float, length: int) -> int:
    """The value of a ladder's option."""
    per_unit = weights * (math.log(length) if ladder.per_log_length else 1.0)
    return max(1, round(budget * length / per_unit))
