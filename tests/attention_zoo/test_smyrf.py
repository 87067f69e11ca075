"""SMYRF against its multiplicity oracle, and what the paper and our extensions promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.contract import AttentionCore, Pattern
from attention_zoo.reference import smyrf as oracle
from attention_zoo.smyrf import balanced_clusters, hash_keys, hash_queries, past_sources

EVERY = list(Pattern)
CAUSAL = [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS]
SMALL = {"rounds": 3, "cluster_size": 5}
# float64 sums of at most a few hundred terms of unit scale in another order: rounding stays near 1e-14.
ROUNDING = 1e-12


def _core(pattern: Pattern, head_dim: int = 4, **options: Any) -> AttentionCore:
    torch.manual_seed(0)
    return build_core("smyrf", 2, head_dim, pattern, max_length=256, **{**SMALL, **options}).double().eval()


def _qkv(pattern: Pattern, length_q: int, length_k: int, batch: int = 3, head_dim: int = 4) -> tuple[Tensor, ...]:
    torch.manual_seed(1)
    length_k = length_k if pattern.is_cross else length_q
    return tuple(
        torch.randn(batch, 2, length, head_dim, dtype=torch.float64) for length in (length_q, length_k, length_k)
    )


@pytest.mark.parametrize("pattern", EVERY)
@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(("length_q", "length_k"), [(1, 1), (2, 3), (37, 29), (3, 31), (31, 3), (33, 16)])
@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients_are_those_of_the_multiplicity_oracle(
    assert_agreement: Any, pattern: Pattern, correct: bool, length_q: int, length_k: int, padded: bool
) -> None:
    """The published multi-round identity: softmax with the logit bias log m_ij."""
    core = _core(pattern, correct_duplicates=correct)
    assert_agreement(core, oracle, length_q, length_k, padded=padded)


@settings(deadline=None, max_examples=25)
@given(data=st.data())
def test_any_length_mask_and_cluster_size_agree_with_the_oracle(data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(EVERY))
    core = _core(pattern, rounds=data.draw(st.integers(1, 3)), cluster_size=data.draw(st.integers(1, 12)))
    q, k, v = _qkv(pattern, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)), batch=2)
    mask = torch.tensor([[data.draw(st.booleans()) for _ in range(k.shape[2])] for _ in range(2)])
    out = core(q, k, v, key_padding_mask=mask)
    torch.testing.assert_close(
        out, oracle.dense_core(core, q, k, v, key_padding_mask=mask), atol=ROUNDING, rtol=ROUNDING
    )


def test_transforms_turn_the_largest_logit_into_the_nearest_neighbour() -> None:
    """||F(q) - G(k)||^2 = 2 (S^2 - q.k), and both transforms lie on the sphere of radius S.

    Hashed along the axes, tokens show their transforms.
    """
    q, k, _ = _qkv(Pattern.NONCAUSAL_CROSS, 13, 17)
    s2 = q.square().sum(-1).amax(-1) + k.square().sum(-1).amax(-1)
    axes = torch.eye(q.shape[-1] + 2, dtype=q.dtype).expand(2, -1, -1)
    f, g = (hash(x, axes, s2[..., None, None]).movedim(0, -1) for hash, x in ((hash_queries, q), (hash_keys, k)))
    distance = (f[:, :, :, None] - g[:, :, None]).square().sum(-1)
    torch.testing.assert_close(distance, 2 * (s2[..., None, None] - q @ k.mT), atol=ROUNDING, rtol=ROUNDING)
    for x in (f, g):
        torch.testing.assert_close(x.square().sum(-1), s2[..., None].expand(x.shape[:-1]), atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("pattern", EVERY)
@pytest.mark.parametrize("rounds", [1, 4])
def test_one_cluster_is_softmax_attention(pattern: Pattern, rounds: int) -> None:
    q, k, v = _qkv(pattern, 23, 31)
    mask = torch.arange(k.shape[2]) >= torch.tensor([k.shape[2], 4, 0])[:, None]
    out = _core(pattern, rounds=rounds, cluster_size=31)(q, k, v, key_padding_mask=mask)
    exact = build_core("softmax", 2, 4, pattern, max_length=64)(q, k, v, key_padding_mask=mask)
    torch.testing.assert_close(out, exact, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize(("length_q", "length_k", "size"), [(60, 60, 10), (60, 24, 10), (61, 47, 10), (7, 100, 3)])
def test_clusters_are_balanced(length_q: int, length_k: int, size: int) -> None:
    """Exactly Lq / C queries and Lk / C keys in each, or the two whole numbers next to them."""
    torch.manual_seed(0)
    hash_q, hash_k = torch.randn(2, 3, 4, length_q), torch.randn(2, 3, 4, length_k)
    clusters = balanced_clusters(hash_q, hash_k, None, None, size)
    pieces = -(-length_q // size)
    for piece, hashes, length in (
        (clusters.query_piece, hash_q, length_q),
        (clusters.key_piece, hash_k, length_k),
    ):
        counts = torch.stack([(piece == c).sum(-1) for c in range(pieces)])
        assert set(counts.flatten().tolist()) <= {length // pieces, -(-length // pieces)}
        assert int(counts.sum()) == length * 2 * 3 * 4
        # Pieces are runs of the sorted list: in the order of the hashes, their numbers never fall.
        assert bool((piece.gather(-1, hashes.argsort(-1)).diff() >= 0).all())


def test_many_rounds_reach_softmax_only_without_duplicates() -> None:
    """A property of the published merge (facts, section 2e): it tends to a collision-weighted softmax."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 8, dtype=torch.float64) for length in (64, 96, 96))
    exact = build_core("softmax", 2, 8, "noncausal_cross", max_length=96)(q, k, v)

    def error(rounds: int, correct: bool) -> float:
        torch.manual_seed(2)
        options = {"rounds": rounds, "cluster_size": 8, "correct_duplicates": correct}
        core = build_core("smyrf", 2, 8, "noncausal_cross", max_length=96, **options).double()
        return float((core(q, k, v) - exact).square().mean().sqrt())

    corrected = [error(rounds, True) for rounds in (1, 4, 16, 64)]
    assert corrected == sorted(corrected, reverse=True)
    # At 64 rounds few pairs of the 64 x 96 have never met; the published form is still off by its weighting.
    assert corrected[-1] < 0.01
    assert error(64, False) > 5 * corrected[-1]
    assert error(256, True) < 1e-4
    assert error(256, False) > 0.02


