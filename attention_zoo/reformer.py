"""Reformer: attention inside buckets of a locality-sensitive hash, in chunks of the sorted sequence.

Queries and keys are one projection ("shared QK"); a key is its query at unit length, so that a token and its key fall
into one bucket (section 2 of the paper). Round r = 1 .. R draws R_r in R^(D x b/2) with normal entries and hashes

    h(x) = argmax([x R_r ; -x R_r])                                   (angular LSH into b buckets)
    P_i  = {j : h(q_i) = h(k_j), j <= i in the causal form}           (the keys that i may see)
    o_i  = sum_{j in P_i} exp(q_i.k_j / sqrt(D) - z(i)) v_j,          k_j = q_j / ||q_j||,  z(i) the normaliser.

Tokens are sorted by (bucket, position) and cut into chunks of m, b = 2 L / m; with s_i the sorted place of i, the keys
are batched as

    Pt_i = {j in P_i : floor(s_i / m) - 1 <= floor(s_j / m) <= floor(s_i / m)}      (own chunk and the one before).

Over rounds P_i is the union. The paper divides a pair that meets in N_ij rounds by N_ij (appendix A); counting it in
the first of them alone gives the same sums, and needs no N_ij: the rounds' pairs are disjoint, and merge by their
log-sum-exp to attention over the union. A token sees itself only if it sees nothing else in any round.

Time O(R L (log L + m D)) and the hash's; memory O(R L m), a byte a pair of one chunk and two. The look-back is within
the round (a public implementation lets the first chunk of a round look into the round before, and is then not exact
even with one bucket).

Our choices. ``bucket_size`` is m. n tokens with n <= m are one bucket (there is nothing to save; as the public Hugging
Face form does), otherwise b = 2 ceil(n / m), hashed at once while b <= 2 m. More are factorised, as the authors' Trax
and the Hugging Face form do, so that the hash costs O(R L sqrt(L / m) D): with c_1 = ceil(sqrt(b) / 2), c_2 =
ceil(b / (4 c_1)), the bucket is (argmax([x R_1 ; -x R_1]), argmax([x R_2 ; -x R_2])) for the first c_1 columns of the
rotation and c_2 of a second one, ordered by the first. n counts the sample's valid tokens; padding is sorted behind
them. ``attend_across_buckets`` drops h(q_i) = h(k_j) and lets the first chunk look back to the last, as the common
public defaults do.

The causal self form is published, but causal in the values only: the sorted places, and so the chunks, depend on the
whole sequence. ``value_causal`` on the card.

Our extension: separate queries and keys (always in the cross patterns; ``shared_qk=False`` in the self patterns),
*key-anchored*, so that a query's output does not depend on other queries. Both sides are hashed by the same R_r; a
query takes the best bucket among those that hold a key, so that none is left without keys (of two factors, the best
first one that occurs, then the best second one that occurs with it); it sees the m keys of its bucket that lie furthest
along the bucket's direction (of two factors, by the sum of both; all of them, mostly: m / 2 is the mean). Keys keep
their length, self is not excluded, and rounds merge as above.

Source: N. Kitaev, L. Kaiser, A. Levskaya, "Reformer: The Efficient Transformer", ICLR 2020, arXiv:2001.04451.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, Support, Unsupported
from attention_zoo.primitives import (
    accumulation_dtype,
    attention_with_lse,
    frozen_normal,
    gather_rows,
    group_into_blocks,
    invert_permutation,
    merge_rounds,
    met_before,
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


class Space(NamedTuple):
    """The buckets: columns of each factor of the rotations (0: no such factor), and which, of both signs, there are."""

    first: int
    second: int
    has_first: Bool[Tensor, "#B 1 1 2*first"] | None
    has_second: Bool[Tensor, "#B 1 1 2*second"] | None


class Bucket(NamedTuple):
    """The bucket of each token by its factors (0 for one that there is not), and the token's sum along them."""

    first: Int64[Tensor, "B H L"]
    second: Int64[Tensor, "B H L"]
    along: Float[Tensor, "B H L"]


