"""The log-sum-exp merge and the block layout, on their own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attention_zoo.primitives import (
    attention_with_lse,
    frozen_normal,
    gather_rows,
    group_into_blocks,
    invert_permutation,
    merge_by_lse,
    merge_rounds,
    met_before,
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


@pytest.mark.parametrize("shape", [(2, 3, 3, 5), (1, 3, 3, 5), (2, 1, 1, 5), (3, 5), (5,), (3, 1, 5)])
@pytest.mark.parametrize("width", [4, 6])  # as wide as the keys, and not: with and without the fused kernel
def test_masks_of_any_shape_hide_pairs_in_value_and_gradient(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], width: int
) -> None:
    monkeypatch.setattr("attention_zoo.primitives.TILE", 31)  # tiles of two blocks of 3 x 5
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(2, 3, n, d, generator=generator, dtype=torch.float64, requires_grad=True)
        for n, d in ((3, 4), (5, 4), (5, width))
    )
    visible = torch.rand(shape, generator=generator) < 0.5
    out, lse = attention_with_lse(q, k, v, scale=0.5, visible=visible)
    logits = (0.5 * q @ k.mT).masked_fill(~visible, -torch.inf)
    seen = visible.expand(2, 3, 3, 5).any(-1)
    weights = torch.softmax(logits.masked_fill(~seen[..., None], 0.0), -1) * seen[..., None]
    torch.testing.assert_close(out, weights @ v, atol=1e-13, rtol=0)
    torch.testing.assert_close(lse, logits.logsumexp(-1), atol=1e-13, rtol=0)
    ours = torch.autograd.grad(out.square().sum() + lse[seen].sin().sum(), (q, k, v))
    theirs = torch.autograd.grad((weights @ v).square().sum() + logits[seen].logsumexp(-1).sin().sum(), (q, k, v))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_nothing_of_the_size_of_the_pairs_is_kept_for_the_gradient() -> None:
    q = torch.randn(4, 64, 8, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()) or x, lambda x: x):
        attention_with_lse(q, q, q, scale=0.5)
    assert max(kept) == q.numel() < 4 * 64 * 64


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


@settings(deadline=None, max_examples=30)
@given(groups=st.lists(st.integers(0, 6), min_size=1, max_size=40), block=st.integers(1, 9))
def test_trimmed_blocks_are_the_first_of_the_untrimmed(groups: list[int], block: int) -> None:
    group = torch.tensor([groups, groups[::-1]])
    trimmed, whole = (group_into_blocks(group, 7, block, trim=trim) for trim in (True, False))
    needed = sum(-(-groups.count(g) // block) for g in set(groups))
    assert trimmed.item.shape == (2, needed, block)
    assert torch.equal(trimmed.item, whole.item[:, :needed])
    assert torch.equal(trimmed.group, whole.group[:, :needed])
    assert torch.equal(trimmed.slot, whole.slot)


@pytest.mark.parametrize("dims", [(0, 1, 2, 3), (0, 2, 1, 3), (2, 0, 1, 3), (1, 0, 2, 3)])
def test_gathered_rows_keep_batch_and_head_apart(dims: tuple[int, ...]) -> None:
    """However they lie in memory."""
    shape = [(2, 3, 5, 2)[d] for d in dims]
    x = torch.arange(2 * 3 * 5 * 2.0).view(shape).permute([dims.index(d) for d in range(4)])
    index = torch.randint(0, 5, (2, 3, 4, 6), generator=torch.Generator().manual_seed(0))
    y = gather_rows(x, index)
    for b in range(2):
        for h in range(3):
            assert torch.equal(y[b, h], x[b, h][index[b, h]])


def test_inverse_permutation() -> None:
    order = torch.rand(3, 11, generator=torch.Generator().manual_seed(0)).argsort(-1)
    assert torch.equal(order.gather(-1, invert_permutation(order)), torch.arange(11).expand(3, 11))


def test_pairs_that_met_before_are_those_of_equal_ids() -> None:
    generator = torch.Generator().manual_seed(0)
    query_ids = torch.randint(0, 5, (3, 2, 6), generator=generator)
    key_ids = torch.randint(-1, 5, (3, 2, 7), generator=generator)
    met = met_before(query_ids, key_ids)
    assert torch.equal(met, (query_ids[..., :, None] == key_ids[..., None, :]).any(0))
    with pytest.raises(ValueError, match="no round"):
        met_before([], [])


@settings(deadline=None, max_examples=30)
@given(length=st.integers(1, 6), slots=st.lists(st.integers(6, 9), min_size=1, max_size=4), seed=st.integers(0, 100))
def test_rounds_merge_as_their_gathered_parts(length: int, slots: list[int], seed: int) -> None:
    """Against :func:`merge_by_lse`, gradients included, where some rounds see nothing."""
    generator = torch.Generator().manual_seed(seed)
    out = [torch.randn(2, 3, n, 5, generator=generator, dtype=torch.float64, requires_grad=True) for n in slots]
    lse = [torch.randn(2, 3, n, generator=generator, dtype=torch.float64) for n in slots]
    lse = [x.masked_fill(torch.rand(x.shape, generator=generator) < 0.3, -torch.inf).requires_grad_() for x in lse]
    slot = [torch.rand(2, 3, n, generator=generator).argsort(-1)[..., :length] for n in slots]
    gathered = [
        torch.stack([gather_rows(o, s) for o, s in zip(out, slot, strict=True)]),
        torch.stack([x.gather(-1, s) for x, s in zip(lse, slot, strict=True)]),
    ]
    ours, theirs = merge_rounds(out, lse, slot), merge_by_lse(*gathered, dim=0)
    seen = theirs[1] != -torch.inf
    gradients = []
    for merged, total in (ours, theirs):
        loss = merged.sin().sum() + total[seen].square().sum()
        gradients.append(torch.autograd.grad(loss, [*out, *lse]))
    # float64, four terms of order one
    for a, b in zip((*ours, *gradients[0]), (*theirs, *gradients[1]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


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
