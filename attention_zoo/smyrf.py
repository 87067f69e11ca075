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

With C = ceil(Lq / cluster_size): time O(R (L log L + Lq (Lk / C) D)), memory O(R L D).

Published: noncausal self and cross (the authors' BigGAN has Lq = 4 Lk). Pieces differ by one where C does not divide.
Padded tokens are in no norm, no piece and no count; a padded query reads the last piece. A sample with fewer keys than
C shares each key among neighbouring pieces of queries.

Our extensions are *key-anchored*: no statistic over queries, so that a query's output does not depend on others. With
the mean kbar of a source's n keys and kappa^2 = mean ||k - kbar||^2,

    F(q) = kappa q / ||q||,    G(k) = k - kbar,    h_r(x) = a_r . x        (the first D entries of a_r)

neither of which changes the ranking of the keys for a query: kbar adds the same to all its logits. The sorted keys are
cut into ceil(n / cluster_size) equal pieces, and a query joins the piece whose interval of hashes holds its own hash,
the borders lying half-way between neighbouring keys. The coordinates of S are left out: they move all keys away from
all queries, by about a_r S, which sorting the two apart undoes but borders between keys do not.

* causal cross: the anchored form over the whole source.
* causal self, strict. Positions are cut into chunks of w = ``cluster_size``. A query sees its own chunk up to itself,
  densely, and in each round one piece of one source of completed chunks. The query in chunk c > 0 has K = floor(log2 c)
  + 1 sources: for n = 1, 2, 4, ..., 2^(K-1), the n chunks before chunk n floor(c / n). Together they are all of its
  past. In round r it visits that with n = 2^(K - 1 - t), t = r mod K where K <= R; where K > R, t = r but in the last
  round, in which head g takes t = R - 1 + g mod (K - R + 1): all heads visit the R - 1 longest, and between them the
  rest. Each source belongs to n chunks of queries, so that a round costs one piece of keys per query, and the keys are
  sorted once a round. In the published counting, a source is visited in R / K rounds on average, and so often, but at
  least once, the own chunk counts.

Source: G. Daras, N. Kitaev, A. Odena, A. G. Dimakis, "SMYRF: Efficient Attention using Asymmetric Clustering",
NeurIPS 2020, arXiv:2010.05315. Defaults: those of the authors' BigGAN command line (4 rounds, clusters of 32); their
language configuration has 8 rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, Support
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
    name="smyrf",
    title="SMYRF: Efficient Attention using Asymmetric Clustering",
    authors="Daras, Kitaev, Odena, Dimakis",
    year=2020,
    paper="arXiv:2010.05315",
    family="hashing",
    exact=False,
    discrete=True,
    time_order="L log L",
    memory_order="L",
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.NONCAUSAL_CROSS: Support.PUBLISHED,
        Pattern.CAUSAL_SELF: Support.EXTENSION,
        Pattern.CAUSAL_CROSS: Support.EXTENSION,
    },
    collapses=Collapse({"cluster_size": 1 << 20}),  # any number not below that of the queries (and of the keys)
)


class Clusters(NamedTuple):
    """Who meets whom, per round: P blocks of m queries and l keys."""

    query: Int64[Tensor, "R B H P m"]
    key: Int64[Tensor, "R B H P l"]
    key_visible: Bool[Tensor, "R B H P l"] | None
    slot: Int64[Tensor, "R B H Lq"]  # where, among the P m places, the query is
    query_piece: Int64[Tensor, "R B H Lq"]
    key_piece: Int64[Tensor, "R B H Lk"]  # -1 for padding


class Sources(NamedTuple):
    """What the queries of each chunk visit in the causal self form; ``H`` differ, samples do not."""

    start: Int64[Tensor, "R 1 H C"]  # the first chunk that visits the same source
    chunks: Int64[Tensor, "R 1 H C"]  # n: of the source, and of those that visit it; 0 where there is no past
    source_count: Int64[Tensor, " C"]  # K


def hash_queries(
    q: Float[Tensor, "B H L D"], hashes: Float[Tensor, "H R D+2"], s2: Float[Tensor, "B H 1 1"]
) -> Float[Tensor, "R B H L"]:
    """a . F(q) with F(q) = [q ; 0 ; sqrt(S^2 - ||q||^2)]; rounding below zero is cut off."""
    return _project(q, hashes[..., :-2]) + hashes[..., -1].T[:, None, :, None] * _rest(q, s2)