@pytest.mark.parametrize("correct", [False, True])
@pytest.mark.parametrize(("length", "head_dim", "size"), [(37, 4, 5), (101, 5, 7), (64, 16, 8), (50, 3, 1)])
def test_the_causal_form_is_strict(correct: bool, length: int, head_dim: int, size: int) -> None:
    """Everything after t changed, hashes and norms included: equal bits up to t (T3); a prefix alone agrees (T4)."""
    core = _core(Pattern.CAUSAL_SELF, head_dim, cluster_size=size, correct_duplicates=correct)
    torch.manual_seed(length)
    x = [torch.randn(2, 2, length, head_dim, dtype=torch.float64) for _ in range(3)]
    out = core(*x)
    for t in (0, length // 3, length // 2, length - 2):
        changed = [torch.cat([y[:, :, : t + 1], 3 * torch.randn_like(y[:, :, t + 1 :])], dim=2) for y in x]
        assert torch.equal(core(*changed)[:, :, : t + 1], out[:, :, : t + 1])
        prefix = core(*(y[:, :, : t + 1] for y in x))
        torch.testing.assert_close(prefix, out[:, :, : t + 1], atol=ROUNDING, rtol=ROUNDING)


def test_the_causal_cross_form_treats_each_query_alone() -> None:
    core = _core(Pattern.CAUSAL_CROSS)
    q, k, v = _qkv(Pattern.CAUSAL_CROSS, 23, 31)
    mask = torch.arange(31) >= torch.tensor([31, 7, 1])[:, None]
    out = core(q, k, v, key_padding_mask=mask)
    for t in (0, 9, 22):
        alone = core(q[:, :, t : t + 1], k, v, key_padding_mask=mask)
        torch.testing.assert_close(alone, out[:, :, t : t + 1], atol=ROUNDING, rtol=ROUNDING)


def test_the_causal_form_sees_its_chunk_and_one_piece_a_round() -> None:
    core = _core(Pattern.CAUSAL_SELF, rounds=1, cluster_size=4)
    q, k, _ = _qkv(Pattern.CAUSAL_SELF, 31, 31)
    eye = torch.eye(31, dtype=torch.float64).expand(3, 2, -1, -1)
    seen = core(q, k, eye) > 0
    assert torch.equal(seen, oracle.multiplicity(core, q, k) > 0)
    for t in range(31):
        chunk = t // 4
        assert bool((seen[:, :, t].sum(-1) == t % 4 + 1 + 4 * (chunk > 0)).all())
        for head in range(2 if chunk else 0):
            # The only round: the head takes the n chunks before the last multiple of n.
            n = 2 ** (chunk.bit_length() - 1 - head % chunk.bit_length())
            end = chunk // n * n
            source = seen[:, head, t, 4 * (end - n) : 4 * end]
            assert bool((source.sum(-1) == 4).all())


@pytest.mark.parametrize(("rounds", "heads"), [(6, 1), (8, 1), (4, 3), (2, 5), (1, 6)])
def test_rounds_or_heads_visit_all_of_the_past(rounds: int, heads: int) -> None:
    """The sources of a query, n = 1, 2, 4, ..., make up its past: enough rounds or heads see it all."""
    sources = past_sources(64, 1, rounds, heads, torch.device("cpu"))
    for chunk in range(1, 64):
        ends, sizes = sources.start[:, 0, :, chunk], sources.chunks[:, 0, :, chunk]
        visited = {
            j
            for end, n in zip(ends.flatten().tolist(), sizes.flatten().tolist(), strict=True)
            for j in range(end - n, end)
        }
        assert visited == set(range(chunk))
        longest = 1 << (chunk.bit_length() - 1)
        if rounds > 1:
            assert bool((sizes[0] == longest).all())


def test_many_rounds_of_the_causal_form_reach_softmax_without_duplicates() -> None:
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 64, 8, dtype=torch.float64) for _ in range(3))
    exact = build_core("softmax", 2, 8, "causal_self", max_length=64)(q, k, v)

    def error(rounds: int, correct: bool) -> float:
        core = _core(Pattern.CAUSAL_SELF, 8, rounds=rounds, cluster_size=8, correct_duplicates=correct)
        return float((core(q, k, v) - exact).square().mean().sqrt())

    corrected = [error(rounds, True) for rounds in (1, 4, 16, 64)]
    assert corrected == sorted(corrected, reverse=True)
    assert error(256, True) < 1e-3
    assert error(256, False) > 10 * error(256, True)


