import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build_core
from attention_zoo.contract import Pattern


@pytest.mark.parametrize("pattern", Pattern)
def test_fused_and_materialised_are_the_same_mathematics(pattern):
    torch.manual_seed(0)
    length_k = 70 if pattern.is_cross else 33
    q, k, v = (torch.randn(2, 2, n, 8, dtype=torch.float64) for n in (33, length_k, length_k))
    mask = torch.rand(2, length_k) < 0.5
    fused, plain = (build_core(n, 2, 8, pattern, max_length=33, max_length_key=70) for n in ("sdpa", "softmax"))
    for padding in (None, mask):
        torch.testing.assert_close(
            # Sums of 70 terms of unit scale in another order.
            fused(q, k, v, key_padding_mask=padding),
            plain(q, k, v, key_padding_mask=padding),
            rtol=1e-12,
            atol=1e-12,
        )


def test_only_the_fused_form_credits_the_causal_half():
    fused, plain = (build_core(n, 2, 8, "causal_self", max_length=100) for n in ("sdpa", "softmax"))
    assert plain.flops(3, 100, 100) == 4 * 3 * 2 * 100 * 100 * 8
    assert fused.flops(3, 100, 100) == 4 * 3 * 2 * (100 * 101 // 2) * 8


@pytest.mark.parametrize("name", ["softmax", "sdpa"])
def test_flops_are_those_that_are_counted(name):
    core = build_core(name, 2, 8, "causal_cross", max_length=10, max_length_key=20).to("meta")
    q, k, v = (torch.empty(3, 2, n, 8, device="meta") for n in (10, 20, 20))
    with FlopCounterMode(display=False) as counter:
        core(q, k, v)
    assert counter.get_total_flops() == core.flops(3, 10, 20)
