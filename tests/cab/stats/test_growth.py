"""Growth exponents: exact on power laws, with an interval that covers, and claims read as they are meant."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cab.stats.growth import claimed_exponent, growth_exponent

LENGTHS = [1024, 2048, 4096, 8192]


@given(st.floats(0.0, 3.0), st.floats(1e-6, 1e6))
def test_a_power_law_has_its_own_exponent(exponent: float, scale: float) -> None:
    costs = [[scale * length**exponent] for length in LENGTHS]
    found = growth_exponent(LENGTHS, costs)
    assert found.value == pytest.approx(exponent, abs=1e-9)  # roundings of logarithms
    assert found.method == "n too small"


def test_replicates_that_agree_leave_no_doubt() -> None:
    found = growth_exponent(LENGTHS, [[float(length)] * 3 for length in LENGTHS])
    assert (found.low, found.high) == (found.value, found.value)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(600):
        costs = [np.exp(1.3 * math.log(length) + 0.1 * rng.standard_normal(4)) for length in LENGTHS]
        found = growth_exponent(LENGTHS, costs)
        held += found.holds(1.3)
    # 570 of 600 expected, standard deviation 5.3; Welch's approximation is slightly conservative at four replicates.
    assert 550 <= held <= 595


def test_claims_mean_what_they_are_at_these_lengths() -> None:
    assert claimed_exponent("1", LENGTHS) == pytest.approx(0.0, abs=1e-12)
    assert claimed_exponent("L", LENGTHS) == pytest.approx(1.0)
    assert claimed_exponent("L^1.5", LENGTHS) == pytest.approx(1.5)
    two = [1024, 4096]
    assert claimed_exponent("L log L", two) == pytest.approx(1 + math.log(12 / 10) / math.log(4))
    assert claimed_exponent("L log^2 L", two) == pytest.approx(1 + 2 * math.log(12 / 10) / math.log(4))


@pytest.mark.parametrize("order", ["", "n", "L*L", "L^", "log", "2 L"])
def test_an_order_that_says_nothing_is_refused(order: str) -> None:
    with pytest.raises(ValueError, match="is none of"):
        claimed_exponent(order, LENGTHS)


@pytest.mark.parametrize(("lengths", "costs"), [([8], [[1.0]]), ([8, 16], [[1.0], [0.0]]), ([8, 16], [[1.0], []])])
def test_what_has_no_slope_is_refused(lengths: list[int], costs: list[list[float]]) -> None:
    with pytest.raises(ValueError), np.errstate(divide="ignore"):
        growth_exponent(lengths, costs)


def test_every_card_claims_orders_that_can_be_read() -> None:
    from attention_zoo import registry

    for name in registry.names():
        card = registry.card(name)
        for order in (card.time_order, card.memory_order):
            claimed_exponent(order, LENGTHS)