class Chunks(NamedTuple):
    """The sorted tokens of each round, in chunks of m. A token sees what has its place in one of its bounds."""

    order: Int64[Tensor, "R B H P*m"]
    before: Int64[Tensor, "R B H m"]  # what the first chunk looks back to, and its places
    place_before: Int64[Tensor, "#B 1 m"]
    place: Int64[Tensor, "R B H L"]
    bounds: list[tuple[Int64[Tensor, "R B H L"], Int64[Tensor, "R B H L"]]]  # first and last place of each interval
    width: int


class Anchored(NamedTuple):
    """Who meets whom, per round: P blocks of queries, each with the kept keys of one bucket."""

    query: Int64[Tensor, "R B H P n"]
    key: Int64[Tensor, "R B H P l"]
    exists: Bool[Tensor, "R B H P l"]
    slot: Int64[Tensor, "R B H Lq"]
    query_bucket: Int64[Tensor, "R B H Lq"]
    key_bucket: Int64[Tensor, "R B H Lk"]  # -1 for keys that are not kept


def factor_columns(tokens: int, bucket_size: int) -> tuple[int, int]:
    """Columns of the rotations for n tokens: half of b = 2 ceil(n / m), in two factors where b > 2 m."""
    half = max(math.ceil(tokens / bucket_size), 1)
    if half <= bucket_size:
        return half, 0
    first = math.ceil(math.sqrt(half / 2))
    return first, math.ceil(half / (2 * first))


def most_columns(tokens: int, bucket_size: int) -> tuple[int, int]:
    """Bounds of :func:`factor_columns` for any number up to ``tokens``."""
    first, second = factor_columns(tokens, bucket_size)
    # One factor has at most m columns; of two, the second falls by one where the first rises.
    return (max(first, bucket_size), second + 1) if second else (first, 0)


