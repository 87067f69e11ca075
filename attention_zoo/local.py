"""Local attention: a query sees a window of keys, around itself or around a centre that it predicts.

    self:   o_t = sum_s a_t(s) v_s,  a_t = softmax of q_t . k_s / sqrt(D) over the window
            noncausal  t - w <= s <= t + w    (2 w + 1 keys)
            causal     t - w <  s <= t        (w keys, t itself among them)
    cross:  p_t = S sigmoid(u^T tanh(W h_t))                                                             (eq. 9)
            o_t = sum_s a_t(s) g_t(s) v_s,  a_t the softmax over the s with |s - p_t| <= D_w
            g_t(s) = exp(-(s - p_t)^2 / (2 sigma^2)),  sigma = D_w / 2                                   (eq. 10)

with w = D_w = ``window`` and S the number of source keys. The cross form is Luong's local-p: each query predicts its
own centre p_t, a real number in [0, S], and the Gaussian falls on the weights *after* their softmax, so that a row sums
to less than one. Nothing passes between queries; the causal cross form is therefore the same function. Of a window over
the border the outside is ignored.

What the paper leaves open, and what we take:
* s counts from 0 over the keys that are no padding, and S is their number, so that padding equals cutting.
* The alignment score is the scaled product of the zoo (the paper's ``dot``, times D^-1/2).
* h_t is the query of the head at hand, with W [H, D, D] and u [H, D] of each head. The query is a linear map of the
  target's hidden state, which is the paper's h_t; a core sees no other, and W is H times smaller than one of width E.

Time and memory O(L w D) in the self patterns: blocks of queries meet the window of keys around each block in one
batched product. In the cross patterns queries are first grouped by the block of keys in which their window begins (a
layout: the output of a query does not depend on it); time and memory O((Lq + Lk) w D). Decoding keeps the last w keys
and values (causal self), or the source (causal cross). The window of a cross form ends at |s - p_t| = D_w, where g_t is
e^-2: a rounded p_t can gain or lose the key at its edge.

Published: the cross forms by Luong et al.; the self forms by, among others, CAB's implementation of "local" (which
counts w in the same way) and N. Parmar et al. 2018 (arXiv:1802.05751).

Source: M.-T. Luong, H. Pham, C. D. Manning, "Effective Approaches to Attention-based Neural Machine Translation",
EMNLP 2015, arXiv:1508.04025, section 3.2. The default window is its D = 10.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from attention_zoo._banded import attend_band, band_pairs, keep_ends
from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, State, Support
from attention_zoo.primitives import (
    accumulation_dtype,
    attention_with_lse,
    gather_rows,
    group_into_blocks,
    without_autocast,
)
from attention_zoo.softmax import KVCache

CARD = Card(
    name="local",
    title="Effective Approaches to Attention-based Neural Machine Translation",
    authors="Luong, Pham, Manning",
    year=2015,
    paper="arXiv:1508.04025",
    family="sparse",
    exact=False,
    time_order="L",
    memory_order="L",
    supports=dict.fromkeys(Pattern, Support.PUBLISHED),
    rows_sum_to_one=False,  # in the cross patterns
    permutation_equivariant=False,
    softmax_logits=True,
    discrete=True,  # the window of a predicted centre
    incremental=frozenset({Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS}),
    collapses=Collapse({"window": "length"}, patterns=frozenset({Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF})),
)

KEY_BLOCK = 32  # first keys of windows that share one block of queries, in the cross patterns


@dataclass
class Source(State):
    """Keys and values of the source with the padding moved behind them, and their number S ``[B]`` (None: all)."""

    k: Tensor
    v: Tensor
    count: Tensor | None

    @classmethod
    def of(
        cls,
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        key_padding_mask: Bool[Tensor, "B Lk"] | None,
    ) -> Source:
        if key_padding_mask is None:
            return cls(k, v, None)
        order = key_padding_mask.to(torch.uint8).argsort(dim=-1, stable=True)[:, None].expand(-1, k.shape[1], -1)
        return cls(gather_rows(k, order), gather_rows(v, order), (~key_padding_mask).sum(-1))


def predict_centres(
    h: Float[Tensor, "B H Lq D"], w: Float[Tensor, "H D D"], u: Float[Tensor, "H D"], count: Tensor | int
) -> Float[Tensor, "B H Lq"]:
    """p_t = S sigmoid(u^T tanh(W h_t))."""
    score = (torch.tanh(h @ w.transpose(-2, -1)) @ u[:, :, None]).squeeze(-1)
    return count * torch.sigmoid(score)


def gaussian(distance: Tensor, window: int) -> Tensor:
    """exp(-(s - p)^2 / (2 sigma^2)) with sigma = D_w / 2."""
    return torch.exp(-2 * (distance / window).square())


def attend_centres(
    q: Float[Tensor, "B H Lq D"], source: Source, centre: Float[Tensor, "B H Lq"], window: int, dropout: float
) -> Float[Tensor, "B H Lq Dv"]:
    """o_t = sum_s a_t(s) g_t(s) v_s over the s < S with |s - p_t| <= D_w."""
    length_q, length_k = q.shape[2], source.k.shape[2]
    span = window_span(window, length_k)
    first = (centre.detach() - window).ceil().clamp(0, length_k - 1).long()
    groups = group_into_blocks(first // KEY_BLOCK, -(-length_k // KEY_BLOCK), min(KEY_BLOCK, length_q))
    position: Int64[Tensor, "B H P W"] = groups.group[..., None] * KEY_BLOCK + torch.arange(span, device=q.device)
    index = position.clamp(max=length_k - 1)
    k, v = gather_rows(source.k, index), gather_rows(source.v, index)
    q = gather_rows(q, groups.item)
    centre = gather_rows(centre[..., None], groups.item)

    distance = position[..., None, :] - centre
    end = length_k if source.count is None else source.count.view(-1, 1, 1, 1, 1)
    visible = (distance.abs() <= window) & (position[..., None, :] < end)
    logits = ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).to(centre.dtype)
    # The lowest finite number, not -inf: a row of -inf alone would be NaN, and so would its gradient.
    align = torch.softmax(logits.masked_fill_(~visible, torch.finfo(logits.dtype).min), dim=-1)
    # Clamped where it is not seen: far below, exp is slow.
    bell = gaussian(distance.clamp(-window, window), window)
    weights = F.dropout(align * bell, dropout)
    out = gather_rows((weights.to(v.dtype) @ v).flatten(2, 3), groups.slot)
    # A window holds a key unless there is none at all.
    return out if source.count is None else out.masked_fill((source.count == 0).view(-1, 1, 1, 1), 0.0)


def window_span(window: int, length_k: int) -> int:
    """Keys that the queries of a group can see: 2 D_w + 1 from each of the first keys."""
    return min(KEY_BLOCK + 2 * window, length_k)


class LocalCore(AttentionCore):
    """Attention in a window.

    Args:
        window: keys on each side (noncausal self), past keys with the query's own (causal self), or D_w, the reach on
            each side of the predicted centre (cross); at least 1.
    """

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        window: int = 10,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        if window < 1:
            raise ValueError(f"window={window} is not allowed: a window has at least 1 key")
        self.window = window
        if self.pattern.is_cross:
            self.centre_weight = nn.Parameter(torch.empty(num_heads, head_dim, head_dim))
            self.centre_vector = nn.Parameter(torch.empty(num_heads, head_dim))
            for weight in self.centre_weight:
                nn.init.xavier_uniform_(weight)
            nn.init.normal_(self.centre_vector, std=head_dim**-0.5)

    @property
    def _reach(self) -> tuple[int, int]:
        """Keys before and after the query."""
        return (self.window - 1, 0) if self.pattern is Pattern.CAUSAL_SELF else (self.window, self.window)

    @property
    def _active_dropout(self) -> float:
        return self.dropout if self.training else 0.0

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        if self.pattern.is_cross:
            return self._attend_source(q, Source.of(k, v, key_padding_mask))
        before, after = self._reach
        out, _ = attend_band(
            q,
            k,
            v,
            before=before,
            after=after,
            key_valid=None if key_padding_mask is None else ~key_padding_mask,
            scale=self.head_dim**-0.5,
            dropout=self._active_dropout,
        )
        return out.to(v.dtype)

    def _attend_source(self, q: Tensor, source: Source) -> Float[Tensor, "B H Lq Dv"]:
        wide = accumulation_dtype(q)
        count = source.k.shape[2] if source.count is None else source.count.view(-1, 1, 1)
        with without_autocast(q):
            centre = predict_centres(q.to(wide), self.centre_weight.to(wide), self.centre_vector.to(wide), count)
            return attend_centres(q, source, centre, self.window, self._active_dropout)

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        if self.pattern.is_cross:
            source = Source.of(k, v, key_padding_mask)
            return self._attend_source(q, source), source
        out = self(q, k, v, key_padding_mask=key_padding_mask)
        return out, keep_ends(KVCache(k, v, key_padding_mask), 0, self.window)

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        if k is None or v is None:
            assert isinstance(state, Source)
            return self._attend_source(q, state), state
        assert isinstance(state, KVCache)
        state = keep_ends(state.append(k, v), 0, self.window)
        mask = state.key_padding_mask
        out, _ = attention_with_lse(
            q,
            state.k,
            state.v,
            scale=self.head_dim**-0.5,
            visible=None if mask is None else ~mask[:, None, None, :],
            dropout=self._active_dropout,
        )
        return out.to(v.dtype), state

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        rows = batch * self.num_heads
        if not self.pattern.is_cross:
            return 4 * rows * band_pairs(length_q, *self._reach) * self.head_dim
        block = min(KEY_BLOCK, length_q)
        blocks = length_q // block + min(-(-length_k // KEY_BLOCK), length_q)
        pairs = blocks * block * window_span(self.window, length_k)
        return 2 * rows * self.head_dim * (length_q * (self.head_dim + 1) + 2 * pairs)

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        kept = length if self.pattern.is_cross else min(length, self.window)
        return 2 * batch * self.num_heads * kept * self.head_dim * element_size


class LocalAttention(HeadwiseAttention):
    """Multi-head attention in a window; in the cross patterns each head predicts where its own lies."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = LocalCore
