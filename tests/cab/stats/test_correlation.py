"""Correlations over shared methods only, masked where they would be chance."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cab.stats.correlation import FEWEST, correlation

GAINS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(-10, 10), max_size=8)


@given(GAINS, GAINS)
def test_only_shared_methods_count_and_few_are_masked(first: dict[str, float], second: dict[str, float]) -> None:
    found = correlation(first, second)
    shared = sorted(first.keys() & second.keys())
    assert found.methods == len(shared)
    if len(shared) < FEWEST:
        assert found.pearson is None
        assert found.spearman is None
    elif found.pearson is not None and found.spearman is not None:
        x, y = [first[name] for name in shared], [second[name] for name in shared]
        assert -1 - 1e-9 <= found.spearman <= 1 + 1e-9
        if np.std(x) > 1e-6 and np.std(y) > 1e-6:  # numpy's loses all digits below
            assert found.pearson == pytest.approx(np.corrcoef(x, y)[0, 1], abs=1e-6)


def test_a_bent_but_rising_line_has_perfect_ranks_alone() -> None:
    first = {name: float(i) for i, name in enumerate("abcdef")}
    found = correlation(first, {name: value**5 for name, value in first.items()})
    assert found.spearman == pytest.approx(1.0)
    assert found.pearson is not None
    assert found.pearson < 0.9


def test_one_value_for_all_says_nothing() -> None:
    assert correlation(dict.fromkeys("abcde", 1.0), {name: float(ord(name)) for name in "abcde"}).pearson is None
