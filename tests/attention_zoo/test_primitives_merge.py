"""The log-sum-exp merge and the block layout, on their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo.primitives import (
    attention_with_lse,
    count_shared_rounds,
    frozen_normal,
    gather_rows,
    group_into_blocks,
    invert_permutation,
    merge_by_lse,
)


def _inputs(length_q: int, length_k: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((2, 3, length_q, 4), (2, 3, length_k, 4), (2, 3, length_k, 5))
    return [torch.randn(s, generator=generator, dtype=torch.float64, requires_grad=True) for s in shapes]


@settings(deadline=None, max_examples=30)
@given(
    length_q=st.integers(1, 7),
    owner=st.lists(st.integers(-1, 3), min_size=1, max_size=17),
    seed=st.integers(0, 100),
)
def test_parts_merge_to_attention_over_their_union_with_its_gradient(
    length_q: int, owner: list[int], seed: int
) -> None:
    """Keys dealt to four parts, some to none; parts may be empty, and so may all be."""
    q, k, v = _inputs(length_q, len(owner), seed)
    part = torch.tensor(owner)
    parts = [attention_with_lse(q, k, v, scale=0.5, visible=part == number) for number in range(4)]
    out, lse = merge_by_lse(torch.stack([o for o, _ in parts]), torch.stack([s for _, s in parts]), dim=0)
    seen = part >= 0
    logits = 0.5 * torch.einsum("bhid,bhjd->bhij", q, k)[..., seen]
    expected = torch.softmax(logits, -1) @ v[:, :, seen]
    torch.testing.assert_close(out, expected, atol=1e-12, rtol=0)  # float64, sums of 17 numbers of order one
    torch.testing.assert_close(lse, logits.logsumexp(-1), atol=1e-12, rtol=0)
    coefficients = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    ours = torch.autograd.grad((out * coefficients).sum(), (q, k, v))
    if bool(seen.any()):
        theirs = torch.autograd.grad((expected * coefficients).sum(), (q, k, v))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    else:
        assert all(bool((gradient == 0).all()) for gradient in ours)


def test_divisors_are_a_bias_of_the_logits_in_value_and_gradient() -> None:
    q, k, v = _inputs(3, 5)
    divisor = torch.tensor([1, 2, 3, 1, 250], dtype=torch.uint8)
    visible = torch.tensor([True, True, True, False, True])
    out, lse = attention_with_lse(q, k, v, scale=0.5, visible=visible, divisor=divisor)
    logits = (0.5 * q @ k.mT - divisor.double().log())[..., visible]
    expected = torch.softmax(logits, -1) @ v[:, :, visible]
    torch.testing.assert_close(out, expected, atol=1e-13, rtol=0)
    ours = torch.autograd.grad(out.square().sum() + lse.sin().sum(), (q, k, v))
    theirs = torch.autograd.grad(expected.square().sum() + logits.logsumexp(-1).sin().sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_the_gradient_under_dropout_is_that_of_the_dropped_weights() -> None:
    q, k, v = _inputs(2, 4)

    def loss(*x: Tensor) -> Tensor:
        torch.manual_seed(0)
        out, lse = attention_with_lse(*x, scale=0.5, dropout=0.4)
        return torch.cat([out.flatten(), lse.flatten()])

    assert torch.autograd.gradcheck(loss, (q, k, v))


def test_lse_has_the_gradient_of_log_sum_exp() -> None:
    """A merge is silently wrong in its gradient without it (facts, section 1f)."""
    q, k, v = _inputs(3, 5)
    _, lse = attention_with_lse(q, k, v, scale=0.5)
    ours = torch.autograd.grad(lse.sum(), (q, k))
    theirs = torch.autograd.grad((0.5 * q @ k.mT).logsumexp(-1).sum(), (q, k))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13, rtol=0)


def test_a_key_in_several_parts_counts_as_often() -> None:
    q, k, v = _inputs(3, 5)
    whole, half = attention_with_lse(q, k, v, scale=0.5), attention_with_lse(q, k[:, :, :2], v[:, :, :2], scale=0.5)
    out, _ = merge_by_lse(torch.stack([whole[0], half[0]]), torch.stack([whole[1], half[1]]), dim=0)
    bias = torch.tensor([2.0, 2, 1, 1, 1], dtype=torch.float64).log()
    expected = torch.softmax(0.5 * q @ k.mT + bias, -1) @ v
    torch.testing.assert_close(out, expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_large_logits_stay_finite(dtype: torch.dtype) -> None:
    q, k, v = (x.detach().to(dtype) * 100 for x in _inputs(4, 6))
    out, lse = attention_with_lse(q, k, v, scale=0.5)
    assert out.dtype == lse.dtype == torch.float32
    assert bool(out.isfinite().all())
    assert bool(lse.isfinite().all())


@settings(deadline=None, max_examples=60)
@given(
    groups=st.lists(st.integers(0, 6), min_size=1, max_size=40),
    block=st.integers(1, 9),
)
def test_every_item_has_one_slot_in_a_block_of_its_group(groups: list[int], block: int) -> None:
    group = torch.tensor([groups, groups[::-1]])
    layout = group_into_blocks(group, 7, block)
    blocks = len(groups) // block + min(7, len(groups))
    assert layout.item.shape == (2, blocks, block)
    for row in range(2):
        assert len(set(layout.slot[row].tolist())) == len(groups)
        assert layout.item[row].flatten()[layout.slot[row]].tolist() == list(range(len(groups)))
        assert torch.equal(layout.group[row][layout.slot[row] // block], group[row])


def test_gathered_rows_keep_batch_and_head_apart() -> None:
    x = torch.arange(2 * 3 * 5 * 2.0).view(2, 3, 5, 2)
    index = torch.randint(0, 5, (2, 3, 4, 6), generator=torch.Generator().manual_seed(0))
    y = gather_rows(x, index)
    for b in range(2):
        for h in range(3):
            assert torch.equal(y[b, h], x[b, h][index[b, h]])


def test_inverse_permutation() -> None:
    order = torch.rand(3, 11, generator=torch.Generator().manual_seed(0)).argsort(-1)
    assert torch.equal(order.gather(-1, invert_permutation(order)), torch.arange(11).expand(3, 11))


def test_shared_rounds_are_counted_for_the_pairs_that_meet() -> None:
    generator = torch.Generator().manual_seed(0)
    query_id = torch.randint(0, 3, (2, 4, 6), generator=generator)
    key_id = torch.randint(-1, 3, (2, 4, 5), generator=generator)
    query_slot = torch.randint(0, 6, (2, 4, 2, 3), generator=generator)
    key_slot = torch.randint(0, 5, (2, 4, 2, 7), generator=generator)
    other_id = query_id + 3
    key_id[0, 0, 0] = 4
    count = count_shared_rounds([query_id, other_id], key_id, query_slot, key_slot)
    for n, r, p, a, b in torch.cartesian_prod(*map(torch.arange, count.shape)).tolist():
        i, j = int(query_slot[n, r, p, a]), int(key_slot[n, r, p, b])
        met = [int(key_id[n, x, j]) in (int(query_id[n, x, i]), int(other_id[n, x, i])) for x in range(4)]
        if met[r]:
            assert count[n, r, p, a, b] == sum(met)


def test_frozen_numbers_follow_the_global_seed_and_survive_every_dtype() -> None:
    torch.manual_seed(3)
    first, second = frozen_normal(50, 40), frozen_normal(50, 40)
    torch.manual_seed(3)
    assert torch.equal(frozen_normal(50, 40), first)
    assert not torch.equal(first, second)
    assert torch.equal(first.bfloat16().float(), first)
    # 2,000 draws: the standard error of the mean is 0.022 and that of the variance 0.032; five of them.
    assert abs(float(first.mean())) < 0.11
    assert abs(float(first.var()) - 1) < 0.16
