"""Performance profiles: by hand, and what holds of every one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cab.stats.profiles import profile, ratios_to_best

COSTS = st.integers(1, 6).flatmap(
    lambda n: st.dictionaries(
        st.sampled_from("abcde"),
        st.lists(st.none() | st.floats(0.01, 100), min_size=n, max_size=n),
        min_size=1,
    )
)


def test_three_solvers_by_hand() -> None:
    ratios = ratios_to_best({"a": [1.0, 4.0, None], "b": [2.0, 2.0, None], "c": [3.0, None, None]})
    assert ratios == {"a": [1.0, 2.0], "b": [2.0, 1.0], "c": [3.0, math.inf]}
    assert [profile(ratios["a"], tau) for tau in (1.0, 2.0)] == [0.5, 1.0]
    assert [profile(ratios["c"], tau) for tau in (1.0, 3.0, 1e9)] == [0.0, 0.5, 0.5]


@given(COSTS)
def test_every_problem_has_a_best_and_more_room_never_hurts(costs: dict[str, list[float | None]]) -> None:
    ratios = ratios_to_best(costs)
    for problem in zip(*ratios.values(), strict=True):
        assert min(problem) == 1.0
    for values in ratios.values():
        shares = [profile(values, tau) for tau in (1.0, 1.5, 2.0, 1e9)] if values else []
        assert shares == sorted(shares)


def test_costs_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="for every problem"):
        ratios_to_best({"a": [1.0], "b": [1.0, 2.0]})
    with pytest.raises(ValueError, match="positive"):
        ratios_to_best({"a": [0.0]})
