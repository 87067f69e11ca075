"""ProbSparse attention (Informer): softmax for the few queries whose scores are uneven, the mean of the values for all.

Per sample and head, with c = ``factor`` (section 3 and algorithm 1 of the paper):

    M_i = max_j s_ij - mean_j s_ij,    s_ij = q_i . k_j / sqrt(D),    j in a sample of U = c ceil(ln Lk) keys    (eq. 4)
    o_i = softmax(s_i) V for the u = c ceil(ln Lq) queries of the largest M_i,    o_i = mean_j v_j for the others.

U and u are at least 1 (ln 1 is 0) and at most the number of tokens. Time and memory O(L log L): scores are formed for
L U and u L pairs. Equal M_i fall to the earlier query. With u = Lq this is softmax attention, whatever the sample.

The sample. Algorithm 1 draws a set of keys and takes one product with it, which is done here, so all queries of a head
are measured on the same keys. The text of the paper, and the authors' code, draw other keys for each query, which costs
O(L U D) memory; ours is a deviation from them. The keys are one of each of U runs of the sequence, equal in size up to
one token, the place in the run being random: so they differ, and a sequence of U keys is sampled whole. Places are
integers of a buffer, drawn once from an own generator, and scaled to the number of keys: fixed in training as in
evaluation, the same for a sample in any batch. (The authors draw in every forward pass.)

The mean in M_i is over the sample, as in algorithm 1. The authors' code divides the sampled sum by Lk instead of U (the
paper's text fills the other pairs with zeros), by which M_i tends to the maximum alone.

Padding is in no sample, no count, no mean and no choice, so a padded sample equals the cut one.

Published: noncausal self attention, and the decoder's masked self attention, *causal in the values only*: a query is
chosen in competition with later ones, on a sample of keys that has later ones. Chosen rows see keys up to their own,
the others are the mean of values up to their own. (The paper takes cumulative sums in the mean, and allows the plain
sum as simpler. The authors' code has that: a scale that grows with t.)
Our extension: noncausal cross attention. In the causal cross pattern queries would compete with later targets.

Source: H. Zhou, S. Zhang, J. Peng, S. Zhang, J. Li, H. Xiong, W. Zhang, "Informer: Beyond Efficient Transformer for
Long Sequence Time-Series Forecasting", AAAI 2021, arXiv:2012.07436. Default: its c = 5.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, Support
from attention_zoo.primitives import accumulation_dtype, attention_with_lse, gather_rows, without_autocast

CARD = Card(
    name="probsparse",
    title="Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting",
    authors="Zhou, Zhang, Peng, Zhang, Li, Xiong, Zhang",
    year=2021,
    paper="arXiv:2012.07436",
    family="sparse",
    exact=False,
    discrete=True,
    time_order="L log L",
    memory_order="L log L",
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.CAUSAL_SELF: Support.VALUE_CAUSAL,
        Pattern.NONCAUSAL_CROSS: Support.EXTENSION,
    },
    unsupported={
        Pattern.CAUSAL_CROSS: "queries compete for softmax rows, so a later target can displace an earlier one"
    },
    permutation_equivariant=False,
    softmax_logits=True,
    collapses=Collapse({"factor": 1 << 20}),  # any number not below that of the queries
)

PLACES = 256  # random places; run j of a sample uses number j mod 256
RESOLUTION = 1 << 16  # of a place in its run


def random_places(heads: int) -> Int64[Tensor, "H 256"]:
    """Independent integers 0 .. 2^16 - 1 from an own generator, seeded once by torch's global one."""
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    generator = torch.Generator("cpu").manual_seed(seed)
    places = torch.randint(RESOLUTION, (heads, PLACES), generator=generator, device="cpu")
    return places.to(torch.get_default_device())


def log_count(tokens: Int64[Tensor, "*b"], factor: int) -> Int64[Tensor, "*b"]:
    """c ceil(ln n), at least 1, at most n (0 of no tokens)."""
    logs = tokens.clamp(min=1).double().log().ceil().long()
    return torch.minimum((factor * logs).clamp(min=1), tokens)


def most(length: int, factor: int) -> int:
    """:func:`log_count` of a plain number: the largest that any padding leaves."""
    return min(max(factor * math.ceil(math.log(length)), 1), length)


def sample_ranks(
    places: Int64[Tensor, "H 256"], tokens: Int64[Tensor, "B 1 1"], size: Int64[Tensor, "B 1 1"], runs: int
) -> Int64[Tensor, "B H runs"]:
    """Of n tokens in U runs, floor(j n / U) .. floor((j + 1) n / U) - 1, the one at the place of run j.

    Clipped to the tokens where j >= U.
    """
    run, size = torch.arange(runs, device=places.device), size.clamp(min=1)
    start, end = run * tokens // size, (run + 1) * tokens // size
    rank = start + (end - start) * places[:, run % PLACES] // RESOLUTION
    return torch.minimum(rank, (tokens - 1).clamp(min=0))