def test_a_query_joins_the_piece_of_the_key_that_it_equals() -> None:
    """The published coordinates of S, kept, would move the queries away from the keys, by as much as they spread."""
    torch.manual_seed(0)
    k = torch.randn(1, 2, 512, 16, dtype=torch.float64) + 2 * torch.randn(1, 2, 1, 16, dtype=torch.float64)
    order = torch.randperm(512)
    q = (k - k.mean(2, keepdim=True))[:, :, order] + 0.1 * torch.randn_like(k)
    core = _core(Pattern.CAUSAL_CROSS, 16, rounds=1, cluster_size=16)
    seen = core(q, k, torch.eye(512, dtype=torch.float64).expand(1, 2, -1, -1)) > 0
    found = float(seen[:, :, torch.arange(512), order].double().mean())
    assert found > 5 * 16 / 512  # five times what chance finds


@pytest.mark.parametrize("pattern", EVERY)
def test_a_padded_sample_gives_what_it_gives_alone(pattern: Pattern) -> None:
    """T8 and T9 at once: cluster counts, bounds and sorts are those of the sample's own tokens."""
    core = _core(pattern, rounds=4)
    q, k, v = _qkv(pattern, 29, 29, batch=4)
    lengths = [29, 13, 6, 1]
    mask = torch.arange(29) >= torch.tensor(lengths)[:, None]
    out = core(q, k, v, key_padding_mask=mask)
    for b, n in enumerate(lengths):
        rows = 29 if pattern.is_cross else n
        alone = core(q[b : b + 1, :, :rows], k[b : b + 1, :, :n], v[b : b + 1, :, :n])
        torch.testing.assert_close(out[b : b + 1, :, :rows], alone, atol=ROUNDING, rtol=ROUNDING)


