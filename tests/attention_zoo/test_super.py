import importlib

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.contract import Pattern

mechanism = importlib.import_module("attention_zoo.super")
oracle = importlib.import_module("attention_zoo.reference.super")


def _randomise(module):
    for p in module.parameters():
        nn.init.normal_(p, std=0.5)
    return module


@pytest.fixture(params=[4, 64])
def row_block(request, monkeypatch):
    monkeypatch.setattr(mechanism, "ROW_BLOCK", request.param)


@pytest.mark.usefixtures("row_block")
@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("length", [1, 4, 5, 17, 20])
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_dense_oracle(assert_agreement, pattern, length, padded):
    core = _randomise(build_core("super", 2, 4, pattern, max_length=20, max_length_key=23))
    assert_agreement(core, oracle, length, length + 3, padded=padded)


@pytest.mark.parametrize("pattern", Pattern)
def test_equals_the_papers_equation_head_by_head(pattern):
    layer = _randomise(build("super", 12, 3, pattern, max_length=20, max_length_key=30)).double()
    query = torch.randn(2, 17, 12, dtype=torch.float64)
    sources = [torch.randn(2, 29, 12, dtype=torch.float64) for _ in range(2)] if pattern.is_cross else []
    mask = torch.rand(2, 29 if pattern.is_cross else 17) < 0.3
    torch.testing.assert_close(
        layer(query, *sources, key_padding_mask=mask),
        oracle.dense_layer(layer, query, *sources, key_padding_mask=mask),
        # float64 sums of some 29 x 29 terms, of scale 0.5 * 5.
        rtol=1e-11,
        atol=1e-11,
    )


@pytest.mark.parametrize("pattern", Pattern)
def test_it_starts_as_efficient_attention(pattern):
    ours, efficient = (build(n, 12, 3, pattern, max_length=10) for n in ("super", "efficient"))
    weights = {name: p for name, p in ours.state_dict().items() if not name.startswith("core.")}
    efficient.load_state_dict(weights)
    x = torch.randn(2, 9, 12)
    args = (x, x, x) if pattern.is_cross else (x,)
    mask = torch.rand(2, 9) < 0.3
    assert torch.equal(ours(*args, key_padding_mask=mask), efficient(*args, key_padding_mask=mask))


@pytest.mark.parametrize(("pattern", "length"), [("noncausal_self", 32), ("causal_self", 32), ("causal_cross", 20)])
def test_it_has_two_projections_and_the_alignment_kernel(pattern, length):
    layer = build("super", 32, 4, pattern, max_length=32, max_length_key=20, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 2 * 32**2 + length**2


@pytest.mark.usefixtures("row_block")
def test_only_the_lower_triangle_reaches_a_causal_output():
    core = _randomise(build_core("super", 2, 4, "causal_self", max_length=9))
    core(*torch.randn(3, 1, 2, 9, 4)).square().sum().backward()
    gradient = core.alignment_kernel.grad
    assert not gradient.triu(1).any()
    assert gradient[torch.ones(9, 9).tril().bool()].abs().min() > 0


@pytest.mark.usefixtures("row_block")
@pytest.mark.parametrize("t", [0, 3, 4, 10])
def test_the_future_does_not_change_one_bit_of_the_past(t):
    core = _randomise(build_core("super", 2, 4, "causal_self", max_length=14)).double()
    q, k, v = torch.randn(3, 1, 2, 14, 4, dtype=torch.float64)
    before = core(q, k, v)
    for x in (q, k, v):
        x[:, :, t + 1 :] += 1
    after = core(q, k, v)
    assert torch.equal(before[:, :, : t + 1], after[:, :, : t + 1])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("pattern", Pattern)
def test_a_shorter_sequence_uses_the_leading_block(pattern):
    long = _randomise(build_core("super", 2, 4, pattern, max_length=20)).double()
    short = build_core("super", 2, 4, pattern, max_length=7).double()
    with torch.no_grad():
        short.alignment_kernel.copy_(long.alignment_kernel[:7, :7])
    q, k, v = torch.randn(3, 2, 2, 7, 4, dtype=torch.float64)
    assert torch.equal(long(q, k, v), short(q, k, v))
    padded = [nn.functional.pad(x, (0, 0, 0, 13), value=2.0) for x in (q, k, v)]
    mask = (torch.arange(20) >= 7).expand(2, 20)
    # The same sums with zeros added, in another order.
    torch.testing.assert_close(long(*padded, key_padding_mask=mask)[:, :, :7], short(q, k, v), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pattern", [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS])
def test_steps_equal_the_whole(assert_steps_match, pattern):
    core = _randomise(build_core("super", 2, 4, pattern, max_length=9))
    assert_steps_match(core)
    _, state = core.prefill(*torch.randn(3, 3, 2, 9, 4, dtype=torch.float64))
    assert state.nbytes == core.state_bytes(3, 9, 8)


def test_the_kernel_cannot_be_outgrown():
    core = build_core("super", 2, 4, "causal_self", max_length=6)
    with pytest.raises(ValueError, match="key length 7 is over the 6"):
        core(*torch.randn(3, 1, 2, 7, 4))
    x = torch.randn(3, 1, 2, 6, 4)
    _, state = core.prefill(*x)
    with pytest.raises(ValueError, match="position 7 is over the 6"):
        core.step(*x[:, :, :, :1], state)


@pytest.mark.parametrize("pattern", [Pattern.NONCAUSAL_SELF, Pattern.NONCAUSAL_CROSS])
def test_flops_are_those_that_are_counted(pattern):
    core = build_core("super", 2, 4, pattern, max_length=300).to("meta")
    x = torch.empty(3, 2, 300, 4, device="meta")
    with FlopCounterMode(display=False) as counter:
        core(x, x, x)
    assert counter.get_total_flops() == core.flops(3, 300, 300)


def test_causal_alignment_is_half_the_product():
    core = build_core("super", 2, 4, "causal_self", max_length=600).to("meta")
    with FlopCounterMode(display=False) as counter:
        core.aligned(torch.empty(3, 2, 600, 4, device="meta"), None)
    softmax_half = 4 * 3 * 2 * (600 * 601 // 2) * 4
    assert counter.get_total_flops() == core.flops(3, 600, 600) - softmax_half
    assert counter.get_total_flops() < 0.75 * 2 * 600 * 600 * 3 * 2 * 4


def test_low_precision_inputs_keep_their_dtype():
    core = _randomise(build_core("super", 2, 4, "causal_self", max_length=9))
    q, k, v = torch.randn(3, 1, 2, 9, 4)
    out = core(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert out.dtype is torch.bfloat16
    # W^A and its product are rounded to 2^-8 each, sums of 9 values of scale 0.5 * 3.
    torch.testing.assert_close(out.float(), core(q, k, v), rtol=0, atol=9 * 1.5 * 2 * 2**-8)
