"""SMYRF: attention inside balanced clusters of queries and keys, found by asymmetric locality-sensitive hashing.

Per sample and head, with M_Q = max_i ||q_i||, M_K = max_j ||k_j|| and S^2 = M_Q^2 + M_K^2 (section 3.2 of the paper):

    F(q) = [q ; 0 ; sqrt(S^2 - ||q||^2)],    G(k) = [k ; sqrt(S^2 - ||k||^2) ; 0]
    ||F(q) - G(k)||^2 = 2 (S^2 - q . k)      so that the nearest neighbours are the largest logits.

Round r = 1 .. R draws a_r ~ N(0, I) and hashes by h_r(x) = a_r . x. (E2LSH adds an offset and floors; the authors sort
the raw projections, on which an offset common to queries and keys and a bucket width have no effect.) Queries and keys
are sorted apart by their hashes, each list is cut into C equal pieces, and piece c of the queries attends piece c of
the keys. Rounds are merged by the log-sum-exp lse_r(i) of their logits:

    o_i = sum_r exp(lse_r(i) - logsumexp_r lse_r(i)) o_r(i) = sum_j m_ij e^(s q_i.k_j) v_j / sum_j m_ij e^(s q_i.k_j)

with s = D^-1/2 and m_ij the number of rounds in which i and j share a cluster. The published form keeps m_ij, so that
many rounds tend to a collision-weighted softmax; ``correct_duplicates`` puts min(m_ij, 1) in its place, which tends to
softmax.

With C = ceil(Lq / cluster_size): time O(R (L log L + Lq (Lk / C) D)), memory O(R Lq Lk / C).

Published: noncausal self and cross (the authors' BigGAN has Lq = 4 Lk). Pieces differ by one where C does not divide.
Padded tokens are in no norm, no piece and no count; a padded query reads the last piece. A sample with fewer keys than
C shares each key among neighbouring pieces of queries.

Our extensions. Both are *key-anchored*: no statistic over queries, so that a query's output does not depend on others.
Each query is scaled to the keys' bound, F(q M_K / ||q||), which leaves its ranking of the keys as it is; the n keys are
cut into ceil(n / cluster_size) equal pieces, and a query joins the piece whose interval of hashes holds its own hash,
the borders lying half-way between neighbouring keys.

* causal cross: the anchored form over the whole source.
* causal self, strict: chunks of w = ``cluster_size`` positions. A query t sees its own chunk up to itself, densely and
  in every round, and completed chunks by the anchored form, in blocks of n = w, 2w, 4w, ... positions: wherever
  floor(t / n) is odd, the n keys before position n floor(t / n) are one source. These sources are disjoint and cover
  all completed chunks; each is hashed once, with its own M_K, and time stays O(R L (log L)^2).

Source: G. Daras, N. Kitaev, A. Odena, A. G. Dimakis, "SMYRF: Efficient Attention using Asymmetric Clustering",
NeurIPS 2020, arXiv:2010.05315. Defaults: those of the authors' BigGAN command line (4 rounds, clusters of 32); their
language configuration has 8 rounds.
"""

from __future__ import annotations

import math
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, Support
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
    name="smyrf",
    title="SMYRF: Efficient Attention using Asymmetric Clustering",
    authors="Daras, Kitaev, Odena, Dimakis",
    year=2020,
    paper="arXiv:2010.05315",
    family="hashing",
    exact=False,
    discrete=True,
    time_order="L log L",
    memory_order="L log L",  # causal self: each chunk has its part in log L sources
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.NONCAUSAL_CROSS: Support.PUBLISHED,
        Pattern.CAUSAL_SELF: Support.EXTENSION,
        Pattern.CAUSAL_CROSS: Support.EXTENSION,
    },
    collapses=Collapse({"cluster_size": 1 << 20}),  # any number not below that of the queries (and of the keys)
)


