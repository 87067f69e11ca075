"""Performance profiles: in what share of problems a solver is within a factor of the best one.

With t_ps the cost of solver s on problem p, r_ps = t_ps / min_s t_ps, and

    rho_s(tau) = |{p : r_ps <= tau}| / number of problems

(E. Dolan and J. Moré, "Benchmarking Optimization Software with Performance Profiles", Mathematical Programming 91,
2002, equation 2.1). What failed, or has no form for a problem, has r = infinity: it is within no factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def ratios_to_best(costs: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """r_ps by solver, in the order of the problems; problems that nobody solved are left out.

    Raises:
        ValueError: the solvers have different numbers of problems, or a cost is not positive.
    """
    lengths = {len(values) for values in costs.values()}
    if len(lengths) > 1:
        raise ValueError(f"each solver needs a cost or None for every problem, got {sorted(lengths)} of them")
    problems = list(zip(*costs.values(), strict=True))
    if any(cost is not None and not cost > 0 for problem in problems for cost in problem):
        raise ValueError("a performance profile needs positive costs")
    found: dict[str, list[float]] = {name: [] for name in costs}
    for problem in problems:
        known = [cost for cost in problem if cost is not None]
        if known:
            best = min(known)
            for name, cost in zip(costs, problem, strict=True):
                found[name].append(math.inf if cost is None else cost / best)
    return found


def profile(ratios: Sequence[float], tau: float) -> float:
    """rho(tau) of one solver's ratios."""
    return sum(ratio <= tau for ratio in ratios) / len(ratios)