def bucket_space(length: int, valid: Bool[Tensor, "B L"] | None, bucket_size: int, device: torch.device) -> Space:
    if valid is None:
        first, second = factor_columns(length, bucket_size)
        one = (torch.arange(2, device=device) == 0)[None, None, None] if length <= bucket_size else None
        return Space(first, second, one, None)
    first, second = most_columns(length, bucket_size)
    count = valid.sum(-1)[:, None, None, None]
    half = ((count + bucket_size - 1) // bucket_size).clamp(min=1)
    two = half > bucket_size
    of_first = torch.where(two, (half.double() / 2).sqrt().ceil().long(), half)
    of_second = torch.where(two, (half + 2 * of_first - 1) // (2 * of_first), 0)
    number = torch.arange(first, device=device).repeat(2)
    place = torch.arange(2 * first, device=device)
    has_first = torch.where(count > bucket_size, number < of_first, place == 0)
    return Space(first, second, has_first, torch.arange(second, device=device).repeat(2) < of_second)


def signed_argmax(
    scores: Float[Tensor, "*n c"], has: Bool[Tensor, "*#n 2*c"] | None
) -> tuple[Int64[Tensor, "*n"], Float[Tensor, "*n"]]:
    """argmax and max of [x ; -x] over what there is; 0 and -inf where there is nothing."""
    width = scores.shape[-1]
    high = low = scores
    if has is not None:
        high = scores.masked_fill(~has[..., :width], -torch.inf)
        low = scores.masked_fill(~has[..., width:], torch.inf)
    (top, at), (bottom, below) = high.max(-1), low.min(-1)
    other = -bottom > top
    return torch.where(other, below + width, at), torch.where(other, -bottom, top)


def bucket_of(
    x: Float[Tensor, "B H L D"], rotation: Float[Tensor, "H D b1/2"], second: Float[Tensor, "H D b2/2"], space: Space
) -> Bucket:
    """h(x) = argmax([x R ; -x R]), by one rotation or by two."""
    at, along = signed_argmax(x @ rotation[..., : space.first], space.has_first)
    if not space.second:
        return Bucket(at, torch.zeros_like(at), along)
    at_second, along_second = signed_argmax(x @ second[..., : space.second], space.has_second)
    return Bucket(at, at_second, along + along_second.clamp(min=0))


def occupied_bucket_of(
    x: Float[Tensor, "B H L D"],
    rotation: Float[Tensor, "H D b1/2"],
    second: Float[Tensor, "H D b2/2"],
    space: Space,
    occupied: Bool[Tensor, "B H 2*first s"],
) -> Int64[Tensor, "B H L"]:
    """The best first factor that occurs, then the best second one that occurs with it, as one number."""
    at, _ = signed_argmax(x @ rotation[..., : space.first], occupied.any(-1)[..., None, :])
    if not space.second:
        return at
    seconds = gather_rows(occupied.to(x.dtype), at) > 0
    at_second, _ = signed_argmax(x @ second[..., : space.second], seconds)
    return at * occupied.shape[-1] + at_second


def sorted_chunks(
    bucket: Int64[Tensor, "R B H L"],
    valid: Bool[Tensor, "B L"] | None,
    num_buckets: int,
    bucket_size: int,
    *,
    causal: bool,
    across: bool,
) -> Chunks:
    """Sorts by (bucket, position), cuts into chunks, and looks one chunk back (the published form)."""
    length = bucket.shape[-1]
    width = min(bucket_size, length)
    chunks = math.ceil(length / width)
    # Padding fills one more bucket.
    group = bucket if valid is None else bucket.masked_fill(~valid[:, None], num_buckets)
    order = group.argsort(stable=True)
    place = invert_permutation(order)
    count = torch.full((1, 1, 1), length, device=bucket.device) if valid is None else valid.sum(-1)[:, None, None]
    chunk = place // width
    back = chunk - 1
    if across:
        final = (count - 1).clamp(min=0) // width
        back = torch.where((chunk == 0) & (final > 0), final, back)
    order = F.pad(order, (0, chunks * width - length))
    place_before = torch.arange(-width, 0, device=bucket.device).view(1, 1, -1)  # in nobody's bounds
    before = torch.zeros_like(order[..., :width])
    if across:
        at = final * width + place_before + width
        before = order.gather(-1, at.expand(*order.shape[:-1], -1))
        place_before = torch.where(final > 0, at, place_before)
        intervals = [((of * width).clamp(min=0), torch.minimum((of + 1) * width, count) - 1) for of in (chunk, back)]
        return Chunks(order, before, place_before, place, intervals, width)
    size = group.new_zeros(*group.shape[:-1], num_buckets + 1).scatter_add_(-1, group, torch.ones_like(group))
    after = size.cumsum(-1)
    first, last = ((x.gather(-1, bucket)) for x in (after - size, after - 1))
    first = torch.maximum(first, back * width)
    last = torch.minimum(last, (chunk + 1) * width - 1)
    if causal and valid is None:
        last = torch.minimum(last, place - 1)
    return Chunks(order, before, place_before, place, [(first, last)], width)


def look_back(x: Float[Tensor, "*n (P+1)*m D"], width: int) -> Float[Tensor, "*n P 2*m D"]:
    """Each chunk after the one before it, as a view of the tokens in their sorted places."""
    return x.unfold(-2, 2 * width, width).transpose(-2, -1)


def outside(
    place: Int64[Tensor, "*n P l"], bounds: list[tuple[Int64[Tensor, "*n P m"], Int64[Tensor, "*n P m"]]]
) -> Shaped[Tensor, "*n P m l"]:
    """A number for each pair: positive where the key's place is in none of the query's intervals, else at most 0.

    2 p lies in [2 first, 2 last] where |2 p - (first + last)| - (last - first) <= 0: a few passes over short integers.
    """
    found = None
    for first, last in bounds:
        excess = (2 * place)[..., None, :] - (first + last)[..., None]
        excess = excess.abs_().sub_((last - first)[..., None])
        found = excess if found is None else torch.minimum(found, excess, out=found)
    assert found is not None
    return found


def anchored_buckets(
    query_bucket: Int64[Tensor, "R B H Lq"],
    key_bucket: Int64[Tensor, "R B H Lk"],
    along: Float[Tensor, "R B H Lk"],
    size: Int64[Tensor, "R B H b+1"],
    bucket_size: int,
) -> Anchored:
    """Each query meets the first m keys along the direction of its best occupied bucket (our extension)."""
    length_q, length_k = query_bucket.shape[-1], key_bucket.shape[-1]
    buckets = size.shape[-1] - 1
    furthest = along.argsort(dim=-1, descending=True, stable=True)
    order = furthest.gather(-1, key_bucket.gather(-1, furthest).argsort(dim=-1, stable=True))
    first = size.cumsum(-1) - size
    blocks = group_into_blocks(query_bucket, buckets, min(max(bucket_size // 2, 1), length_q), trim=True)
    number = torch.arange(min(bucket_size, length_k), device=size.device)
    place = (first.gather(-1, blocks.group)[..., None] + number).clamp(max=length_k - 1)
    kept = invert_permutation(order) - first.gather(-1, key_bucket) < bucket_size
    return Anchored(
        blocks.item,
        order.gather(-1, place.flatten(-2)).view_as(place),
        number < size.gather(-1, blocks.group)[..., None],
        blocks.slot,
        query_bucket,
        torch.where(kept & (key_bucket < buckets), key_bucket, -1),
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

    rotations: Tensor  # R_r of each head, [H, R, D, b/2] (the first factor's where there are two)
    second_rotations: Tensor  # those of the second factor

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
        first, second = most_columns(self.max_length_key, bucket_size)
        self.register_buffer("rotations", frozen_normal(num_heads, rounds, head_dim, first))
        self.register_buffer("second_rotations", frozen_normal(num_heads, rounds, head_dim, second))

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        valid = None if key_padding_mask is None else ~key_padding_mask
        if self.shared_qk:
            k = q / torch.linalg.vector_norm(q, dim=-1, keepdim=True).clamp(min=1e-12)
            chunks = self._chunks(k, valid)
            found = [self._attend_chunks(q, k, v, chunks, r, valid) for r in range(self.rounds)]
            slot = list(chunks.place)
        else:
            anchored = self._anchored(q, k, valid)
            found = [self._attend_anchored(q, k, v, anchored, r) for r in range(self.rounds)]
            slot = list(anchored.slot)
        out, lse = merge_rounds([out.flatten(-3, -2) for out, _ in found], [lse.flatten(-2) for _, lse in found], slot)
        out = out.to(v.dtype)
        if not self.pattern.is_cross:
            alone = lse.detach() == -torch.inf
            if valid is not None:
                alone = alone & valid[:, None]
            out = torch.where(alone[..., None], v, out)
        return out

    def _attend_chunks(
        self, q: Tensor, k: Tensor, v: Tensor, chunks: Chunks, r: int, valid: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Each chunk to itself and the one before, without the pairs of earlier rounds."""
        width, lonely = chunks.width, chunks.order.shape[-1] == chunks.width
        order = chunks.order[r]
        tokens = order if lonely else torch.cat([chunks.before[r], order], dim=-1)
        q = gather_rows(q, order.unflatten(-1, (-1, width)))
        k, v = gather_rows(k, tokens), gather_rows(v, tokens)
        k, v = (x[..., None, :, :] if lonely else look_back(x, width) for x in (k, v))
        return attention_with_lse(
            q,
            k,
            v,
            scale=self.head_dim**-0.5,
            visible=self._sees(chunks, r, valid, tokens),
            dropout=self.dropout if self.training else 0.0,
        )

    def _sees(
        self, chunks: Chunks, r: int, valid: Tensor | None, tokens: Int64[Tensor, "B H (P+1)*m"]
    ) -> Bool[Tensor, "B H P m l"]:
        order, width = chunks.order[r], chunks.width
        span = min(2 * width, tokens.shape[-1])
        dtype = torch.int16 if 2 * tokens.shape[-1] < 1 << 15 else torch.int32

        def of_queries(x: Int64[Tensor, "B H L"]) -> Tensor:
            return x.gather(-1, order).to(dtype).unflatten(-1, (-1, width))

        def of_keys(x: Int64[Tensor, "B H L"]) -> Tensor:
            return x.gather(-1, tokens).to(dtype).unfold(-1, span, width)

        def outside_of(other: int, place: Tensor) -> Tensor:
            bounds = [(of_queries(low[other]), of_queries(high[other])) for low, high in chunks.bounds]
            return outside(place, bounds)

        # At hand, a key's place follows from where it lies; what lies at no place of a token is in nobody's bounds.
        place = torch.arange(order.shape[-1], device=order.device).expand(*chunks.place_before.shape[:-1], -1)
        if span > width:
            place = torch.cat([chunks.place_before, place], dim=-1)
        seen = outside_of(r, place.to(dtype).unfold(-1, span, width)).le_(0)
        if self.correct_duplicates:
            for earlier in range(r):
                seen.mul_(outside_of(earlier, of_keys(chunks.place[earlier])).gt_(0))
        position = torch.arange(chunks.place.shape[-1], device=order.device).expand_as(chunks.place[r])
        if self.pattern is not Pattern.CAUSAL_SELF:
            # The own chunk is the last part of what a query meets.
            seen.diagonal(span - width, -2, -1).fill_(0)
        elif valid is not None or self.attend_across_buckets:
            seen.mul_(of_keys(position)[..., None, :] < of_queries(position)[..., None])
        return seen.to(torch.uint8).view(torch.bool)

    def _attend_anchored(self, q: Tensor, k: Tensor, v: Tensor, anchored: Anchored, r: int) -> tuple[Tensor, Tensor]:
        query, key = anchored.query[r], anchored.key[r]
        visible = anchored.exists[r][..., None, :]
        if self.pattern is Pattern.CAUSAL_SELF:
            visible = visible & (key[..., None, :] <= query[..., :, None])
        if self.correct_duplicates and r > 0:
            visible = visible & ~met_before(
                (ids.gather(-1, query.flatten(-2)).view_as(query) for ids in anchored.query_bucket[:r]),
                (ids.gather(-1, key.flatten(-2)).view_as(key) for ids in anchored.key_bucket[:r]),
            )
        return attention_with_lse(
            gather_rows(q, query),
            gather_rows(k, key),
            gather_rows(v, key),
            scale=self.head_dim**-0.5,
            visible=visible,
            dropout=self.dropout if self.training else 0.0,
        )

    @torch.no_grad()
    def _rotations(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        dtype = accumulation_dtype(x)
        return [(self.rotations[:, r].to(dtype), self.second_rotations[:, r].to(dtype)) for r in range(self.rounds)]

    @torch.no_grad()
    def _chunks(self, k: Tensor, valid: Tensor | None) -> Chunks:
        space = bucket_space(k.shape[2], valid, self.bucket_size, k.device)
        x, seconds = k.to(accumulation_dtype(k)), max(2 * space.second, 1)
        with without_autocast(k):
            found = [bucket_of(x, *rotation, space) for rotation in self._rotations(k)]
        return sorted_chunks(
            torch.stack([bucket.first * seconds + bucket.second for bucket in found]),
            valid,
            2 * space.first * seconds,
            self.bucket_size,
            causal=self.pattern is Pattern.CAUSAL_SELF,
            across=self.attend_across_buckets,
        )

    @torch.no_grad()
    def _anchored(self, q: Tensor, k: Tensor, valid: Tensor | None) -> Anchored:
        space = bucket_space(k.shape[2], valid, self.bucket_size, k.device)
        x, y, seconds = q.to(accumulation_dtype(q)), k.to(accumulation_dtype(k)), max(2 * space.second, 1)
        buckets = 2 * space.first * seconds
        found = []
        with without_autocast(q):
            for rotation in self._rotations(k):
                bucket = bucket_of(y, *rotation, space)
                group = bucket.first * seconds + bucket.second
                if valid is not None:  # padding fills one more bucket, which no query can take
                    group = group.masked_fill(~valid[:, None], buckets)
                size = group.new_zeros(*group.shape[:-1], buckets + 1).scatter_add_(-1, group, torch.ones_like(group))
                occupied = (size[..., :buckets] > 0).unflatten(-1, (-1, seconds))
                found.append((occupied_bucket_of(x, *rotation, space, occupied), group, bucket.along, size))
        query, key, along, size = (torch.stack(part) for part in zip(*found, strict=True))
        return anchored_buckets(query, key, along, size, self.bucket_size)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        columns, chunks = sum(factor_columns(length_k, self.bucket_size)), math.ceil(length_k / self.bucket_size)
        if self.shared_qk:
            hashed, width = length_k, min(self.bucket_size, length_q)
            pairs = chunks * width * (2 * width if chunks > 1 else width)
        else:
            hashed, width = length_q + length_k, min(max(self.bucket_size // 2, 1), length_q)
            blocks = length_q // width + min(self._buckets(length_k), length_q)
            pairs = blocks * width * min(self.bucket_size, length_k)
        return batch * self.num_heads * self.rounds * self.head_dim * (2 * hashed * columns + 4 * pairs)

    def _buckets(self, length: int) -> int:
        first, second = factor_columns(length, self.bucket_size)
        return 2 * first * max(2 * second, 1)


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
