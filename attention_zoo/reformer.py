"""Reformer: attention inside buckets of a locality-sensitive hash, in chunks of the sorted sequence.

Queries and keys are one projection ("shared QK"); a key is its query at unit length, so that a token and its key fall
into one bucket (section 2 of the paper). Round r = 1 .. R draws R_r in R^(D x b/2) with normal entries and hashes

    h(x) = argmax([x R_r ; -x R_r])                                   (angular LSH into b buckets)
    P_i  = {j : h(q_i) = h(k_j), j <= i in the causal form}           (the keys that i may see)
    o_i  = sum_{j in P_i} exp(q_i.k_j / sqrt(D) - z(i)) v_j,          k_j = q_j / ||q_j||,  z(i) the normaliser.

Tokens are sorted by (bucket, position) and cut into chunks of m, b = 2 L / m; with s_i the sorted place of i, the keys
are batched as

    Pt_i = {j in P_i : floor(s_i / m) - 1 <= floor(s_j / m) <= floor(s_i / m)}      (own chunk and the one before).

Over rounds P_i is the union; a pair met in N_ij rounds is divided by N_ij, so that the rounds merge by their
log-sum-exp to attention over the union (appendix A). A token sees itself only if it sees nothing else in any round.

Time O(R L (log L + 2 m D)) and the hash's O(R L b D / 2); memory O(R L m). The look-back is within the round (a public
implementation lets the first chunk of a round look into the round before, and is then not exact even with one bucket).

Our choices. ``bucket_size`` is m. n tokens with n <= m are one bucket (there is nothing to save; as the public Hugging
Face form does), otherwise b = 2 ceil(n / m). n counts the sample's valid tokens; padding is sorted behind them.
``attend_across_buckets`` drops h(q_i) = h(k_j) and lets the first chunk look back to the last, as the common public
defaults do.

The causal self form is published, but causal in the values only: the sorted places, and so the chunks, depend on the
whole sequence. ``value_causal`` on the card.

Our extension: separate queries and keys (always in the cross patterns; ``shared_qk=False`` in the self patterns),
*key-anchored*, so that a query's output does not depend on other queries. Both sides are hashed by the same R_r; a
query takes the best bucket among those that hold a key, argmax over occupied buckets, so that none is left without
keys; it sees the m keys of its bucket that lie furthest along the bucket's direction (all of them, mostly: m / 2 is the
mean). Keys keep their length, self is not excluded, and rounds merge as above.

Source: N. Kitaev, L. Kaiser, A. Levskaya, "Reformer: The Efficient Transformer", ICLR 2020, arXiv:2001.04451.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, Support, Unsupported
from attention_zoo.primitives import (
    accumulation_dtype,
    attention_with_lse,
    count_shared_rounds,
    frozen_normal,
    gather_rows,
    group_into_blocks,
    invert_permutation,
    merge_by_lse,
    without_autocast,
)

CARD = Card(
    name="reformer",
    title="Reformer: The Efficient Transformer",
    authors="Kitaev, Kaiser, Levskaya",
    year=2020,
    paper="arXiv:2001.04451",
    family="hashing",
    exact=False,
    discrete=True,
    time_order="L log L",
    memory_order="L",
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.CAUSAL_SELF: Support.VALUE_CAUSAL,
        Pattern.NONCAUSAL_CROSS: Support.EXTENSION,
        Pattern.CAUSAL_CROSS: Support.EXTENSION,
    },
    permutation_equivariant=False,
    collapses=Collapse({"bucket_size": "length", "shared_qk": False}),
)


class Meetings(NamedTuple):
    """Who meets whom, per round: P blocks of m queries and l keys."""

    query: Int64[Tensor, "B H R P m"]
    key: Int64[Tensor, "B H R P l"]
    visible: Bool[Tensor, "B H R P m l"]
    slot: Int64[Tensor, "B H R Lq"]  # where, among the P m places, the query is
    query_groups: list[Int64[Tensor, "B H R Lq"]]  # i meets j in a round where one of these ...
    key_group: Int64[Tensor, "B H R Lk"]  # ... equals this


def bucket_scores(
    x: Float[Tensor, "B H L D"], rotations: Float[Tensor, "H R D b/2"], count: Int64[Tensor, "*B"], bucket_size: int
) -> Float[Tensor, "B H R L b"]:
    """[x R ; -x R], with -inf for the buckets that a sample of ``count`` tokens has not (it has one, or 2 n / m)."""
    x = x.to(accumulation_dtype(x))
    with without_autocast(x):
        rotated = x[:, :, None] @ rotations.to(x.dtype)
    scores = torch.cat([rotated, -rotated], dim=-1)
    count = count.view(-1, 1, 1, 1, 1)
    half = torch.arange(rotated.shape[-1], device=x.device).repeat(2)
    has = torch.where(
        count > bucket_size,
        half < (count + bucket_size - 1) // bucket_size,
        torch.arange(len(half), device=x.device) == 0,
    )
    return scores.masked_fill(~has, -torch.inf)


def sorted_chunks(
    bucket: Int64[Tensor, "B H R L"],
    valid: Bool[Tensor, "B L"] | None,
    count: Int64[Tensor, "*B"],
    bucket_size: int,
    *,
    causal: bool,
    across: bool,
) -> Meetings:
    """Sorts by (bucket, position), cuts into chunks, and looks one chunk back (the published form)."""
    length = bucket.shape[-1]
    width = min(bucket_size, length)
    chunks = math.ceil(length / width)
    count = count.view(-1, 1, 1, 1)
    buckets = 2 * length  # no more, whatever the bucket size
    order = (bucket if valid is None else bucket.masked_fill(~valid[:, None, None], buckets)).argsort(stable=True)
    rank = invert_permutation(order)

    query = F.pad(order, (0, chunks * width - length)).unflatten(-1, (chunks, width))
    chunk = torch.arange(chunks, device=bucket.device)
    before = (chunk - 1).expand(len(count), 1, 1, -1)
    if across:
        final = (count - 1).clamp(min=0) // width
        before = torch.where((chunk == 0) & (final > 0), final, before)
    place = torch.arange(width, device=bucket.device)
    key, exists = query, chunk[:, None] * width + place < count[..., None]
    if chunks > 1:
        source = before.clamp(min=0).expand(*query.shape[:-1])
        key = torch.cat([key, query.gather(-2, source[..., None].expand_as(query))], dim=-1)
        back_exists = (before[..., None] >= 0) & (before[..., None] * width + place < count[..., None])
        exists = torch.cat([exists.expand_as(back_exists), back_exists], dim=-1)

    i, j = query[..., :, None], key[..., None, :]
    visible = exists[..., None, :] & (j < i if causal else j != i)
    own = rank // width
    back = before.expand(*rank.shape[:-1], -1).gather(-1, own)
    group_in = torch.zeros_like(bucket) if across else bucket
    if not across:
        visible = visible & (_at(bucket, query)[..., :, None] == _at(bucket, key)[..., None, :])
    own_group = own * buckets + group_in
    back_group = torch.where(back < 0, -2, back * buckets + group_in)
    key_group = own_group if valid is None else own_group.masked_fill(~valid[:, None, None], -1)
    return Meetings(query, key, visible, rank, [own_group, back_group], key_group)


def _at(ids: Int64[Tensor, "B H R L"], slots: Int64[Tensor, "B H R P m"]) -> Int64[Tensor, "B H R P m"]:
    return ids.gather(-1, slots.flatten(-2)).view_as(slots)


def anchored_buckets(
    query_scores: Float[Tensor, "B H R Lq b"],
    key_scores: Float[Tensor, "B H R Lk b"],
    valid: Bool[Tensor, "B Lk"] | None,
    bucket_size: int,
    *,
    causal: bool,
) -> Meetings:
    """Each query meets the first m keys along the direction of its best occupied bucket (our extension)."""
    length_q, (length_k, buckets) = query_scores.shape[-2], key_scores.shape[-2:]
    along, bucket = key_scores.max(dim=-1)
    # Padding fills one more bucket, which no query can take.
    group = bucket if valid is None else bucket.masked_fill(~valid[:, None, None], buckets)
    size = group.new_zeros(*group.shape[:-1], buckets + 1).scatter_add_(-1, group, torch.ones_like(group))
    furthest = along.argsort(dim=-1, descending=True, stable=True)
    order = furthest.gather(-1, group.gather(-1, furthest).argsort(dim=-1, stable=True))
    first = size.cumsum(-1) - size
    size = size.clamp(max=bucket_size)

    query_bucket = query_scores.masked_fill((size[..., :buckets] == 0)[..., None, :], -torch.inf).argmax(-1)
    blocks = group_into_blocks(query_bucket, buckets, min(max(bucket_size // 2, 1), length_q))
    place = torch.arange(min(bucket_size, length_k), device=bucket.device)
    rank = first.gather(-1, blocks.group)[..., None] + place
    key = _at(order, rank.clamp(max=length_k - 1))
    visible = (place < size.gather(-1, blocks.group)[..., None])[..., None, :]
    if causal:
        visible = visible & (key[..., None, :] <= blocks.item[..., :, None])
    kept = invert_permutation(order) - first.gather(-1, group) < bucket_size
    return Meetings(
        blocks.item,
        key,
        visible,
        blocks.slot,
        [query_bucket],
        torch.where(kept & (group < buckets), group, -1),
    )


class ReformerCore(AttentionCore):
    """LSH attention on projected heads. With shared queries and keys it reads q as both, and not k.

    Args:
        rounds: R, the number of independent hashes.
        bucket_size: m, the length of a chunk; twice the mean size of a bucket.
        shared_qk: keys are the queries at unit length; None: in the self patterns, which are published so.
        correct_duplicates: count a pair that meets in several rounds once, as the paper does; otherwise each time.
        attend_across_buckets: see all of both chunks, whatever the buckets (shared queries and keys only).
    """

    rotations: Tensor  # R_r of each head, [H, R, D, b/2] for the largest b

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        rounds: int = 4,
        bucket_size: int = 64,
        shared_qk: bool | None = None,
        correct_duplicates: bool = True,
        attend_across_buckets: bool = False,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        for name, value in (("rounds", rounds), ("bucket_size", bucket_size)):
            if value < 1:
                raise ValueError(f"{name}={value} is not positive; reformer needs at least 1")
        self.rounds = rounds
        self.bucket_size = bucket_size
        self.shared_qk = shares_qk(self.pattern, shared_qk)
        self.correct_duplicates = correct_duplicates
        self.attend_across_buckets = attend_across_buckets
        if attend_across_buckets and not self.shared_qk:
            raise Unsupported(
                "attend_across_buckets=True needs shared_qk: separate keys are not chunked; leave it False"
            )
        half = math.ceil(self.max_length_key / bucket_size)
        self.register_buffer("rotations", frozen_normal(num_heads, rounds, head_dim, half))

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        valid = None if key_padding_mask is None else ~key_padding_mask
        keys = F.normalize(q, dim=-1) if self.shared_qk else k
        meetings = self._meet(q, keys, valid)
        met = None
        if self.correct_duplicates and self.rounds > 1:
            met = count_shared_rounds(meetings.query_groups, meetings.key_group, meetings.query, meetings.key)
        out, lse = attention_with_lse(
            gather_rows(q, meetings.query),
            gather_rows(keys, meetings.key),
            gather_rows(v, meetings.key),
            scale=self.head_dim**-0.5,
            visible=meetings.visible,
            divisor=met,
            dropout=self.dropout if self.training else 0.0,
        )
        out = gather_rows(out.flatten(-3, -2), meetings.slot)
        out, lse = merge_by_lse(out, lse.flatten(-2).gather(-1, meetings.slot), dim=-2)
        out = out.to(v.dtype)
        if not self.pattern.is_cross:
            alone = lse.detach() == -torch.inf
            if valid is not None:
                alone = alone & valid[:, None]
            out = torch.where(alone[..., None], v, out)
        return out

    @torch.no_grad()
    def _meet(self, q: Tensor, k: Tensor, valid: Tensor | None) -> Meetings:
        length = k.shape[2]
        count = torch.full((1,), length, device=k.device) if valid is None else valid.sum(-1)
        rotations = self.rotations[..., : math.ceil(length / self.bucket_size)]
        causal = self.pattern is Pattern.CAUSAL_SELF
        key_scores = bucket_scores(k, rotations, count, self.bucket_size)
        if self.shared_qk:
            bucket = key_scores.argmax(-1)
            across = self.attend_across_buckets
            return sorted_chunks(bucket, valid, count, self.bucket_size, causal=causal, across=across)
        query_scores = bucket_scores(q, rotations, count, self.bucket_size)
        return anchored_buckets(query_scores, key_scores, valid, self.bucket_size, causal=causal)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        half = math.ceil(length_k / self.bucket_size)
        if self.shared_qk:
            hashed, width = length_k, min(self.bucket_size, length_q)
            pairs = half * width * (2 * width if half > 1 else width)
        else:
            hashed, width = length_q + length_k, min(max(self.bucket_size // 2, 1), length_q)
            blocks = length_q // width + min(2 * half, length_q)
            pairs = blocks * width * min(self.bucket_size, length_k)
        return batch * self.num_heads * self.rounds * self.head_dim * (2 * hashed * half + 4 * pairs)


def shares_qk(pattern: Pattern, shared_qk: bool | None) -> bool:
    """Whether queries and keys are one projection; :class:`Unsupported` where they come from different sequences."""
    if shared_qk and pattern.is_cross:
        raise Unsupported(f"reformer cannot share queries and keys in {pattern}; leave shared_qk at None")
    return not pattern.is_cross if shared_qk is None else shared_qk


class ReformerAttention(HeadwiseAttention):
    """Multi-head LSH attention; with shared queries and keys it has no key projection."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = ReformerCore

    def __init__(
        self, embed_dim: int, num_heads: int, pattern: Pattern | str, *, shared_qk: bool | None = None, **options: Any
    ) -> None:
        if shares_qk(Pattern(pattern), shared_qk):
            # The contract has the set on the class; here it follows from an option. Before super(), which reads it.
            self.projections = type(self).projections - {"key"}  # type: ignore[misc]
        super().__init__(embed_dim, num_heads, pattern, shared_qk=shared_qk, **options)
