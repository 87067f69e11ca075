import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.contract import Pattern
from attention_zoo.reference import local as oracle

CROSS = [Pattern.NONCAUSAL_CROSS, Pattern.CAUSAL_CROSS]
SELF = [Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF]


@pytest.mark.parametrize("pattern", Pattern)
@settings(max_examples=15, deadline=None)
@given(
    length_q=st.integers(1, 90),
    length_k=st.integers(1, 90),
    window=st.integers(1, 40),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_dense_oracle(assert_agreement, pattern, length_q, length_k, window, padded, seed):
    torch.manual_seed(seed)
    core = build_core("local", 2, 4, pattern, max_length=90, window=window)
    assert_agreement(core, oracle, length_q, length_k, padded=padded)


def test_the_noncausal_window_has_both_sides_and_the_causal_one_as_many_keys_in_all():
    eye = torch.eye(50).expand(1, 1, -1, -1)
    q, k = torch.randn(2, 1, 1, 50, 4)
    for pattern, count in zip(SELF, (2 * 7 + 1, 7), strict=True):
        seen = (build_core("local", 1, 4, pattern, max_length=50, window=7)(q, k, eye) > 0).sum(-1)
        assert seen[0, 0, 20:30].tolist() == [count] * 10


@pytest.mark.parametrize("pattern", CROSS)
def test_the_gaussian_falls_on_the_weights_after_their_softmax(pattern):
    """With q = 0 the centre is S sigmoid(0) = S / 2 and the softmax is uniform, so all weights are known."""
    core = build_core("local", 1, 4, pattern, max_length=3, max_length_key=40, window=6).double()
    zeros = torch.zeros(1, 1, 3, 4, dtype=torch.float64)
    k = torch.randn(1, 1, 40, 4, dtype=torch.float64)
    found = core(zeros, k, torch.eye(40, dtype=torch.float64)[None, None])[0, 0, 1]
    inside = range(14, 27)  # 20 - 6 .. 20 + 6
    expected = torch.tensor([math.exp(-((s - 20) ** 2) / (2 * 3**2)) / 13 if s in inside else 0.0 for s in range(40)])
    # The expectation is in float32.
    torch.testing.assert_close(found.float(), expected, rtol=1e-6, atol=1e-8)
    assert found.sum() < 0.6


@pytest.mark.parametrize("pattern", CROSS)
@pytest.mark.parametrize("window", [1, 10])
@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_the_window_holds_a_key_wherever_the_centre_is(pattern, window, sign):
    core = build_core("local", 1, 4, pattern, max_length=5, max_length_key=37, window=window)
    with torch.no_grad():
        core.centre_weight.copy_(torch.eye(4)[None])
        core.centre_vector.fill_(sign * 1e4)  # the sigmoid is 0 or 1, also after rounding
    weights = core(torch.ones(1, 1, 5, 4), torch.randn(1, 1, 37, 4), torch.eye(37)[None, None])[0, 0]
    # sigmoid = 0 is key 0, sigmoid = 1 is one past the last, whose window still holds the last `window` keys.
    positions = list(range(window + 1)) if sign < 0 else list(range(37 - window, 37))
    assert (weights > 0).nonzero()[:, 1].unique().tolist() == positions


@pytest.mark.parametrize("pattern", CROSS)
def test_padding_anywhere_equals_cutting(pattern):
    core = build_core("local", 2, 4, pattern, max_length=30, max_length_key=60, window=3).double()
    q, k, v = (torch.randn(1, 2, n, 4, dtype=torch.float64) for n in (30, 60, 60))
    mask = torch.rand(1, 60) < 0.4
    mask[:, :2] = True
    kept = ~mask[0]
    # The same sums with zeros between their terms.
    torch.testing.assert_close(
        core(q, k, v, key_padding_mask=mask), core(q, k[:, :, kept], v[:, :, kept]), rtol=1e-12, atol=1e-12
    )


def test_only_the_cross_forms_have_parameters():
    for pattern in Pattern:
        parameters = sum(p.numel() for p in build_core("local", 8, 64, pattern, max_length=9).parameters())
        assert parameters == (8 * (64 * 64 + 64) if pattern.is_cross else 0)


@pytest.mark.parametrize("pattern", [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS])
@pytest.mark.parametrize("window", [1, 3, 30])
def test_steps_equal_the_whole(assert_steps_match, pattern, window):
    assert_steps_match(build_core("local", 2, 4, pattern, max_length=9, window=window))


def test_the_causal_state_stops_growing():
    core = build_core("local", 2, 4, "causal_self", max_length=64, window=6)
    sizes = [core.prefill(*torch.randn(3, 3, 2, length, 4))[1].nbytes for length in (2, 6, 64)]
    assert sizes == [core.state_bytes(3, length) for length in (2, 6, 64)]
    assert sizes[1] == sizes[2] == 2 * 3 * 2 * 6 * 4 * 4


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize(("length_q", "length_k"), [(7, 5), (300, 40), (40, 300)])
def test_flops_are_those_that_are_counted(pattern, length_q, length_k):
    core = build_core("local", 2, 4, pattern, max_length=300, window=15).to("meta")
    length_k = length_k if pattern.is_cross else length_q
    q, k, v = (torch.empty(3, 2, n, 4, device="meta") for n in (length_q, length_k, length_k))
    with FlopCounterMode(display=False) as counter:
        core(q, k, v)
    assert counter.get_total_flops() == core.flops(3, length_q, length_k)


@pytest.mark.parametrize("pattern", CROSS)
def test_the_centre_learns(pattern):
    layer = build("local", 8, 2, pattern, max_length=20, window=2)
    x, y = torch.randn(2, 20, 8), torch.randn(2, 20, 8)
    layer(x, y, y).square().sum().backward()
    for parameter in (layer.core.centre_weight, layer.core.centre_vector):
        assert (parameter.grad.flatten(1).abs().sum(-1) > 0).all()


def test_a_window_without_keys_is_refused():
    with pytest.raises(ValueError, match="window=0 is not allowed"):
        build("local", 8, 2, "causal_self", max_length=4, window=0)
