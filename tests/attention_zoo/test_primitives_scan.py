import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_zoo import primitives
from attention_zoo.primitives import accumulation_dtype, causal_scan, continue_scan, without_autocast


def _quadratic(q, k, v):
    scores = torch.einsum("bhif,bhjf->bhij", q, k)
    past = torch.arange(q.shape[2])[:, None] >= torch.arange(q.shape[2])[None, :]
    scores = torch.where(past, scores, 0.0)
    return torch.einsum("bhij,bhjd->bhid", scores, v), scores.sum(-1, keepdim=True)


@settings(max_examples=40, deadline=None)
@given(length=st.integers(1, 50), chunk=st.integers(1, 60), seed=st.integers(0, 999))
def test_any_length_and_chunk_give_the_quadratic_form_and_its_gradients(length, chunk, seed):
    torch.manual_seed(seed)
    q, k, v = (torch.randn(2, 2, length, d, dtype=torch.float64, requires_grad=True) for d in (3, 3, 5))
    ours, theirs = causal_scan(q, k, v, chunk=chunk), _quadratic(q, k, v)
    a, b = torch.randn_like(theirs[0]), torch.randn_like(theirs[1])
    for mine, other in zip(ours, theirs, strict=True):
        # At most 150 products of unit scale, in another order: rounding stays near 1e-14.
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)
    grads = [torch.autograd.grad((x * a).sum() + (y * b).sum(), (q, k, v)) for x, y in (ours, theirs)]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("scan", ["_scan_in_order", "_scan_at_once"])
@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(1, 40),
    cut=st.integers(1, 40),
    chunk=st.integers(1, 20),
    more=st.booleans(),
    seed=st.integers(0, 999),
)
def test_both_orders_carry_their_sums_on(scan, length, cut, chunk, more, seed):
    # A GPU takes all chunks at once; the code is the same on a CPU.
    torch.manual_seed(seed)
    q, k, v = (torch.randn(3, length + cut, d, dtype=torch.float64, requires_grad=True) for d in (4, 4, 5))
    whole = _quadratic(q[:, None], k[:, None], v[:, None])
    heads, tails = ([x[:, :length] for x in (q, k, v)], [x[:, length:] for x in (q, k, v)])
    first = getattr(primitives, scan)(*heads, None, chunk, True)
    second = getattr(primitives, scan)(*tails, first[2], chunk, more)
    for part, other in zip(zip(first[:2], second[:2], strict=True), whole, strict=True):
        torch.testing.assert_close(torch.cat(part, dim=1), other[:, 0], rtol=1e-11, atol=1e-11)
    if more:
        torch.testing.assert_close(second[2][0], k.transpose(1, 2) @ v, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(second[2][1][..., 0], k.sum(1), rtol=1e-11, atol=1e-11)
    else:
        assert second[2] is None
    a = torch.randn_like(whole[0][:, 0])
    grads = [
        torch.autograd.grad((x * a).sum(), (q, k, v), retain_graph=True)
        for x in (torch.cat((first[0], second[0]), dim=1), whole[0][:, 0])
    ]
    for mine, other in zip(*grads, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-11, atol=1e-11)


def test_a_scan_that_ends_computes_no_more_sums():
    q, k, v = torch.randn(3, 1, 2, 9, 4)
    assert continue_scan(q, k, v, None, more=False)[2] is None
    s, z = continue_scan(q, k, v, None)[2]
    torch.testing.assert_close(s, k.transpose(-2, -1) @ v)
    torch.testing.assert_close(z, k.sum(-2))


@pytest.mark.parametrize("t", [0, 7, 8, 20])
def test_the_future_does_not_change_one_bit_of_the_past(t):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 2, 30, 4)
    before = causal_scan(q, k, v, chunk=8)
    for x in (q, k, v):
        x[:, :, t + 1 :] *= 3
    after = causal_scan(q, k, v, chunk=8)
    for x, y in zip(before, after, strict=True):
        assert torch.equal(x[:, :, : t + 1], y[:, :, : t + 1])
        assert not torch.equal(x, y)


def test_sums_are_carried_in_at_least_float32():
    kinds = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.float32: torch.float32}
    kinds[torch.float64] = torch.float64
    for given_dtype, carried in kinds.items():
        assert accumulation_dtype(torch.empty(0, dtype=given_dtype)) is carried
    x = torch.randn(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype is torch.bfloat16
        with without_autocast(x):
            assert (x @ x).dtype is torch.float32
    with without_autocast(x.to("meta")):  # a device without autocast
        assert (x.to("meta") @ x.to("meta")).dtype is torch.float32
