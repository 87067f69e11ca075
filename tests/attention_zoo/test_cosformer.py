import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build_core, cosformer
from attention_zoo.contract import Pattern
from attention_zoo.reference import cosformer as oracle

CAUSAL = [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS]


def test_the_features_are_ptolemys_identity():
    q, k = torch.randn(2, 1, 1, 50, 4, dtype=torch.float64)
    products = cosformer.cosine_features(q, 0, 64) @ cosformer.cosine_features(k, 0, 64).transpose(-2, -1)
    position = torch.arange(50, dtype=torch.float64)
    cosine = torch.cos(math.pi / 2 * (position[:, None] - position[None, :]) / 64)
    # Float64 sums of eight terms of unit scale.
    torch.testing.assert_close(products, (q.relu() @ k.relu().transpose(-2, -1)) * cosine, rtol=0, atol=1e-14)
    assert cosine.min() > 0


def test_a_later_start_continues_the_positions():
    x = torch.randn(1, 2, 9, 4, dtype=torch.float64)
    whole = cosformer.cosine_features(x, 0, 16)
    # The same angles, one rounding of i pi / 2M apart at most.
    torch.testing.assert_close(cosformer.cosine_features(x[:, :, 5:], 5, 16), whole[:, :, 5:], rtol=1e-14, atol=0)


def test_the_largest_length_of_either_side_is_the_scale_of_both():
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (6, 11, 11))
    out = [
        build_core("cosformer", 2, 4, "noncausal_cross", max_length=a, max_length_key=b)(q, k, v)
        for a, b in ((6, 11), (11, 6), (11, 11), (6, 30))
    ]
    assert torch.equal(out[0], out[1])
    assert torch.equal(out[0], out[2])
    assert not torch.allclose(out[0], out[3])


def test_with_a_long_scale_it_is_linear_attention_with_relu():
    core = build_core("cosformer", 2, 16, "noncausal_self", max_length=10**7)
    q, k, v = torch.randn(3, 1, 2, 30, 16, dtype=torch.float64)
    kernel = q.relu() @ k.relu().transpose(-2, -1)
    # 1 - cos(pi/2 30 / 10^7) = 1e-11 in the weights.
    torch.testing.assert_close(core(q, k, v), kernel / kernel.sum(-1, keepdim=True) @ v, rtol=0, atol=1e-10)


def test_near_tokens_count_more_than_far_ones():
    core = build_core("cosformer", 1, 4, "noncausal_self", max_length=40)
    one = torch.ones(1, 1, 40, 4, dtype=torch.float64)
    weights = core(one, one, torch.eye(40, dtype=torch.float64)[None, None])[0, 0]
    distance = (torch.arange(40)[:, None] - torch.arange(40)[None, :]).abs()
    for row, far in zip(weights, distance, strict=True):
        assert (row[far.argsort(stable=True)].diff() <= 1e-15).all()  # two keys as near: equal up to rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_zero_features_is_zero_and_has_finite_gradients(dtype):
    core = build_core("cosformer", 1, 4, "noncausal_self", max_length=8)
    q, k, v = (torch.rand(1, 1, 8, 4, dtype=dtype) * 1e4 for _ in range(3))
    q[:, :, 3] *= -1
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = core(*leaves)
    assert not out[:, :, 3].any()
    assert out[:, :, :3].abs().min() > 0
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in leaves)
    assert not q.grad[:, :, 3].any()


def test_no_weight_is_lost_to_cancellation_at_the_far_end():
    # cos(pi/2 (M - 1) / M) is 4e-4 here: a difference of two near-equal numbers would lose ten bits of float32.
    core = build_core("cosformer", 1, 4, "noncausal_self", max_length=4096)
    q, k, v = torch.rand(3, 1, 1, 4096, 4)
    k[:, :, 2:] = 0.0
    last = core(q, k, v)[:, :, -1:]
    expected = oracle.dense_core(core.double(), *(x.double() for x in (q, k, v)))[:, :, -1:]
    # Its angle, near pi/2, is rounded at 6e-8, its cosine by 2e-4 of itself; values are below one.
    torch.testing.assert_close(last.double(), expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("pattern", CAUSAL)
def test_the_state_is_of_constant_size(pattern):
    core = build_core("cosformer", 2, 4, pattern, max_length=64)
    sizes = {core.prefill(*torch.randn(3, 3, 2, length, 4))[1].nbytes for length in (1, 9, 64)}
    assert sizes == {core.state_bytes(3, 1)} == {core.state_bytes(3, 64)} == {3 * 2 * 8 * (4 + 1) * 4}


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("length", [50, 300])
def test_flops_are_those_that_are_counted(pattern, length):
    core = build_core("cosformer", 2, 4, pattern, max_length=300).to("meta")
    length_k = 40 if pattern.is_cross else length
    q, k, v = (torch.empty(3, 2, n, 4, device="meta") for n in (length, length_k, length_k))
    with FlopCounterMode(display=False) as counter:
        core(q, k, v)
    assert counter.get_total_flops() == core.flops(3, length, length_k)


def test_half_precision_does_not_overflow():
    core = build_core("cosformer", 1, 8, "causal_self", max_length=4096)
    low = [(x * 8).to(torch.float16) for x in torch.rand(3, 1, 1, 4096, 8)]
    out = core(*low)  # sums reach 4096 * 8 * 8 * 8, far over the 65504 of float16
    assert out.dtype is torch.float16
    # float32 sums of up to 4096 non-negative terms inside, then one rounding to float16.
    torch.testing.assert_close(out.double(), core(*(x.double() for x in low)), rtol=2e-3, atol=0)