def sparsity(
    q: Float[Tensor, "B H Lq D"], keys: Float[Tensor, "B H U D"], exists: Bool[Tensor, "B 1 1 U"] | None
) -> Float[Tensor, "B H Lq"]:
    """M_i = max_j s_ij - mean_j s_ij over the sampled keys that exist, without D^-1/2, which changes no order."""
    scores = q @ keys.transpose(-2, -1)
    if exists is None:
        return scores.amax(-1) - scores.mean(-1)
    mean = scores.masked_fill(~exists, 0.0).sum(-1) / exists.sum(-1).clamp(min=1)
    return scores.masked_fill(~exists, -torch.inf).amax(-1) - mean


class ProbSparseCore(AttentionCore):
    """ProbSparse attention on projected heads; dropout acts on the weights of the chosen rows.

    Args:
        factor: c, by which the sample of keys and the number of chosen queries grow with the logarithm of the length.
    """

    places: Tensor  # [H, 256]

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        factor: int = 5,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        if factor < 1:
            raise ValueError(f"factor={factor} is not positive; probsparse needs at least 1")
        self.factor = factor
        self.register_buffer("places", random_places(num_heads))

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        valid = None if key_padding_mask is None else ~key_padding_mask
        index, chosen = self.choose(q, k, valid)
        visible = None if valid is None else valid[:, None, None]
        if self.pattern is Pattern.CAUSAL_SELF:
            past = torch.arange(k.shape[2], device=k.device) <= index[..., None]
            visible = past if visible is None else past & visible
        rows, _ = attention_with_lse(
            gather_rows(q, index),
            k,
            v,
            scale=self.head_dim**-0.5,
            visible=visible,
            dropout=self.dropout if self.training else 0.0,
        )
        rows, index = rows.to(v.dtype).transpose(1, 2), index.transpose(1, 2)[..., None]
        means = self.means(v, valid).transpose(1, 2).expand(-1, q.shape[2], -1, -1)
        index = index.expand_as(rows)
        if chosen is not None:
            rows = torch.where(chosen.transpose(1, 2)[..., None], rows, means.gather(1, index))
        # Positions before heads, as the output projection reads them.
        return means.scatter(1, index, rows).transpose(1, 2)

    @torch.no_grad()
    def choose(
        self, q: Float[Tensor, "B H Lq D"], k: Float[Tensor, "B H Lk D"], valid: Bool[Tensor, "B Lk"] | None
    ) -> tuple[Int64[Tensor, "B H u"], Bool[Tensor, "B 1 u"] | None]:
        """The queries of the largest M_i, in falling order, and which of them count (None: all)."""
        length_q, length_k = q.shape[2], k.shape[2]
        wide = accumulation_dtype(q)
        runs, rows = most(length_k, self.factor), most(length_q, self.factor)
        if valid is None:
            tokens = torch.full((len(q), 1, 1), length_k, device=k.device)
        else:
            tokens = valid.sum(-1)[:, None, None]
        size = log_count(tokens, self.factor)
        sample = sample_ranks(self.places, tokens, size, runs)
        exists = None
        if valid is not None:
            # From ranks among the valid keys to positions.
            order = (~valid).to(torch.uint8).argsort(dim=-1, stable=True)
            sample = order[:, None].expand(-1, sample.shape[1], -1).gather(-1, sample)
            exists = (torch.arange(runs, device=k.device) < size)[:, None]
        with without_autocast(q):
            measure = sparsity(q.to(wide), gather_rows(k, sample).to(wide), exists)
        chosen = None
        if valid is not None and not self.pattern.is_cross:
            measure = measure.masked_fill(~valid[:, None], -torch.inf)
            chosen = torch.arange(rows, device=q.device) < size  # as many queries as sampled keys: Lq is Lk
        return measure.argsort(dim=-1, descending=True, stable=True)[..., :rows], chosen

    def means(self, v: Float[Tensor, "B H Lk Dv"], valid: Bool[Tensor, "B Lk"] | None) -> Float[Tensor, "B H #Lk Dv"]:
        """mean_j v_j over the valid keys, up to each position in the causal pattern; 0 where there is none."""
        wide = accumulation_dtype(v)
        if valid is not None:
            v = v.masked_fill(~valid[:, None, :, None], 0.0)
        counted = torch.ones_like(v[:, :1, :, :1], dtype=wide) if valid is None else valid[:, None, :, None].to(wide)
        if self.pattern is Pattern.CAUSAL_SELF:
            means = v.cumsum(2, dtype=wide) / counted.cumsum(2).clamp(min=1)
        else:
            means = v.sum(2, keepdim=True, dtype=wide) / counted.sum(2, keepdim=True).clamp(min=1)
        return means.to(v.dtype)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        pairs = length_q * most(length_k, self.factor) + 2 * most(length_q, self.factor) * length_k
        return 2 * batch * self.num_heads * pairs * self.head_dim


class ProbSparseAttention(HeadwiseAttention):
    """Multi-head ProbSparse attention; the projections are those of exact attention."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = ProbSparseCore
