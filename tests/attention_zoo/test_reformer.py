"""Reformer against its oracle, and what the paper and our key-anchored form promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.contract import AttentionCore, Pattern, Unsupported
from attention_zoo.reference import reformer as oracle
from attention_zoo.reformer import factor_columns, most_columns

EVERY = list(Pattern)
SELF = [Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF]
CROSS = [Pattern.NONCAUSAL_CROSS, Pattern.CAUSAL_CROSS]
# The published form (None: shared in the self patterns) and, in them, separate queries and keys.
FORMS: list[tuple[Pattern, bool | None]] = [*((p, None) for p in EVERY), *((p, False) for p in SELF)]
SMALL = {"rounds": 3, "bucket_size": 5}
# float64 sums of at most a few hundred terms of unit scale in another order: rounding stays near 1e-14.
ROUNDING = 1e-12


def _core(pattern: Pattern, head_dim: int = 4, **options: Any) -> AttentionCore:
    torch.manual_seed(0)
    return build_core("reformer", 2, head_dim, pattern, max_length=256, **{**SMALL, **options}).double().eval()


def _qkv(pattern: Pattern, length_q: int, length_k: int, batch: int = 3, head_dim: int = 4) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    length_k = length_k if pattern.is_cross else length_q
    return tuple(
        torch.randn(batch, 2, length, head_dim, dtype=torch.float64) for length in (length_q, length_k, length_k)
    )


def _shared_attention(q: Tensor, v: Tensor, visible: Tensor) -> Tensor:
    """softmax(q_i . q_j / (||q_j|| sqrt(D))) over the visible j, written here once more."""
    logits = q @ (q / q.norm(dim=-1, keepdim=True)).mT / q.shape[-1] ** 0.5
    return torch.softmax(logits.masked_fill(~visible, -torch.inf), -1) @ v


@pytest.mark.parametrize(("pattern", "shared"), FORMS)
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(("length_q", "length_k"), [(1, 1), (2, 3), (37, 29), (3, 31), (31, 3)])
@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients_are_those_of_the_oracle(
    assert_agreement: Any,
    pattern: Pattern,
    shared: bool | None,
    correct: bool,
    length_q: int,
    length_k: int,
    padded: bool,
) -> None:
    core = _core(pattern, shared_qk=shared, correct_duplicates=correct)
    assert_agreement(core, oracle, length_q, length_k, padded=padded)


@pytest.mark.parametrize("pattern", SELF)
@pytest.mark.parametrize("length", [4, 9, 37])
@pytest.mark.parametrize("padded", [False, True])
def test_chunks_without_bucket_masks_agree_with_the_oracle(
    assert_agreement: Any, pattern: Pattern, length: int, padded: bool
) -> None:
    assert_agreement(_core(pattern, attend_across_buckets=True), oracle, length, length, padded=padded)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_length_mask_and_bucket_size_agree_with_the_oracle(data: st.DataObject) -> None:
    pattern, shared = data.draw(st.sampled_from(FORMS))
    options = {"rounds": data.draw(st.integers(1, 3)), "bucket_size": data.draw(st.integers(1, 12))}
    core = _core(pattern, shared_qk=shared, **options)
    q, k, v = _qkv(pattern, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), batch=2)
    mask = torch.tensor([[data.draw(st.booleans()) for _ in range(k.shape[2])] for _ in range(2)])
    out = core(q, k, v, key_padding_mask=mask)
    torch.testing.assert_close(
        out, oracle.dense_core(core, q, k, v, key_padding_mask=mask), atol=ROUNDING, rtol=ROUNDING
    )


@pytest.mark.parametrize("rounds", [1, 4])
@pytest.mark.parametrize("length", [2, 9, 32])
def test_two_chunks_without_bucket_masks_are_shared_attention_without_self(rounds: int, length: int) -> None:
    """Exact for any number of rounds, which a look-back into another round would spoil (facts, section 3e)."""
    core = _core(Pattern.NONCAUSAL_SELF, rounds=rounds, bucket_size=-(-length // 2), attend_across_buckets=True)
    q, k, v = _qkv(Pattern.NONCAUSAL_SELF, length, length)
    expected = _shared_attention(q, v, ~torch.eye(length, dtype=torch.bool))
    torch.testing.assert_close(core(q, k, v), expected, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("pattern", SELF)
def test_one_bucket_is_shared_attention_without_self(pattern: Pattern) -> None:
    q, k, v = _qkv(pattern, 23, 23)
    visible = ~torch.eye(23, dtype=torch.bool)
    if pattern.is_causal:
        visible = visible.tril()
        visible[0, 0] = True  # the first token has nothing but itself
    out = _core(pattern, bucket_size=23)(q, k, v)
    torch.testing.assert_close(out, _shared_attention(q, v, visible), atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("pattern", EVERY)
def test_one_bucket_of_separate_keys_is_softmax_attention(pattern: Pattern) -> None:
    q, k, v = _qkv(pattern, 23, 31)
    mask = torch.arange(k.shape[2]) >= torch.tensor([k.shape[2], 4, 0])[:, None]
    out = _core(pattern, bucket_size=31, shared_qk=False)(q, k, v, key_padding_mask=mask)
    exact = build_core("softmax", 2, 4, pattern, max_length=64)(q, k, v, key_padding_mask=mask)
    torch.testing.assert_close(out, exact, atol=ROUNDING, rtol=ROUNDING)


def test_a_token_sees_itself_only_where_it_sees_nothing_else() -> None:
    core = _core(Pattern.CAUSAL_SELF, rounds=2, bucket_size=2)
    q, k, _ = _qkv(Pattern.CAUSAL_SELF, 19, 19)
    mask = torch.zeros(3, 19, dtype=torch.bool)
    mask[0, :2] = True
    eye = torch.eye(19, dtype=torch.float64).expand(3, 2, -1, -1)
    probed = core(q, k, eye, key_padding_mask=mask)
    diagonal = probed.diagonal(dim1=-2, dim2=-1)
    others = probed.sum(-1) - diagonal
    seeing = ~mask[:, None].expand_as(diagonal)
    assert bool((diagonal[0, :, :2] == 0).all())  # padding does not even see itself
    assert bool(((diagonal == 1) ^ (others.abs() > 0.5))[seeing].all())
    assert bool((diagonal[0, :, 2] == 1).all())


def test_tokens_of_one_round_meet_in_their_bucket_only() -> None:
    """One round, two chunks: pairs of equal argmax([xR ; -xR]), each seen by the one that is sorted later at least."""
    core = _core(Pattern.NONCAUSAL_SELF, rounds=1, bucket_size=16)
    q, k, _ = _qkv(Pattern.NONCAUSAL_SELF, 31, 31)
    rotation = core.get_buffer("rotations")[:, 0, :, :2]
    rotated = torch.einsum("bhld,hdc->bhlc", q, rotation)
    bucket = torch.cat([rotated, -rotated], -1).argmax(-1)
    same = (bucket[..., :, None] == bucket[..., None, :]) & ~torch.eye(31, dtype=torch.bool)
    probed = core(q, k, torch.eye(31, dtype=torch.float64).expand(3, 2, -1, -1))
    seen = (probed > 0) & ~torch.eye(31, dtype=torch.bool)
    assert not (seen & ~same).any()
    assert torch.equal(seen | seen.mT, same)


@pytest.mark.parametrize(("pattern", "shared"), FORMS)
@pytest.mark.parametrize("padded", [False, True])
def test_buckets_of_two_factors_agree_with_the_oracle(
    assert_agreement: Any, pattern: Pattern, shared: bool | None, padded: bool
) -> None:
    """Chunks of 2: at once hashed are 4 buckets, of up to 4 tokens, and 53 have 54."""
    assert_agreement(_core(pattern, shared_qk=shared, bucket_size=2), oracle, 53, 51, padded=padded)


@settings(deadline=None)
@given(tokens=st.integers(1, 3000), bucket_size=st.integers(1, 20))
def test_factors_make_no_fewer_buckets_than_asked_from_few_columns(tokens: int, bucket_size: int) -> None:
    half = -(-tokens // bucket_size)
    first, second = factor_columns(tokens, bucket_size)
    assert 2 * first * max(2 * second, 1) >= 2 * half
    assert (second == 0) == (half <= bucket_size)
    if second:
        assert first + second <= 2 * (half / 2) ** 0.5 + 2  # each factor is rounded up
    most = most_columns(tokens, bucket_size)
    for fewer in range(1, tokens + 1, max(tokens // 50, 1)):
        assert all(a <= b for a, b in zip(factor_columns(fewer, bucket_size), most, strict=True))


def test_changed_future_values_leave_the_past_alone_but_changed_queries_do_not() -> None:
    """Value-causal (facts, section 3e): T5 holds in equal bits, T3 does not."""
    core = _core(Pattern.CAUSAL_SELF)
    q, k, v = _qkv(Pattern.CAUSAL_SELF, 41, 41)
    out, t = core(q, k, v), 20
    later = torch.randn_like(v[:, :, t + 1 :])
    assert torch.equal(core(q, k, torch.cat([v[:, :, : t + 1], later], 2))[:, :, : t + 1], out[:, :, : t + 1])
    changed = torch.cat([q[:, :, : t + 1], later], 2)
    assert float((core(changed, changed, v) - out)[:, :, : t + 1].abs().max()) > 0.1


@pytest.mark.parametrize("pattern", CROSS)
def test_the_cross_forms_treat_each_query_alone(pattern: Pattern) -> None:
    core = _core(pattern)
    q, k, v = _qkv(pattern, 23, 31)
    mask = torch.arange(31) >= torch.tensor([31, 7, 1])[:, None]
    out = core(q, k, v, key_padding_mask=mask)
    assert core(q, k, torch.ones_like(v), key_padding_mask=mask).min() > 1 - ROUNDING  # no query is left without keys
    for t in (0, 9, 22):
        alone = core(q[:, :, t : t + 1], k, v, key_padding_mask=mask)
        torch.testing.assert_close(alone, out[:, :, t : t + 1], atol=ROUNDING, rtol=ROUNDING)
    changed = torch.cat([q[:, :, :10], torch.randn_like(q[:, :, 10:])], 2)
    assert torch.equal(core(changed, k, v, key_padding_mask=mask)[:, :, :10], out[:, :, :10])


def test_many_rounds_reach_full_attention_only_without_duplicates() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 8, dtype=torch.float64) for _ in range(3))
    exact = _shared_attention(q, v, ~torch.eye(64, dtype=torch.bool))

    def error(rounds: int, correct: bool) -> float:
        torch.manual_seed(2)
        options = {"rounds": rounds, "bucket_size": 16, "correct_duplicates": correct}
        core = build_core("reformer", 2, 8, "noncausal_self", max_length=64, **options).double()
        return float((core(q, k, v) - exact).square().mean().sqrt())

    corrected = [error(rounds, True) for rounds in (1, 4, 16)]
    assert corrected == sorted(corrected, reverse=True)
    # Opposite tokens seldom meet, but they have little weight; counting every meeting instead stays off.
    assert error(128, True) < 0.02
    assert error(128, False) > 4 * error(128, True)


@pytest.mark.parametrize(("pattern", "shared"), FORMS)
def test_a_padded_sample_gives_what_it_gives_alone(pattern: Pattern, shared: bool | None) -> None:
    """T8 and T9 at once: bucket counts and chunks are those of the sample's own tokens."""
    core = _core(pattern, shared_qk=shared)
    q, k, v = _qkv(pattern, 29, 29, batch=4)
    lengths = [29, 13, 6, 1]
    mask = torch.arange(29) >= torch.tensor(lengths)[:, None]
    out = core(q, k, v, key_padding_mask=mask)
    for b, n in enumerate(lengths):
        rows = 29 if pattern.is_cross else n
        alone = core(q[b : b + 1, :, :rows], k[b : b + 1, :, :n], v[b : b + 1, :, :n])
        torch.testing.assert_close(out[b : b + 1, :, :rows], alone, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize(("pattern", "shared"), FORMS)
def test_no_visible_key_gives_zeros_and_finite_gradients(pattern: Pattern, shared: bool | None) -> None:
    core = _core(pattern, shared_qk=shared)
    x = [y.requires_grad_() for y in _qkv(pattern, 17, 19)]
    out = core(*x, key_padding_mask=torch.ones(3, x[1].shape[2], dtype=torch.bool))
    assert not out.any()
    for gradient in torch.autograd.grad(out.sum(), x, allow_unused=True):
        assert gradient is None or bool(gradient.isfinite().all())


def test_rotations_are_state_and_fixed() -> None:
    torch.manual_seed(0)
    first = build("reformer", 16, 2, "noncausal_self", max_length=64, **SMALL)
    second = build("reformer", 16, 2, "noncausal_self", max_length=64, **SMALL)
    x = torch.randn(2, 33, 16)
    assert torch.equal(first.train()(x), first.eval()(x))
    assert not torch.allclose(first(x), second(x))
    assert "core.rotations" in first.state_dict()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    torch.manual_seed(0)
    assert torch.equal(build("reformer", 16, 2, "noncausal_self", max_length=64, **SMALL)(x), first(x))


def test_shared_queries_and_keys_have_one_projection() -> None:
    def parameters(pattern: Pattern, **options: Any) -> int:
        return sum(p.numel() for p in build("reformer", 16, 2, pattern, max_length=64, **options).parameters())

    assert parameters(Pattern.NONCAUSAL_SELF) == 3 * (16 * 16 + 16)
    assert parameters(Pattern.NONCAUSAL_SELF, shared_qk=False) == 4 * (16 * 16 + 16)
    assert parameters(Pattern.CAUSAL_CROSS) == 4 * (16 * 16 + 16)
    layer = build("reformer", 16, 2, "noncausal_self", max_length=64)
    assert layer.flops(1, 8, 8) == 3 * 2 * 8 * 16**2 + build_core(
        "reformer", 2, 8, "noncausal_self", max_length=64
    ).flops(1, 8, 8)


@pytest.mark.parametrize(("pattern", "shared"), FORMS)
@pytest.mark.parametrize(("length_q", "length_k"), [(64, 64), (37, 29), (3, 41), (41, 3)])
def test_flops_are_those_of_the_matrix_products(
    pattern: Pattern, shared: bool | None, length_q: int, length_k: int
) -> None:
    length_k = length_k if pattern.is_cross else length_q
    core = build_core("reformer", 2, 4, pattern, max_length=64, shared_qk=shared, **SMALL).to("meta")
    x = [torch.empty(3, 2, length, 4, device="meta") for length in (length_q, length_k, length_k)]
    with FlopCounterMode(display=False) as counter:
        core(*x)
    assert counter.get_total_flops() == core.flops(3, length_q, length_k)


@pytest.mark.parametrize("pattern", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast_run_forward_and_backward(pattern: Pattern, dtype: torch.dtype) -> None:
    layer = build("reformer", 16, 2, pattern, max_length=64, **SMALL)
    x = torch.randn(2, 33, 16)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x, *([x, x] if Pattern(pattern).is_cross else []))
    out.float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())
    q = torch.randn(2, 2, 33, 8, dtype=dtype)
    assert layer.core.to(dtype)(q, q, q).dtype == dtype


def test_impossible_options_are_refused() -> None:
    for option in ("rounds", "bucket_size"):
        with pytest.raises(ValueError, match=f"{option}=0"):
            build_core("reformer", 2, 4, "noncausal_self", max_length=8, **{option: 0})
    with pytest.raises(Unsupported, match="shared_qk"):
        build("reformer", 16, 2, "causal_cross", max_length=8, shared_qk=True)
    with pytest.raises(ValueError, match="attend_across_buckets"):
        build("reformer", 16, 2, "causal_cross", max_length=8, attend_across_buckets=True)
