"""ProbSparse attention against its dense oracle, and what the paper and our form of it promise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.contract import AttentionCore, Pattern
from attention_zoo.probsparse import log_count, most, random_places, sample_ranks, sparsity
from attention_zoo.reference import probsparse as oracle

PATTERNS = [Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF, Pattern.NONCAUSAL_CROSS]
ROUNDING = 1e-12  # float64 sums of at most a few hundred terms of unit scale, in another order


def _core(pattern: Pattern, factor: int = 5, heads: int = 2) -> AttentionCore:
    return build_core("probsparse", heads, 4, pattern, max_length=256, factor=factor).double().eval()


def _qkv(length: int, batch: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(batch, 2, length, 4, dtype=torch.float64) for _ in range(3))
    return q, k, v


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("factor", [1, 2, 5])
@pytest.mark.parametrize(("length_q", "length_k"), [(1, 3), (37, 29), (4, 70), (70, 4)])
@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients_are_those_of_the_oracle(
    assert_agreement: Any, pattern: Pattern, factor: int, length_q: int, length_k: int, padded: bool
) -> None:
    assert_agreement(_core(pattern, factor), oracle, length_q, length_k, padded=padded)


@pytest.mark.parametrize("length", [1, 2, 3, 20, 21, 149, 1000])
@pytest.mark.parametrize("factor", [1, 5])
def test_counts_grow_with_the_ceiling_of_the_logarithm(length: int, factor: int) -> None:
    expected = min(length, max(1, factor * math.ceil(math.log(length))))
    assert most(length, factor) == int(log_count(torch.tensor(length), factor)) == expected
    assert int(log_count(torch.tensor(0), factor)) == 0


@settings(deadline=None, max_examples=50)
@given(tokens=st.integers(1, 3000), factor=st.integers(1, 400))
def test_a_sample_has_one_key_in_each_of_equal_runs(tokens: int, factor: int) -> None:
    """So keys differ, and U = n takes all."""
    size = most(tokens, factor)
    shape = torch.tensor(tokens).view(1, 1, 1), torch.tensor(size).view(1, 1, 1)
    ranks = sample_ranks(random_places(3), *shape, size)[0]
    run = torch.arange(size)
    assert bool((ranks >= run * tokens // size).all())
    assert bool((ranks < (run + 1) * tokens // size).all())


def test_every_key_of_a_run_is_as_likely_as_any_other() -> None:
    tokens, size, heads = torch.tensor([[[56]]]), torch.tensor([[[8]]]), 20_000
    counts = sample_ranks(random_places(heads), tokens, size, 8).flatten().bincount(minlength=56)
    # Binomial with mean 20000 / 7 and a deviation of 50: five deviations, of 56 counts.
    assert bool(((counts - heads / 7).abs() < 250).all())


def test_other_rows_are_the_mean_and_chosen_rows_softmax() -> None:
    """u = c ceil(ln Lq) rows are those of softmax, all others the mean, exactly."""
    q, k, v = _qkv(100)
    out = _core(Pattern.NONCAUSAL_SELF, factor=3)(q, k, v)
    exact = build_core("softmax", 2, 4, "noncausal_self", max_length=100)(q, k, v)
    mean = v.mean(2, keepdim=True).expand_as(v)
    sharp = (out - exact).abs().amax(-1) < ROUNDING
    flat = (out - mean).abs().amax(-1) < ROUNDING
    assert bool((sharp ^ flat).all())
    assert bool((sharp.sum(-1) == 15).all())


def test_uneven_queries_are_chosen() -> None:
    """Few queries of large norm among many of none have the largest max - mean, on any sample of many keys."""
    q, k, v = _qkv(200)
    uneven = torch.zeros(200, dtype=torch.bool)
    uneven[torch.randperm(200)[:6]] = True
    q = torch.where(uneven[:, None], 5 * q, 0.01 * q)
    out = _core(Pattern.NONCAUSAL_SELF, factor=1)(q, k, v)  # chooses 6
    moved = (out - v.mean(2, keepdim=True)).abs().amax(-1) > ROUNDING
    assert torch.equal(moved, uneven.expand_as(moved))


def test_the_measure_does_not_change_with_a_vector_added_to_all_keys() -> None:
    """With the sampled sum over U (the authors' code divides it by Lk) both terms move alike."""
    q, k, _ = _qkv(30)
    u = torch.randn(4, dtype=torch.float64)
    torch.testing.assert_close(sparsity(q, k + u, None), sparsity(q, k, None), rtol=ROUNDING, atol=ROUNDING)


def test_the_causal_form_keeps_the_scale_of_the_values() -> None:
    """A mean of past values: with equal values every row is that value (the authors' sum grows with t)."""
    q, k, _ = _qkv(120)
    mask = torch.rand(3, 120) < 0.3
    mask[:, 0] = False
    v = torch.full((3, 2, 120, 5), 1.75, dtype=torch.float64)
    out = _core(Pattern.CAUSAL_SELF, factor=1)(q, k, v, key_padding_mask=mask)
    torch.testing.assert_close(out, v, rtol=ROUNDING, atol=ROUNDING)


def test_the_sample_is_state_and_fixed() -> None:
    first, second = (build("probsparse", 16, 2, "noncausal_self", max_length=256, factor=1) for _ in range(2))
    x = torch.randn(2, 200, 16)
    assert not torch.equal(first.core.places, second.core.places)
    assert torch.equal(first.train()(x), first.eval()(x))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    # Integers: another dtype samples the same keys.
    assert torch.equal(second.to(torch.bfloat16).core.places, first.core.places)
    # Its shape is of no length: a longer model loads it.
    build("probsparse", 16, 2, "noncausal_self", max_length=4096, factor=5).load_state_dict(first.state_dict())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("length_q", "length_k"), [(64, 64), (37, 29), (1, 41), (41, 1)])
def test_flops_are_those_of_the_matrix_products(pattern: Pattern, length_q: int, length_k: int) -> None:
    length_k = length_k if pattern.is_cross else length_q
    core = build_core("probsparse", 2, 4, pattern, max_length=64).to("meta")
    x = [torch.empty(3, 2, length, 4, device="meta") for length in (length_q, length_k, length_k)]
    with FlopCounterMode(display=False) as counter:
        core(*x)
    assert counter.get_total_flops() == core.flops(3, length_q, length_k)


def test_a_factor_that_is_not_positive_is_refused() -> None:
    with pytest.raises(ValueError, match="factor=0"):
        build_core("probsparse", 2, 4, "noncausal_self", max_length=8, factor=0)