def hash_keys(
    k: Float[Tensor, "B H L D"], hashes: Float[Tensor, "H R D+2"], s2: Float[Tensor, "B H 1 1"]
) -> Float[Tensor, "R B H L"]:
    """a . G(k) with G(k) = [k ; sqrt(S^2 - ||k||^2) ; 0]; rounding below zero (or of padding) is cut off."""
    return _project(k, hashes[..., :-2]) + hashes[..., -2].T[:, None, :, None] * _rest(k, s2)


def _project(x: Float[Tensor, "B H L D"], a: Float[Tensor, "H R D"]) -> Float[Tensor, "R B H L"]:
    return (a @ x.transpose(-2, -1)).permute(2, 0, 1, 3).contiguous()


def _project_unit(x: Float[Tensor, "B H L D"], a: Float[Tensor, "H R D"]) -> Float[Tensor, "R B H L"]:
    """a . x / ||x||, 0 for x = 0."""
    return _project(x, a) / torch.linalg.vector_norm(x, dim=-1).clamp(min=torch.finfo(x.dtype).tiny)


def _rest(x: Float[Tensor, "B H L D"], s2: Float[Tensor, "B H 1 1"]) -> Float[Tensor, "B H L"]:
    return (s2[..., 0] - torch.linalg.vector_norm(x, dim=-1).square()).clamp(min=0).sqrt()


def largest_square(x: Float[Tensor, "*n L D"], valid: Bool[Tensor, "*#n L"] | None) -> Float[Tensor, "*n 1 1"]:
    """M^2 = max ||x||^2 over the valid tokens, 0 where there is none."""
    squares = torch.linalg.vector_norm(x, dim=-1).square()
    if valid is not None:
        squares = squares.masked_fill(~valid, 0.0)
    return squares.amax(-1)[..., None, None]


def count_valid(hashes: Float[Tensor, "*n R L"], valid: Bool[Tensor, "*#n 1 L"] | None) -> Int64[Tensor, "#*n 1"]:
    if valid is None:
        return torch.full((1,) * hashes.ndim, hashes.shape[-1], device=hashes.device)
    return valid.sum(-1, keepdim=True)


