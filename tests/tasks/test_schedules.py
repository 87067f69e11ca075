"""Learning-rate schedules: a factor between nothing and the peak, at the peak where the warm-up ends, never rising."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.schedules import Schedule, Staircase, constant, cosine, inverse_square_root, linear

SCHEDULES = [constant, cosine, inverse_square_root, linear, Staircase(every=7, factor=0.9, floor=0.02)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: getattr(schedule, "__name__", "staircase"))
@given(warmup=st.integers(0, 50), length=st.integers(1, 500))
def test_it_starts_at_the_peak_and_never_rises(schedule: Schedule, warmup: int, length: int) -> None:
    total = warmup + length
    factors = [schedule(step, warmup, total) for step in range(warmup, total)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert all(b <= a for a, b in pairwise(factors))
    if schedule not in (inverse_square_root, SCHEDULES[-1]):
        assert factors[0] == 1


def test_values_of_the_papers() -> None:
    assert inverse_square_root(3999, 4000, 200_000) == 1  # the last step of the warm-up
    assert inverse_square_root(15_999, 4000, 200_000) == 0.5
    assert linear(75, 50, 100) == 0.5
    assert cosine(75, 50, 100) == pytest.approx(0.5)
    assert cosine(100, 50, 100) == 0
    stairs = Staircase(every=21, factor=0.9, floor=0.02)
    assert [stairs(step, 0, 300) for step in (0, 20, 21, 42)] == [1, 1, 0.9, 0.9**2]
    assert stairs(10_000, 0, 300) == 0.02
    assert math.isclose(stairs(21 * 30, 0, 0), 0.9**30)