class Clusters(NamedTuple):
    """Who meets whom, per round: P blocks of m queries and l keys; ``*n`` is ``B H`` or ``B H G`` (G sources)."""

    query: Int64[Tensor, "*n R P m"]
    key: Int64[Tensor, "*n R P l"]
    key_visible: Bool[Tensor, "*#n #R P l"] | None
    slot: Int64[Tensor, "*n R Lq"]  # where, among the P m places, the query is
    query_piece: Int64[Tensor, "*n R Lq"]
    key_piece: Int64[Tensor, "*n R Lk"]  # -1 for padding


def transform_queries(q: Float[Tensor, "*n L D"], s2: Float[Tensor, "*n 1 1"]) -> Float[Tensor, "*n L D+2"]:
    """F(q) = [q ; 0 ; sqrt(S^2 - ||q||^2)]; rounding below zero is cut off."""
    rest = (s2 - q.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([q, torch.zeros_like(rest), rest], dim=-1)


def transform_keys(k: Float[Tensor, "*n L D"], s2: Float[Tensor, "*n 1 1"]) -> Float[Tensor, "*n L D+2"]:
    """G(k) = [k ; sqrt(S^2 - ||k||^2) ; 0]; rounding below zero (or of padding above the bound) is cut off."""
    rest = (s2 - k.square().sum(-1, keepdim=True)).clamp(min=0).sqrt()
    return torch.cat([k, rest, torch.zeros_like(rest)], dim=-1)


def largest_square(x: Float[Tensor, "*n L D"], valid: Bool[Tensor, "*#n L"] | None) -> Float[Tensor, "*n 1 1"]:
    """M^2 = max ||x||^2 over the valid tokens, 0 where there is none."""
    squares = x.square().sum(-1)
    if valid is not None:
        squares = squares.masked_fill(~valid, 0.0)
    return squares.amax(-1)[..., None, None]


def count_valid(hashes: Float[Tensor, "*n R L"], valid: Bool[Tensor, "*#n 1 L"] | None) -> Int64[Tensor, "*#n 1 1"]:
    if valid is None:
        return torch.full((1,) * hashes.ndim, hashes.shape[-1], device=hashes.device)
    return valid.sum(-1, keepdim=True)


def piece_of_rank(
    rank: Int64[Tensor, "*#r"], count: Int64[Tensor, "*#r"], pieces: Int64[Tensor, "*#r"]
) -> Int64[Tensor, "*#r"]:
    """The c with floor(c n / C) <= rank < floor((c + 1) n / C), for n items in C pieces; the last beyond them."""
    return torch.minimum(((rank + 1) * pieces - 1) // count.clamp(min=1), pieces - 1)


def keys_of_pieces(
    order: Int64[Tensor, "*n R Lk"],
    piece: Int64[Tensor, "*#n #R P"],
    count: Int64[Tensor, "*#n 1 1"],
    pieces: Int64[Tensor, "*#n 1 1"],
    width: int,
) -> tuple[Int64[Tensor, "*n R P l"], Bool[Tensor, "*#n #R P l"]]:
    """The keys of ranks floor(c n / C) .. floor((c + 1) n / C) - 1 for the piece c of each block, and which exist."""
    start, end = piece * count // pieces, (piece + 1) * count // pieces
    rank = start[..., None] + torch.arange(width, device=order.device)
    places = rank.clamp(max=order.shape[-1] - 1).expand(*order.shape[:-1], *rank.shape[-2:])
    return order.gather(-1, places.flatten(-2)).view(places.shape), rank < end[..., None]


def pieces_of_keys(
    order: Int64[Tensor, "*n R Lk"], count: Int64[Tensor, "*#n 1 1"], pieces: Int64[Tensor, "*#n 1 1"]
) -> Int64[Tensor, "*n R Lk"]:
    rank = torch.arange(order.shape[-1], device=order.device)
    piece = torch.where(rank < count, piece_of_rank(rank, count, pieces), -1)
    return torch.empty_like(order).scatter_(-1, order, piece.expand_as(order))


def balanced_clusters(
    query_hash: Float[Tensor, "*n R Lq"],
    key_hash: Float[Tensor, "*n R Lk"],
    query_valid: Bool[Tensor, "*#n 1 Lq"] | None,
    key_valid: Bool[Tensor, "*#n 1 Lk"] | None,
    cluster_size: int,
) -> Clusters:
    """Sorts queries and keys by their hashes and cuts both into C pieces (the published form)."""
    length_q, length_k = query_hash.shape[-1], key_hash.shape[-1]
    queries, keys = count_valid(query_hash, query_valid), count_valid(key_hash, key_valid)
    pieces = ((queries + cluster_size - 1) // cluster_size).clamp(min=1)
    key_pieces = torch.minimum(pieces, keys.clamp(min=1))
    most = math.ceil(length_q / cluster_size)

    # Padded queries come last and fill places of their own after the last piece, in one more block at most.
    width = math.ceil(length_q / most) if query_valid is None else min(cluster_size, length_q)
    blocks = most + (query_valid is not None)
    rank = torch.arange(length_q, device=query_hash.device)
    piece = piece_of_rank(rank, queries, pieces)
    place = torch.where(
        rank < queries, piece * width + rank - piece * queries // pieces, pieces * width + rank - queries
    )
    rank_of_query = invert_permutation(sort_valid_first(query_hash, query_valid))
    slot = place.expand_as(rank_of_query).gather(-1, rank_of_query)
    query = slot.new_zeros(*slot.shape[:-1], blocks * width).scatter_(-1, slot, rank.expand_as(slot))

    block = torch.minimum(torch.arange(blocks, device=rank.device), pieces - 1)
    key_width = math.ceil(length_k / most) if query_valid is None else width
    order = sort_valid_first(key_hash, key_valid)
    key, visible = keys_of_pieces(order, block * key_pieces // pieces, keys, key_pieces, key_width)
    return Clusters(
        query.unflatten(-1, (blocks, width)),
        key,
        None if key_valid is None and length_k % most == 0 else visible,
        slot,
        (piece * key_pieces // pieces).expand_as(slot).gather(-1, rank_of_query),
        pieces_of_keys(order, keys, key_pieces),
    )


def sort_valid_first(hashes: Float[Tensor, "*n R L"], valid: Bool[Tensor, "*#n 1 L"] | None) -> Int64[Tensor, "*n R L"]:
    return (hashes if valid is None else hashes.masked_fill(~valid, torch.inf)).argsort(dim=-1, stable=True)


def anchored_clusters(
    query_hash: Float[Tensor, "*n R Lq"],
    key_hash: Float[Tensor, "*n R Lk"],
    key_valid: Bool[Tensor, "*#n 1 Lk"] | None,
    cluster_size: int,
) -> Clusters:
    """Cuts the keys into equal pieces; each query joins the piece in whose interval its hash lies (our extension)."""
    length_q, length_k = query_hash.shape[-1], key_hash.shape[-1]
    keys = count_valid(key_hash, key_valid)
    pieces = ((keys + cluster_size - 1) // cluster_size).clamp(min=1)
    order = sort_valid_first(key_hash, key_valid)
    number = torch.arange(1, math.ceil(length_k / cluster_size), device=order.device)
    first = (number * keys // pieces).expand(*order.shape[:-1], -1).clamp(max=length_k - 1)
    ascending = key_hash.gather(-1, order)
    border = (ascending.gather(-1, (first - 1).clamp(min=0)) + ascending.gather(-1, first)) / 2
    border = border.masked_fill(number >= pieces, torch.inf)
    query_piece = torch.searchsorted(border, query_hash.contiguous(), right=True)
    groups = group_into_blocks(query_piece, len(number) + 1, min(cluster_size, length_q))
    key, visible = keys_of_pieces(order, groups.group, keys, pieces, min(cluster_size, length_k))
    return Clusters(groups.item, key, visible, groups.slot, query_piece, pieces_of_keys(order, keys, pieces))


class SmyrfCore(AttentionCore):
    """SMYRF on projected heads.

    Args:
        rounds: R, the number of independent hashes.
        cluster_size: queries per cluster at most (keys per cluster, and positions per chunk, in the causal patterns).
        correct_duplicates: count a pair that meets in several rounds once (our option; the paper counts it each time).
    """

    hashes: Tensor  # a_r of each head, [H, R, D + 2]

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
        cluster_size: int = 32,
        correct_duplicates: bool = False,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        for name, value in (("rounds", rounds), ("cluster_size", cluster_size)):
            if value < 1:
                raise ValueError(f"{name}={value} is not positive; smyrf needs at least 1")
        self.rounds = rounds
        self.cluster_size = cluster_size
        self.correct_duplicates = correct_duplicates
        self.register_buffer("hashes", frozen_normal(num_heads, rounds, head_dim + 2))

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        key_valid = None if key_padding_mask is None else ~key_padding_mask[:, None]
        if self.pattern is Pattern.CAUSAL_SELF:
            out = self._attend_past(q, k, v, key_valid)
        elif self.pattern is Pattern.CAUSAL_CROSS:
            out, _ = self._attend(q, k, v, self._anchored(q, k, key_valid))
        else:
            out, _ = self._attend(q, k, v, self._balanced(q, k, key_valid))
        return out.to(v.dtype)

    @torch.no_grad()
    def _balanced(self, q: Tensor, k: Tensor, key_valid: Tensor | None) -> Clusters:
        q, k = q.to(accumulation_dtype(q)), k.to(accumulation_dtype(k))
        query_valid = None if self.pattern.is_cross else key_valid
        s2 = largest_square(q, query_valid) + largest_square(k, key_valid)
        return balanced_clusters(
            self._hash(transform_queries(q, s2)),
            self._hash(transform_keys(k, s2)),
            None if query_valid is None else query_valid[..., None, :],
            None if key_valid is None else key_valid[..., None, :],
            self.cluster_size,
        )

    @torch.no_grad()
    def _anchored(self, q: Tensor, k: Tensor, key_valid: Tensor | None) -> Clusters:
        q, k = q.to(accumulation_dtype(q)), k.to(accumulation_dtype(k))
        mk2 = largest_square(k, key_valid)
        return anchored_clusters(
            self._hash(transform_queries(F.normalize(q, dim=-1) * mk2.sqrt(), 2 * mk2)),
            self._hash(transform_keys(k, 2 * mk2)),
            None if key_valid is None else key_valid[..., None, :],
            self.cluster_size,
        )

    def _hash(self, x: Float[Tensor, "B H *G L D+2"]) -> Float[Tensor, "B H *G R L"]:
        projections = self.hashes.to(x.dtype).view(self.num_heads, *(1,) * (x.ndim - 4), self.rounds, -1)
        with without_autocast(x):
            return projections @ x.transpose(-2, -1)

    def _attend(
        self, q: Float[Tensor, "*n Lq D"], k: Float[Tensor, "*n Lk D"], v: Float[Tensor, "*n Lk Dv"], clusters: Clusters
    ) -> tuple[Float[Tensor, "*n Lq Dv"], Float[Tensor, "*n Lq"]]:
        """Softmax inside each cluster, then the merge of the rounds."""
        met = None
        if self.correct_duplicates and self.rounds > 1:
            met = count_shared_rounds([clusters.query_piece], clusters.key_piece, clusters.query, clusters.key)
        out, lse = attention_with_lse(
            gather_rows(q, clusters.query),
            gather_rows(k, clusters.key),
            gather_rows(v, clusters.key),
            scale=self.head_dim**-0.5,
            visible=None if clusters.key_visible is None else clusters.key_visible[..., None, :],
            divisor=met,
            dropout=self.dropout if self.training else 0.0,
        )
        out = gather_rows(out.flatten(-3, -2), clusters.slot)
        return merge_by_lse(out, lse.flatten(-2).gather(-1, clusters.slot), dim=-2)

    def _attend_past(self, q: Tensor, k: Tensor, v: Tensor, key_valid: Tensor | None) -> Float[Tensor, "B H L Dv"]:
        """Strictly causal: the own chunk densely, completed chunks by anchored clusters of 1, 2, 4, ... chunks."""
        length = q.shape[2]
        parts = [self._attend_chunk(q, k, v, key_valid)]
        block = self.cluster_size
        while block < length:
            sources = math.ceil((length - block) / (2 * block))
            first = 2 * block * torch.arange(sources, device=q.device)[:, None]
            of_key = first + torch.arange(block, device=q.device)
            of_query = (of_key + block).clamp(max=length - 1)
            q_, k_, v_ = q[:, :, of_query], k[:, :, of_key], v[:, :, of_key]
            clusters = self._anchored(q_, k_, None if key_valid is None else key_valid[..., of_key])
            out, lse = self._attend(q_, k_, v_, clusters)
            parts.append((every_second_block(out, length, 0.0), every_second_block(lse, length, -torch.inf)))
            block *= 2
        out, lse = (torch.stack(part) for part in zip(*parts, strict=True))
        return merge_by_lse(out, lse, dim=0)[0]

    def _attend_chunk(
        self, q: Tensor, k: Tensor, v: Tensor, key_valid: Tensor | None
    ) -> tuple[Float[Tensor, "B H L Dv"], Float[Tensor, "B H L"]]:
        """The own chunk up to the query itself. In the published weighting its keys are met in every round."""
        length = q.shape[2]
        width = min(self.cluster_size, length)
        short = -length % width
        q, k, v = (F.pad(x, (0, 0, 0, short)).unflatten(2, (-1, width)) for x in (q, k, v))
        visible = torch.ones(width, width, dtype=torch.bool, device=q.device).tril()
        if key_valid is not None:
            visible = visible & F.pad(key_valid, (0, short)).unflatten(-1, (-1, 1, width))
        out, lse = attention_with_lse(
            q, k, v, scale=self.head_dim**-0.5, visible=visible, dropout=self.dropout if self.training else 0.0
        )
        if not self.correct_duplicates:
            lse = lse + math.log(self.rounds)
        return out.flatten(2, 3)[:, :, :length], lse.flatten(2, 3)[:, :, :length]

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        size, per_head = self.cluster_size, batch * self.num_heads

        def hashing(lengths: int) -> int:
            return 2 * self.rounds * lengths * (self.head_dim + 2)

        def anchored(queries: int, keys: int) -> int:
            width, pieces = min(size, queries), math.ceil(keys / size)
            blocks = queries // width + min(pieces, queries)
            return hashing(queries + keys) + 4 * self.rounds * blocks * width * min(size, keys) * self.head_dim

        if self.pattern is Pattern.CAUSAL_CROSS:
            return per_head * anchored(length_q, length_k)
        if self.pattern is Pattern.CAUSAL_SELF:
            width = min(size, length_q)
            total = 4 * math.ceil(length_q / width) * width**2 * self.head_dim
            block = size
            while block < length_q:
                total += math.ceil((length_q - block) / (2 * block)) * anchored(block, block)
                block *= 2
            return per_head * total
        pieces = math.ceil(length_q / size)
        pairs = pieces * math.ceil(length_q / pieces) * math.ceil(length_k / pieces)
        return per_head * (hashing(length_q + length_k) + 4 * self.rounds * pairs * self.head_dim)


def every_second_block(x: Float[Tensor, "B H G n *d"], length: int, fill: float) -> Float[Tensor, "B H L *d"]:
    """Blocks of n at positions n, 3n, 5n, ..., with ``fill`` between and after them."""
    spread = torch.stack([torch.full_like(x, fill), x], dim=3).flatten(2, 4)[:, :, :length]
    missing = length - spread.shape[2]
    if missing:
        spread = torch.cat([spread, spread.new_full((*x.shape[:2], missing, *x.shape[4:]), fill)], dim=2)
    return spread


class SmyrfAttention(HeadwiseAttention):
    """Multi-head attention with SMYRF clusters per head; the projections are those of exact attention."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = SmyrfCore
