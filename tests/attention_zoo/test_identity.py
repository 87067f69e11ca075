import pytest
import torch

from attention_zoo import build, build_core
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.reference import identity as oracle

SELF = [Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF]


@pytest.mark.parametrize("pattern", SELF)
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_dense_oracle(assert_agreement, pattern, padded):
    assert_agreement(build_core("identity", 2, 4, pattern, max_length=9), oracle, 9, 9, padded=padded)


@pytest.mark.parametrize("pattern", SELF)
def test_the_layer_is_two_linear_maps_and_every_weight_learns(pattern):
    torch.manual_seed(0)
    layer = build("identity", 8, 2, pattern, max_length=6).double()
    x = torch.randn(3, 6, 8, dtype=torch.float64)
    mask = torch.rand(3, 6) < 0.4
    out = layer(x, key_padding_mask=mask)
    torch.testing.assert_close(out, oracle.dense_layer(layer, x, key_padding_mask=mask))
    out.square().sum().backward()
    assert sum(p.numel() for p in layer.parameters()) == 2 * (8 * 8 + 8)
    assert all(p.grad.abs().max() > 0 for p in layer.parameters())


def test_no_position_reaches_another():
    layer = build("identity", 8, 2, "noncausal_self", max_length=6)
    x = torch.randn(1, 6, 8)
    changed = x.clone()
    changed[:, 3] += 1
    differs = (layer(x) != layer(changed)).any(-1)[0]
    assert differs.tolist() == [False, False, False, True, False, False]


def test_steps_equal_the_whole(assert_steps_match):
    core = build_core("identity", 2, 4, "causal_self", max_length=9)
    assert_steps_match(core)
    assert core.prefill(*torch.randn(3, 1, 2, 5, 4))[1].nbytes == core.state_bytes(1, 5) == 0


@pytest.mark.parametrize("pattern", [Pattern.NONCAUSAL_CROSS, Pattern.CAUSAL_CROSS])
def test_cross_patterns_are_refused_with_the_reason(pattern):
    with pytest.raises(Unsupported, match="no value of its own in the source"):
        build("identity", 8, 2, pattern, max_length=6)
