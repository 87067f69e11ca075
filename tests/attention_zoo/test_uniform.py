import math

import pytest
import torch

from attention_zoo import build, build_core
from attention_zoo.contract import Pattern
from attention_zoo.reference import uniform as oracle


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_dense_oracle(assert_agreement, pattern, padded):
    assert_agreement(build_core("uniform", 2, 4, pattern, max_length=9), oracle, 9, 6, padded=padded)


@pytest.mark.parametrize("pattern", Pattern)
def test_is_softmax_attention_where_all_logits_are_equal(pattern):
    uniform, softmax = (build_core(name, 2, 4, pattern, max_length=9) for name in ("uniform", "softmax"))
    q, k, v = torch.zeros(2, 2, 9, 4), torch.randn(2, 2, 9, 4), torch.randn(2, 2, 9, 4)
    mask = torch.rand(2, 9) < 0.4
    # One float32 sum of nine values of unit scale, divided before or after: a few roundings of 6e-8.
    torch.testing.assert_close(
        uniform(q, k, v, key_padding_mask=mask), softmax(q, k, v, key_padding_mask=mask), rtol=0, atol=1e-6
    )


def test_queries_and_keys_play_no_part_and_have_no_projection():
    layer = build("uniform", 8, 2, "noncausal_cross", max_length=6)
    assert sum(p.numel() for p in layer.parameters()) == 2 * (8 * 8 + 8)
    source = torch.randn(1, 6, 8)
    out = layer(torch.randn(1, 4, 8), source, source)
    assert torch.equal(out, layer(torch.randn(1, 4, 8), torch.randn(1, 6, 8), source))
    assert torch.equal(out[:, :1].expand_as(out), out)


def test_a_long_sum_in_half_precision_is_a_mean_still():
    v = torch.full((1, 1, 70_000, 1), 2.0, dtype=torch.float16)
    core = build_core("uniform", 1, 1, "noncausal_self", max_length=len(v[0, 0]))
    # The sum, 140,000, is beyond float16, whose largest number is 65,504.
    assert math.isclose(float(core(v, v, v)[0, 0, 0, 0]), 2.0)


@pytest.mark.parametrize("pattern", [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS])
def test_steps_equal_the_whole(assert_steps_match, pattern):
    core = build_core("uniform", 2, 4, pattern, max_length=9)
    assert_steps_match(core)
    core = build_core("uniform", 2, 4, pattern, max_length=9)
    assert core.prefill(*torch.randn(3, 1, 2, 5, 4))[1].nbytes == core.state_bytes(1, 5)