def piece_of_rank(
    rank: Int64[Tensor, "*#r"], count: Int64[Tensor, "*#r"], pieces: Int64[Tensor, "*#r"]
) -> Int64[Tensor, "*#r"]:
    """The c with floor(c n / C) <= rank < floor((c + 1) n / C), for n items in C pieces; the last beyond them."""
    return torch.minimum(((rank + 1) * pieces - 1) // count.clamp(min=1), pieces - 1)


def keys_of_pieces(
    order: Int64[Tensor, "R B H Lk"],
    piece: Int64[Tensor, "*#n #R P"],
    count: Int64[Tensor, "#*n 1"],
    pieces: Int64[Tensor, "#*n 1"],
    width: int,
) -> tuple[Int64[Tensor, "*n R P l"], Bool[Tensor, "*#n #R P l"]]:
    """The keys of ranks floor(c n / C) .. floor((c + 1) n / C) - 1 for the piece c of each block, and which exist."""
    start, end = piece * count // pieces, (piece + 1) * count // pieces
    rank = start[..., None] + torch.arange(width, device=order.device)
    places = rank.clamp(max=order.shape[-1] - 1).expand(*order.shape[:-1], *rank.shape[-2:])
    return order.gather(-1, places.flatten(-2)).view(places.shape), rank < end[..., None]


def pieces_of_keys(
    order: Int64[Tensor, "R B H Lk"], count: Int64[Tensor, "#*n 1"], pieces: Int64[Tensor, "#*n 1"]
) -> Int64[Tensor, "R B H Lk"]:
    rank = torch.arange(order.shape[-1], device=order.device)
    piece = torch.where(rank < count, piece_of_rank(rank, count, pieces), -1)
    return torch.empty_like(order).scatter_(-1, order, piece.expand_as(order))


def balanced_clusters(
    query_hash: Float[Tensor, "R B H Lq"],
    key_hash: Float[Tensor, "R B H Lk"],
    query_valid: Bool[Tensor, "B 1 Lq"] | None,
    key_valid: Bool[Tensor, "B 1 Lk"] | None,
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
        None if key_valid is None and length_k % most == 0 else visible.expand_as(key),
        slot,
        (piece * key_pieces // pieces).expand_as(slot).gather(-1, rank_of_query),
        pieces_of_keys(order, keys, key_pieces),
    )


def sort_valid_first(hashes: Float[Tensor, "*n R L"], valid: Bool[Tensor, "*#n 1 L"] | None) -> Int64[Tensor, "*n R L"]:
    return (hashes if valid is None else hashes.masked_fill(~valid, torch.inf)).argsort(dim=-1, stable=True)


def anchored_clusters(
    query_hash: Float[Tensor, "R B H Lq"],
    key_hash: Float[Tensor, "R B H Lk"],
    key_valid: Bool[Tensor, "B 1 Lk"] | None,
    cluster_size: int,
) -> Clusters:
    """Cuts the keys into equal pieces; each query joins the piece in whose interval its hash lies (our extension)."""
    length_q, length_k = query_hash.shape[-1], key_hash.shape[-1]
    keys = count_valid(key_hash, key_valid)
    pieces = ((keys + cluster_size - 1) // cluster_size).clamp(min=1)
    order = sort_valid_first(key_hash, key_valid)
    number = torch.arange(1, math.ceil(length_k / cluster_size), device=order.device)
    border = borders(key_hash.gather(-1, order), (number * keys // pieces).expand(*order.shape[:-1], -1))
    border = border.masked_fill(number >= pieces, torch.inf)
    query_piece = torch.searchsorted(border, query_hash.contiguous(), right=True)
    groups = group_into_blocks(query_piece, len(number) + 1, min(block_size(cluster_size), length_q), trim=True)
    key, visible = keys_of_pieces(order, groups.group, keys, pieces, min(cluster_size, length_k))
    return Clusters(
        groups.item, key, visible.expand_as(key), groups.slot, query_piece, pieces_of_keys(order, keys, pieces)
    )


def borders(ascending: Float[Tensor, "*n L"], first: Int64[Tensor, "*n C"]) -> Float[Tensor, "*n C"]:
    """Half-way between the sorted hashes of ranks first - 1 and first."""
    low, high = (first - 1).clamp(min=0), first.clamp(max=ascending.shape[-1] - 1)
    return (ascending.gather(-1, low) + ascending.gather(-1, high)) / 2


def block_size(cluster_size: int) -> int:
    """Queries are laid out in blocks of 5/4 of a cluster: pieces with about as many as expected fill one each."""
    return cluster_size + cluster_size // 4


def past_sources(length: int, cluster_size: int, rounds: int, heads: int, device: torch.device) -> Sources:
    """The source of each chunk, for as many chunks as the last source is visited by (some may be past the end)."""
    last = max(math.ceil(length / cluster_size) - 1, 0)
    chunk = torch.arange(1 << last.bit_length(), device=device)
    powers = torch.tensor([1 << level for level in range(last.bit_length())], dtype=chunk.dtype, device=device)
    count = (chunk[:, None] >= powers).sum(-1)
    turn, head = torch.arange(rounds, device=device)[:, None, None, None], torch.arange(heads, device=device)[:, None]
    rest = (count - rounds + 1).clamp(min=1)
    level = count - 1 - torch.where(turn == rounds - 1, turn + head % rest, turn) % count.clamp(min=1)
    chunks = torch.where(count > 0, torch.ones_like(level) << level.clamp(min=0), 0)
    return Sources(chunk // chunks.clamp(min=1) * chunks.clamp(min=1), chunks, count)


def source_totals(x: Float[Tensor, "#R B H L"], sources: Sources, cluster_size: int) -> Float[Tensor, "R B H C"]:
    """For each chunk, the sum of x over the positions of its source."""
    return source_sums(x[..., None], sources, cluster_size)[..., 0]


def source_sums(x: Float[Tensor, "#R B H L D"], sources: Sources, cluster_size: int) -> Float[Tensor, "R B H C D"]:
    """For each chunk, the sum of x over the positions of its source: one difference of sums over whole chunks."""
    chunks = sources.start.shape[-1]
    short = chunks * cluster_size - x.shape[-2]
    by_chunk = F.pad(x, (0, 0, 0, max(short, 0))).unflatten(-2, (-1, cluster_size)).sum(-2)
    before = F.pad(by_chunk, (0, 0, 1, 0)).cumsum(-2).expand(len(sources.start), -1, -1, -1, -1)
    end = sources.start.expand(*before.shape[:3], -1)
    first = (end - sources.chunks).clamp(min=0)
    wide = (*end.shape, x.shape[-1])
    return before.gather(-2, end[..., None].expand(wide)) - before.gather(-2, first[..., None].expand(wide))


def past_clusters(
    query_direction: Float[Tensor, "R B H L"],
    key_hash: Float[Tensor, "R B H L"],
    kappa: Float[Tensor, "R B H C"],
    mean_hash: Float[Tensor, "R B H C"],
    key_valid: Bool[Tensor, "B 1 L"] | None,
    sources: Sources,
    cluster_size: int,
) -> Clusters:
    """The anchored form on every source of every round at once.

    A source of n chunks has the n chunks of *places* of those that visit it, and is cut there into pieces, which are
    numbered as the chunks of places are. ``key_piece`` is that of the places: a key has one in each of its sources.
    """
    (rounds, batch, heads, length), chunks = key_hash.shape, sources.start.shape[-1]
    start, size = (x.expand(-1, batch, -1, -1) for x in (sources.start, sources.chunks))
    of_chunk = torch.arange(length, device=start.device) // cluster_size

    place = torch.arange(chunks * cluster_size, device=start.device)
    position = place - size.repeat_interleave(cluster_size, -1) * cluster_size
    exists = (size > 0).repeat_interleave(cluster_size, -1) & (position < length)
    position = position.clamp(0, length - 1)
    if key_valid is not None:
        exists = exists & key_valid.expand(rounds, batch, heads, length).gather(-1, position)
    hashes = key_hash.gather(-1, position).masked_fill(~exists, torch.inf)
    ascending = hashes.argsort(dim=-1, stable=True)
    source = start.repeat_interleave(cluster_size, -1)
    order = ascending.gather(-1, source.gather(-1, ascending).argsort(dim=-1, stable=True))

    by_chunk = exists.unflatten(-1, (-1, cluster_size)).sum(-1)
    count = torch.zeros_like(by_chunk).scatter_add_(-1, start, by_chunk).gather(-1, start)
    pieces = ((count + cluster_size - 1) // cluster_size).clamp(min=1)
    piece = torch.arange(chunks, device=start.device) - start
    first, end = (start * cluster_size + torch.minimum(n, pieces) * count // pieces for n in (piece, piece + 1))

    border = borders(hashes.gather(-1, order), first).masked_fill(piece >= pieces, torch.inf)
    low = start[..., of_chunk]
    beyond = low + size[..., of_chunk]
    query_hash = kappa[..., of_chunk] * query_direction + mean_hash[..., of_chunk]
    step = chunks // 4
    found = low
    while step:
        higher = found + step
        ahead = border.gather(-1, higher.clamp(max=chunks - 1)) <= query_hash
        found = torch.where((higher < beyond) & ahead, higher, found)
        step //= 2

    groups = group_into_blocks(found, chunks, min(block_size(cluster_size), length), trim=True)
    rank = first.gather(-1, groups.group)[..., None] + torch.arange(cluster_size, device=start.device)
    key = position.gather(-1, order).gather(-1, rank.clamp(max=len(place) - 1).flatten(-2)).view_as(rank)
    rank_in_source = place - source * cluster_size
    counts, cut = (x.repeat_interleave(cluster_size, -1) for x in (count, pieces))
    piece_at = torch.where(rank_in_source < counts, source + piece_of_rank(rank_in_source, counts, cut), -1)
    return Clusters(
        groups.item,
        key,
        rank < end.gather(-1, groups.group)[..., None],
        groups.slot,
        found,
        torch.empty_like(order).scatter_(-1, order, piece_at),
    )


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
            out = self._attend(q, k, v, self._anchored(q, k, key_valid))
        else:
            out = self._attend(q, k, v, self._balanced(q, k, key_valid))
        return out.to(v.dtype)

    @torch.no_grad()
    def _balanced(self, q: Tensor, k: Tensor, key_valid: Tensor | None) -> Clusters:
        q, k = q.to(accumulation_dtype(q)), k.to(accumulation_dtype(k))
        query_valid = None if self.pattern.is_cross else key_valid
        s2 = largest_square(q, query_valid) + largest_square(k, key_valid)
        hashes = self.hashes.to(q.dtype)
        with without_autocast(q):
            of_queries, of_keys = hash_queries(q, hashes, s2), hash_keys(k, hashes, s2)
        return balanced_clusters(of_queries, of_keys, query_valid, key_valid, self.cluster_size)

    @torch.no_grad()
    def _anchored(self, q: Tensor, k: Tensor, key_valid: Tensor | None) -> Clusters:
        q, k = q.to(accumulation_dtype(q)), k.to(accumulation_dtype(k))
        hashes = self.hashes[..., :-2].to(q.dtype)
        valid = k.new_ones(1, 1, k.shape[2]) if key_valid is None else key_valid.to(k.dtype)
        share = valid / valid.sum(-1, keepdim=True).clamp(min=1)
        present = k if key_valid is None else k.masked_fill(~key_valid[..., None], 0.0)
        centred = present - (share[..., None] * present).sum(-2, keepdim=True)
        kappa = (share * torch.linalg.vector_norm(centred, dim=-1).square()).sum(-1, keepdim=True).sqrt()
        with without_autocast(q):
            of_queries, of_keys = kappa * _project_unit(q, hashes), _project(centred, hashes)
        return anchored_clusters(of_queries, of_keys, key_valid, self.cluster_size)

    def _attend(
        self, q: Float[Tensor, "B H Lq D"], k: Float[Tensor, "B H Lk D"], v: Float[Tensor, "B H Lk Dv"], met: Clusters
    ) -> Float[Tensor, "B H Lq Dv"]:
        """Softmax inside each cluster, then the merge of the rounds."""

        def ids(earlier: int, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
            pieces = ((met.query_piece[earlier], query), (met.key_piece[earlier], key))
            of_queries, of_keys = (piece.gather(-1, at.flatten(-2)).view_as(at) for piece, at in pieces)
            return of_queries, of_keys

        found = [self._attend_round(q, k, v, met, r, ids) for r in range(self.rounds)]
        return merge_rounds([out for out, _ in found], [lse for _, lse in found], list(met.slot))[0]

    def _attend_round(
        self, q: Tensor, k: Tensor, v: Tensor, met: Clusters, r: int, ids: Callable[..., tuple[Tensor, Tensor]]
    ) -> tuple[Float[Tensor, "B H P*m Dv"], Float[Tensor, "B H P*m"]]:
        query, key = met.query[r], met.key[r]
        visible = None if met.key_visible is None else met.key_visible[r][..., None, :]
        if self.correct_duplicates and r > 0:
            of_queries, of_keys = zip(*(ids(earlier, query, key) for earlier in range(r)), strict=True)
            new = ~met_before(of_queries, of_keys)
            visible = new if visible is None else visible & new
        out, lse = attention_with_lse(
            gather_rows(q, query),
            gather_rows(k, key),
            gather_rows(v, key),
            scale=self.head_dim**-0.5,
            visible=visible,
            dropout=self.dropout if self.training else 0.0,
        )
        return out.flatten(-3, -2), lse.flatten(-2)

    def _attend_past(self, q: Tensor, k: Tensor, v: Tensor, key_valid: Tensor | None) -> Float[Tensor, "B H L Dv"]:
        """Strictly causal: the own chunk densely, completed chunks by one piece of one source a round."""
        length = q.shape[2]
        sources = past_sources(length, self.cluster_size, self.rounds, self.num_heads, q.device)
        own, own_lse = self._attend_chunk(q, k, v, key_valid, sources)
        if length <= self.cluster_size:
            return own[:, :, :length]
        met = self._past_clusters(q, k, key_valid, sources)

        def ids(earlier: int, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
            of_queries = met.query_piece[earlier].gather(-1, query.flatten(-2)).view_as(query)
            # All queries of a block have the same number of sources, and so the same n in each round.
            shift = sources.chunks[earlier].expand(*query.shape[:2], -1).gather(-1, query[..., 0] // self.cluster_size)
            place = key + shift[..., None] * self.cluster_size
            beyond = place >= met.key_piece.shape[-1]
            of_keys = met.key_piece[earlier].gather(-1, place.masked_fill(beyond, 0).flatten(-2)).view_as(key)
            return of_queries, of_keys.masked_fill(beyond, -1)

        found = [self._attend_round(q, k, v, met, r, ids) for r in range(self.rounds)]
        here = torch.arange(length, device=q.device).expand(*q.shape[:2], -1)
        outs, lses = [own, *(out for out, _ in found)], [own_lse, *(lse for _, lse in found)]
        return merge_rounds(outs, lses, [here, *met.slot])[0]

    @torch.no_grad()
    def _past_clusters(self, q: Tensor, k: Tensor, key_valid: Tensor | None, sources: Sources) -> Clusters:
        """The anchored form on every source of every round at once."""
        q, k = q.to(accumulation_dtype(q)), k.to(accumulation_dtype(k))
        hashes, width = self.hashes[..., :-2].to(q.dtype), self.cluster_size
        present = k if key_valid is None else k.masked_fill(~key_valid[..., None], 0.0)
        ones = torch.ones_like(k[:1, :1, :, 0]) if key_valid is None else key_valid.to(k.dtype)
        with without_autocast(q):
            of_queries, of_keys = _project_unit(q, hashes), _project(k, hashes)
            of_present = of_keys if key_valid is None else of_keys.masked_fill(~key_valid, 0.0)
        count = source_totals(ones.expand(1, *k.shape[:3]), sources, width).clamp(min=1)
        mean = source_sums(present[None], sources, width) / count[..., None]
        mean_square = source_totals(torch.linalg.vector_norm(present, dim=-1).square()[None], sources, width) / count
        kappa = (mean_square - mean.square().sum(-1)).clamp(min=0).sqrt()
        mean_hash = source_totals(of_present, sources, width) / count
        return past_clusters(of_queries, of_keys, kappa, mean_hash, key_valid, sources, width)

    def _attend_chunk(
        self, q: Tensor, k: Tensor, v: Tensor, key_valid: Tensor | None, sources: Sources
    ) -> tuple[Float[Tensor, "B H C*w Dv"], Float[Tensor, "B H C*w"]]:
        """The own chunk up to the query itself."""
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
            visits = self.rounds / sources.source_count[: lse.shape[2]].clamp(1, self.rounds).to(lse.dtype)
            lse = lse + visits.log()[:, None]
        return out.flatten(2, 3), lse.flatten(2, 3)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        size, per_head = self.cluster_size, batch * self.num_heads

        def hashing(lengths: int) -> int:
            return 2 * self.rounds * lengths * self.head_dim

        def blocks(queries: int, pieces: int) -> int:
            # What always suffices; fewer are run where the load is even.
            width = min(block_size(size), queries)
            return (queries // width + min(pieces, queries)) * width

        if self.pattern is Pattern.CAUSAL_CROSS:
            pairs = blocks(length_q, math.ceil(length_k / size)) * min(size, length_k)
            return per_head * (hashing(length_q + length_k) + 4 * self.rounds * pairs * self.head_dim)
        if self.pattern is Pattern.CAUSAL_SELF:
            width = min(size, length_q)
            chunks = math.ceil(length_q / width)
            total = 4 * chunks * width**2 * self.head_dim
            if chunks > 1:
                pairs = blocks(length_q, 1 << (chunks - 1).bit_length()) * size
                total += hashing(2 * length_q) + 4 * self.rounds * pairs * self.head_dim
            return per_head * total
        pieces = math.ceil(length_q / size)
        pairs = pieces * math.ceil(length_q / pieces) * math.ceil(length_k / pieces)
        return per_head * (hashing(length_q + length_k) + 4 * self.rounds * pairs * self.head_dim)


class SmyrfAttention(HeadwiseAttention):
    """Multi-head attention with SMYRF clusters per head; the projections are those of exact attention."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = SmyrfCore
