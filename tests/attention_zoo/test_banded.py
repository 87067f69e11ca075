import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_zoo import _banded

sizes = st.fixed_dictionaries(
    {
        "length": st.integers(1, 30),
        "block": st.integers(1, 12),
        "before": st.integers(0, 20),
        "after": st.integers(0, 20),
    }
)


def _by_definition(x, block, before, after):
    out = x.new_zeros(*x.shape[:2], -(-x.shape[2] // block), block + before + after, x.shape[3])
    for n in range(out.shape[2]):
        for c in range(out.shape[3]):
            j = n * block - before + c
            if 0 <= j < x.shape[2]:
                out[:, :, n, c] = x[:, :, j]
    return out


@settings(max_examples=40, deadline=None)
@given(sizes=sizes)
def test_windows_are_the_keys_around_each_block_and_so_is_their_gradient(sizes):
    length = sizes.pop("length")
    x = torch.randn(2, 3, length, 2, dtype=torch.float64, requires_grad=True)
    expected = _by_definition(x, **sizes)
    found = _banded.windows(x, **sizes)
    assert found.shape[2] == _banded.count_blocks(length, **sizes)
    found = found[:, :, : expected.shape[2]]
    assert torch.equal(found, expected)
    weight = torch.randn_like(expected)
    ours, theirs = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (found, expected))
    # Sums of up to 41 terms in another order.
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_windows_are_one_copy_of_the_sequence():
    x = torch.randn(2, 3, 1000, 4)
    found = _banded.windows(x, 16, 30, 30)
    assert found.numel() > 4.5 * x.numel()
    assert found.untyped_storage().nbytes() < 1.2 * x.untyped_storage().nbytes()
    # One batched product without a copy needs the leading dimensions to be one stride.
    assert found.flatten(0, 2).data_ptr() == found.data_ptr()


@pytest.mark.parametrize(("before", "after"), [(0, 0), (3, 0), (0, 5), (20, 20), (70, 70), (500, 0)])
def test_every_query_sees_its_band_and_no_more(before, after):
    q, k = torch.randn(2, 1, 2, 150, 4, dtype=torch.float64)
    eye = torch.eye(150, dtype=torch.float64).expand(1, 2, -1, -1)
    weights, lse = _banded.attend_band(q, k, eye, before=before, after=after, key_valid=None, scale=0.5)
    distance = torch.arange(150)[:, None] - torch.arange(150)
    seen = (distance <= before) & (-distance <= after)
    assert torch.equal(weights > 0, seen.expand_as(weights))
    logits = (0.5 * q @ k.mT).masked_fill(~seen, -torch.inf)
    # Sums of up to 150 terms in another order.
    torch.testing.assert_close(lse, logits.logsumexp(-1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(weights, logits.softmax(-1), rtol=1e-12, atol=1e-12)
