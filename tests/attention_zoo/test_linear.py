import importlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build_core, linear
from attention_zoo.contract import Pattern
from attention_zoo.reference import linear as oracle

CAUSAL = [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS]


@pytest.mark.parametrize("pattern", Pattern)
@settings(max_examples=8, deadline=None)
@given(length_q=st.integers(1, 300), length_k=st.integers(1, 300), padded=st.booleans(), seed=st.integers(0, 99))
def test_equals_the_dense_oracle(assert_agreement, pattern, length_q, length_k, padded, seed):
    torch.manual_seed(seed)
    core = build_core("linear", 2, 4, pattern, max_length=300)
    assert_agreement(core, oracle, length_q, length_k, padded=padded)


@pytest.mark.parametrize("pattern", Pattern)
def test_relu_equals_the_dense_oracle(assert_agreement, pattern):
    torch.manual_seed(1)
    # Wide heads, so that no row is without weight: there the floor of the denominator would matter.
    core = build_core("linear", 2, 32, pattern, max_length=40, feature_map="relu")
    assert_agreement(core, oracle, 37, 21, padded=True)


@pytest.mark.parametrize("pattern", CAUSAL)
@pytest.mark.parametrize("feature_map", ["elu", "relu"])
def test_steps_equal_the_whole(assert_steps_match, pattern, feature_map):
    torch.manual_seed(0)
    assert_steps_match(build_core("linear", 2, 16, pattern, max_length=9, feature_map=feature_map))


def test_the_feature_map_is_elu_plus_one_and_keeps_small_values():
    x = torch.linspace(-8, 8, 101, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(linear.elu_plus_one(x), torch.nn.functional.elu(x) + 1)
    torch.testing.assert_close(
        torch.autograd.grad(linear.elu_plus_one(x).sum(), x), torch.autograd.grad(torch.nn.functional.elu(x).sum(), x)
    )
    small = linear.elu_plus_one(torch.tensor([-30.0]))
    torch.testing.assert_close(small, torch.tensor([-30.0]).exp())  # elu(-30) + 1 in float32 is 0


def test_weights_have_the_rank_of_the_features():
    core = build_core("linear", 1, 4, "noncausal_self", max_length=20)
    q, k = torch.randn(2, 1, 1, 20, 4, dtype=torch.float64)
    weights = core(q, k, torch.eye(20, dtype=torch.float64).expand(1, 1, 20, 20))
    assert torch.linalg.matrix_rank(weights[0, 0]) == 4
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 1, 20, dtype=torch.float64))
    assert weights.min() > 0


@pytest.mark.parametrize("pattern", Pattern)
def test_padding_equals_trimming(pattern):
    # Zeroing keys before the feature map would fail here, as phi(0) = 1.
    core = build_core("linear", 2, 4, pattern, max_length=12)
    q, k, v = torch.randn(3, 1, 2, 12, 4, dtype=torch.float64)
    k[:, :, 7:], v[:, :, 7:] = 0.0, 5.0
    mask = torch.arange(12)[None] >= 7
    padded = core(q, k, v, key_padding_mask=mask)[:, :, :7]
    # Two chunk lengths of one sum: rounding only.
    torch.testing.assert_close(padded, core(q[:, :, :7], k[:, :, :7], v[:, :, :7]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("name", ["linear", "performer", "cosformer"])
def test_blocks_of_positions_change_nothing(assert_agreement, assert_steps_match, monkeypatch, name, pattern):
    monkeypatch.setattr(linear, "BLOCK", 64)  # one chunk: 150 queries make three blocks, 70 keys two
    core = build_core(name, 2, 4, pattern, max_length=150)
    assert len(core.blocks(torch.empty(3, 2, 150, 4))) == 3
    dense = importlib.import_module(f"attention_zoo.reference.{name}")
    assert_agreement(core, dense, 150, 70, padded=True, scale=0.5)
    if pattern in CAUSAL:
        assert_steps_match(core, prefix=130, length_k=70)


def test_many_heads_make_smaller_blocks():
    core = build_core("linear", 2, 64, "noncausal_self", max_length=1024)
    assert core.blocks(torch.empty(1, 2, 1024, 64, device="meta"))[0] == slice(0, linear.BLOCK)
    many = core.blocks(torch.empty(64, 2, 1024, 64, device="meta"))
    assert many[0] == slice(0, linear.CACHED // (64 * 2 * 64))
    assert many[-1].stop == 1024


def test_half_precision_does_not_overflow_and_keeps_its_dtype():
    core = build_core("linear", 1, 8, "causal_self", max_length=4096)
    q, k, v = torch.rand(3, 1, 1, 4096, 8) * 8
    for dtype in (torch.float16, torch.bfloat16):
        # Sums reach 4096 * 8 * 9 * 9, far over the 65504 of float16.
        low = [x.to(dtype) for x in (q, k, v)]
        out = core(*low)
        assert out.dtype is dtype
        # One rounding of the result to the low precision.
        expected = core(*(x.double() for x in low))
        torch.testing.assert_close(out.double(), expected, rtol=torch.finfo(dtype).eps, atol=0)


def test_with_relu_a_row_without_positive_features_is_the_mean():
    core = build_core("linear", 1, 4, "noncausal_self", max_length=5, feature_map="relu")
    q, k, v = torch.randn(3, 1, 1, 5, 4, dtype=torch.float64).abs()
    q[:, :, 2] *= -1
    k[:] = 1.0
    q.requires_grad_()
    out = core(q, k, v)
    torch.testing.assert_close(out[:, :, 2], v.mean(2), rtol=1e-12, atol=0)  # roundings of sums over 5 keys
    out.sum().backward()
    assert q.grad.isfinite().all()


@pytest.mark.parametrize("pattern", CAUSAL)
def test_the_state_is_of_constant_size(pattern):
    core = build_core("linear", 2, 4, pattern, max_length=64)
    sizes = {core.prefill(*torch.randn(3, 3, 2, length, 4))[1].nbytes for length in (1, 9, 64)}
    assert sizes == {core.state_bytes(3, 1)} == {core.state_bytes(3, 64)} == {3 * 2 * 4 * (4 + 1) * 4}


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("length", [50, 300])
def test_flops_are_those_that_are_counted(pattern, length):
    core = build_core("linear", 2, 4, pattern, max_length=300).to("meta")
    length_k = 40 if pattern.is_cross else length
    q, k, v = (torch.empty(3, 2, n, 4, device="meta") for n in (length, length_k, length_k))
    with FlopCounterMode(display=False) as counter:
        core(q, k, v)
    assert counter.get_total_flops() == core.flops(3, length, length_k)


def test_an_unknown_feature_map_is_refused():
    with pytest.raises(ValueError, match="unknown feature_map 'elo': did you mean 'elu'"):
        build_core("linear", 1, 4, "noncausal_self", max_length=5, feature_map="elo")