@pytest.mark.parametrize("pattern", EVERY)
def test_no_visible_key_gives_zeros_and_finite_gradients(pattern: Pattern) -> None:
    core = _core(pattern)
    x = [y.requires_grad_() for y in _qkv(pattern, 17, 19)]
    out = core(*x, key_padding_mask=torch.ones(3, x[1].shape[2], dtype=torch.bool))
    assert not out.any()
    for gradient in torch.autograd.grad(out.sum(), x):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("pattern", [Pattern.NONCAUSAL_SELF, Pattern.NONCAUSAL_CROSS, Pattern.CAUSAL_CROSS])
def test_no_order_of_the_tokens_enters(pattern: Pattern) -> None:
    core = _core(pattern)
    q, k, v = _qkv(pattern, 23, 31)
    rows = torch.randperm(23)
    keys = torch.randperm(31) if pattern.is_cross else rows
    out = core(q[:, :, rows], k[:, :, keys], v[:, :, keys])
    torch.testing.assert_close(out, core(q, k, v)[:, :, rows], atol=ROUNDING, rtol=ROUNDING)


def test_hashes_are_state_and_fixed() -> None:
    torch.manual_seed(0)
    first = build("smyrf", 16, 2, "noncausal_self", max_length=64, **SMALL)
    second = build("smyrf", 16, 2, "noncausal_self", max_length=64, **SMALL)
    x = torch.randn(2, 33, 16)
    assert torch.equal(first.train()(x), first.eval()(x))
    assert not torch.allclose(first(x), second(x))
    assert "core.hashes" in first.state_dict()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(x), second(x))
    torch.manual_seed(0)
    assert torch.equal(build("smyrf", 16, 2, "noncausal_self", max_length=64, **SMALL)(x), first(x))


def test_dropout_acts_in_training_only() -> None:
    core = build_core("smyrf", 2, 4, "causal_self", max_length=64, dropout=0.5, **SMALL).double()
    x = _qkv(Pattern.CAUSAL_SELF, 21, 21)
    assert not torch.equal(core.train()(*x), core(*x))
    assert torch.equal(core.eval()(*x), core(*x))


@pytest.mark.parametrize("pattern", EVERY)
@pytest.mark.parametrize(("length_q", "length_k"), [(64, 64), (37, 29), (3, 41), (41, 3)])
def test_flops_are_those_of_the_matrix_products(pattern: Pattern, length_q: int, length_k: int) -> None:
    length_k = length_k if pattern.is_cross else length_q
    core = build_core("smyrf", 2, 4, pattern, max_length=64, **SMALL).to("meta")
    x = [torch.empty(3, 2, length, 4, device="meta") for length in (length_q, length_k, length_k)]
    with FlopCounterMode(display=False) as counter:
        core(*x)
    assert counter.get_total_flops() == core.flops(3, length_q, length_k)


@pytest.mark.parametrize("pattern", EVERY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_and_autocast_run_forward_and_backward(pattern: Pattern, dtype: torch.dtype) -> None:
    layer = build("smyrf", 16, 2, pattern, max_length=64, **SMALL)
    x = torch.randn(2, 33, 16)
    with torch.autocast("cpu", dtype=dtype):
        out = layer(x, *([x, x] if Pattern(pattern).is_cross else []))
    out.float().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in layer.parameters())
    q = torch.randn(2, 2, 33, 8, dtype=dtype)
    assert layer.core.to(dtype)(q, q, q).dtype == dtype


@pytest.mark.parametrize("option", ["rounds", "cluster_size"])
def test_options_that_are_not_positive_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option}=0"):
        build_core("smyrf", 2, 4, "noncausal_self", max_length=8, **{option: 0})
