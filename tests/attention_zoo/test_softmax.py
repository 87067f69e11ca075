import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_zoo import build, build_core
from attention_zoo.contract import Pattern
from attention_zoo.reference import softmax as oracle

BOTH = pytest.mark.parametrize("name", ["softmax", "sdpa"])
CAUSAL = [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS]


@BOTH
@pytest.mark.parametrize("pattern", Pattern)
@settings(max_examples=8, deadline=None)
@given(length_q=st.integers(1, 40), length_k=st.integers(1, 40), padded=st.booleans(), seed=st.integers(0, 99))
def test_equals_the_dense_oracle(assert_agreement, name, pattern, length_q, length_k, padded, seed):
    torch.manual_seed(seed)
    core = build_core(name, 2, 4, pattern, max_length=40)
    assert_agreement(core, oracle, length_q, length_k, padded=padded)


@BOTH
@pytest.mark.parametrize("pattern", CAUSAL)
def test_steps_equal_the_whole(assert_steps_match, name, pattern):
    torch.manual_seed(0)
    assert_steps_match(build_core(name, 2, 4, pattern, max_length=9))


@BOTH
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rows_that_see_no_key_are_zero_with_finite_gradients(name, dtype):
    core = build_core(name, 2, 4, "causal_self", max_length=6)
    q, k, v = (torch.randn(2, 2, 6, 4, dtype=dtype, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 6, dtype=torch.bool)
    mask[0, :3] = True
    mask[1] = True
    out = core(q, k, v, key_padding_mask=mask)
    assert not out[0, :, :3].any()
    assert not out[1].any()
    assert out[0, :, 3:].abs().min() > 0
    out.float().square().sum().backward()
    for x in (q, k, v):
        assert x.grad.isfinite().all()
    assert not k.grad[0, :, :3].any()
    assert not v.grad[1].any()


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_logits_stay_finite(name, dtype):
    core = build_core(name, 1, 4, "noncausal_self", max_length=8)
    q, k, v = (torch.randn(1, 1, 8, 4, dtype=dtype) for _ in range(3))
    out = core(q * 100, k * 200, v)  # logits of about 1e4
    assert out.isfinite().all()
    assert out.abs().max() <= v.abs().max()


@BOTH
def test_a_constant_added_to_the_logits_cancels(name):
    core = build_core(name, 1, 4, "noncausal_self", max_length=8)
    q, k, v = (torch.randn(1, 1, 8, 4, dtype=torch.float64) for _ in range(3))
    shifted = core(q, k + torch.randn(4, dtype=torch.float64), v)
    # The logits move by a few units, so their rounding is a few times that of float64.
    torch.testing.assert_close(shifted, core(q, k, v), rtol=1e-12, atol=1e-12)


@BOTH
def test_dropout_falls_on_the_weights(name):
    torch.manual_seed(0)
    core = build_core(name, 2, 4, "noncausal_self", max_length=16, dropout=0.25)
    q, k = torch.randn(2, 1, 2, 16, 4).double()
    weights = core.eval()(q, k, torch.eye(16).double().expand(1, 2, 16, 16))
    dropped = core.train()(q, k, torch.eye(16).double().expand(1, 2, 16, 16))
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], (weights / 0.75)[kept])
    # 512 weights kept with probability 3/4: five standard deviations are 49.
    assert abs(int(kept.sum()) - 384) < 49


@BOTH
@pytest.mark.parametrize("pattern", CAUSAL)
def test_the_state_has_the_stated_size(name, pattern):
    core = build_core(name, 2, 4, pattern, max_length=9)
    q, k, v = torch.randn(3, 3, 2, 9, 4)
    _, state = core.prefill(q, k, v)
    assert state.nbytes == core.state_bytes(3, 9)


@BOTH
def test_the_layer_has_four_projections(name):
    layer = build(name, 12, 3, "noncausal_cross", max_length=8, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 4 * 12**2


@BOTH
def test_autocast_agrees_with_float32(name):
    torch.manual_seed(0)
    layer = build(name, 16, 2, "causal_self", max_length=8)
    x = torch.randn(2, 8, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = layer(x)
    # bfloat16 keeps 8 bits (relative 2^-8), through three roundings of numbers below 2.
    torch.testing.assert_close(out.float(), layer(x), rtol=0, atol=3 * 2 * 2**-8)
