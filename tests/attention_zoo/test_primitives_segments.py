"""Segment means against a loop over the definition."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_zoo.primitives import segment_means

ROUNDING = 1e-13  # float64 means of at most 40 terms of unit scale


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_every_valid_token_is_in_the_segment_of_its_rank(data: st.DataObject) -> None:
    length, segments = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 50))
    masked = data.draw(st.booleans())
    valid = torch.tensor([[not masked or data.draw(st.booleans()) for _ in range(length)] for _ in range(2)])
    x = torch.randn(2, 3, length, 2, dtype=torch.float64)
    means, counts = segment_means(x, valid if masked else None, segments)
    assert means.shape == (2, 3, segments, 2)
    for b in range(2):
        tokens = [i for i in range(length) if valid[b, i]]
        filled = min(segments, len(tokens))
        for c in range(segments):
            members = [token for p, token in enumerate(tokens) if p * filled // len(tokens) == c]
            assert int(counts[b, c]) == len(members)
            expected = x[b, :, members].mean(1) if members else torch.zeros(3, 2, dtype=torch.float64)
            torch.testing.assert_close(means[b, :, c], expected, rtol=ROUNDING, atol=ROUNDING)


def test_low_precision_is_summed_in_float32_also_under_autocast() -> None:
    # 2000 ones in bfloat16 sum to 256 in bfloat16.
    x = torch.ones(1, 1, 2003, 1, dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        means, _ = segment_means(x, None, 2)
    assert means.dtype is torch.float32
    # The bound is that of float32 sums of 1002 terms.
    torch.testing.assert_close(means, torch.ones(1, 1, 2, 1), rtol=1e-5, atol=1e-5)


def test_gradients_reach_valid_tokens_only() -> None:
    x = torch.randn(2, 1, 7, 2, dtype=torch.float64, requires_grad=True)
    valid = torch.tensor([[True, False, True, True, False, True, True], [False] * 7])
    means, _ = segment_means(x, valid, 3)
    (gradient,) = torch.autograd.grad(means.sum(), x)
    # Ranks 0..4 of five tokens in three segments: sizes 2, 2, 1.
    expected = torch.tensor([1 / 2, 0, 1 / 2, 1 / 2, 0, 1 / 2, 1.0], dtype=torch.float64)
    torch.testing.assert_close(gradient[0, 0, :, 0], expected, rtol=ROUNDING, atol=ROUNDING)
    assert not gradient[1].any()
