import pytest
import torch
from torch import nn

from attention_zoo import build
from attention_zoo.contract import Pattern
from attention_zoo.reference import optimised as oracle


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_papers_equation_head_by_head(pattern, bias):
    layer = build("optimised", 12, 3, pattern, max_length=20, max_length_key=30, bias=bias).double()
    for p in layer.parameters():
        nn.init.normal_(p, std=0.5)
    query = torch.randn(2, 17, 12, dtype=torch.float64, requires_grad=True)
    sources = [torch.randn(2, 29, 12, dtype=torch.float64) for _ in range(2)] if pattern.is_cross else []
    mask = torch.rand(2, 29 if pattern.is_cross else 17) < 0.3
    inputs = (query, *layer.parameters())
    out = layer(query, *sources, key_padding_mask=mask)
    expected = oracle.dense_layer(layer, query, *sources, key_padding_mask=mask)
    # float64 sums of at most 29 terms of unit scale.
    torch.testing.assert_close(out, expected, rtol=1e-11, atol=1e-11)
    grads = [torch.autograd.grad(x.square().sum(), inputs) for x in (out, expected)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("pattern", Pattern)
def test_equals_softmax_attention_with_the_identity_as_value_projection(pattern):
    ours, full = (build(n, 12, 3, pattern, max_length=10, bias=False).double() for n in ("optimised", "softmax"))
    for name in ("query", "key", "output"):
        getattr(full, f"{name}_projection").load_state_dict(getattr(ours, f"{name}_projection").state_dict())
    with torch.no_grad():
        full.value_projection.weight.copy_(torch.eye(12))
    x = torch.randn(2, 10, 12, dtype=torch.float64)
    args = (x, x, x) if pattern.is_cross else (x,)
    torch.testing.assert_close(ours(*args), full(*args), rtol=1e-12, atol=1e-12)  # rounding


def test_one_head_loses_nothing():
    """W'^O = W^V W^O turns a trained softmax layer with one head into this one."""
    ours, full = (build(n, 8, 1, "causal_self", max_length=10, bias=False).double() for n in ("optimised", "softmax"))
    ours.query_projection.load_state_dict(full.query_projection.state_dict())
    ours.key_projection.load_state_dict(full.key_projection.state_dict())
    with torch.no_grad():
        ours.output_projection.weight.copy_(full.output_projection.weight @ full.value_projection.weight)
    x = torch.randn(2, 10, 8, dtype=torch.float64)
    torch.testing.assert_close(ours(x), full(x), rtol=1e-12, atol=1e-12)  # rounding


def test_it_has_three_quarters_of_the_weights():
    layer = build("optimised", 32, 4, "noncausal_self", max_length=32, bias=False)
    assert sum(p.numel() for p in layer.parameters()) == 3 * 32**2
    with_bias = build("optimised", 32, 4, "noncausal_self", max_length=32)
    assert sum(p.numel() for p in with_bias.parameters()) == 3168


def test_flops_count_three_projections():
    layer = build("optimised", 32, 4, "noncausal_cross", max_length=10, max_length_key=20)
    assert layer.flops(2, 10, 20) == 2 * 2 * (10 + 20 + 10) * 32**2 + 4 * 2 * 10 * 20 * 32


@pytest.mark.parametrize("pattern", [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS])
def test_decoding_equals_the_whole(pattern):
    layer = build("optimised", 12, 3, pattern, max_length=10).double()
    x, source = torch.randn(2, 2, 10, 12, dtype=torch.float64)
    expected = layer(x, source, source) if pattern.is_cross else layer(x)
    out, state = layer.prefill(x[:, :4], source=source if pattern.is_cross else None)
    outs = [out]
    for t in range(4, 10):
        out, state = layer.step(x[:, t], state)
        outs.append(out[:, None])
    torch.testing.assert_close(torch.cat(outs, 1), expected, rtol=1e-12, atol=1e-12)  # rounding
