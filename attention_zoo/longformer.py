"""Longformer: a sliding window for all tokens, and a few global tokens that see all and are seen by all.

The first g = ``num_global`` tokens are global, w = ``window``. Noncausal, with two sets of projections:

    i >= g:  o_i = softmax over {j < g} and {j : |i - j| <= w} of Qs_i . Ks_j / sqrt(D), times Vs
    i <  g:  o_i = softmax over all j of Qg_i . Kg_j / sqrt(D), times Vg

    causal:  o_i = softmax over {j <= i : j < g or i - j <= w} of Qs_i . Ks_j / sqrt(D), times Vs

Each key counts once, be it global and in the window. ``window`` is one side: the paper's window of 512 is w = 256. The
paper puts the global tokens where the task has them ([CLS], a question); here they lead the sequence, and g = 1 is
[CLS]. The second set of projections belongs to the rows of global tokens, as in the authors' code, where local queries
read global keys through Ks; it starts as a copy of the first. The core has one set for both, the layer has two.

Published: noncausal self, and causal self with g = 0 (the authors' autoregressive models have no global token). The
causal form with g > 0 drops what would see the future: the row of a global token is a causal row like any other, with
no projections of its own. No dilation. A window needs positions that queries and keys share, so there is no cross form.

Time and memory O(L (w + g) D). Kg and Vg are never made: Qg_i . Kg_j = (W_Kg^T Qg_i) . x_j and sum_j a_ij Vg_j =
W_Vg sum_j a_ij x_j + b_Vg, which costs 4 g H L E instead of 4 L E^2. Their query bias stays; a key bias would cancel in
the softmax, and there is none. Dropout falls on the a_ij, and leaves b_Vg. Decoding keeps the first g and the last w
keys and values.

Source: I. Beltagy, M. E. Peters, A. Cohan, "Longformer: The Long-Document Transformer", 2020, arXiv:2004.05150,
section 3; the authors' code (github.com/allenai/longformer).
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo._banded import attend_band, band_pairs, keep_ends
from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, State, Support
from attention_zoo.primitives import attention_with_lse, merge_by_lse
from attention_zoo.softmax import KVCache

NO_CROSS = "a window needs positions that queries and keys share"

CARD = Card(
    name="longformer",
    title="Longformer: The Long-Document Transformer",
    authors="Beltagy, Peters, Cohan",
    year=2020,
    paper="arXiv:2004.05150",
    family="sparse",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED, Pattern.CAUSAL_SELF: Support.PUBLISHED},
    unsupported={Pattern.NONCAUSAL_CROSS: NO_CROSS, Pattern.CAUSAL_CROSS: NO_CROSS},
    permutation_equivariant=False,
    softmax_logits=True,
    incremental=frozenset({Pattern.CAUSAL_SELF}),
    collapses=Collapse({"window": "length"}),
)


class LongformerCore(AttentionCore):
    """A window and leading global tokens, with one set of projections for both.

    Args:
        window: w, keys on each side of a query (before it, in the causal pattern), itself not counted.
        num_global: g, leading tokens that every later token sees and, in the noncausal pattern, that see all.
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
        window: int = 256,
        num_global: int = 1,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        for name, value, least in (("window", window, 1), ("num_global", num_global, 0)):
            if value < least:
                raise ValueError(f"{name}={value} is not allowed: it is {least} or more")
        self.window = window
        self.num_global = num_global

    @property
    def _reach(self) -> tuple[int, int]:
        """Keys before and after the query."""
        return self.window, 0 if self.pattern is Pattern.CAUSAL_SELF else self.window

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, visible: Bool[Tensor, "*pairs"] | None, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Dense attention and its log-sum-exp, with dropout while training."""
        dropout = self.dropout if self.training else 0.0
        return attention_with_lse(q, k, v, scale=scale, visible=visible, dropout=dropout)

    def global_rows(
        self, q: Float[Tensor, "B H g D"], k: Tensor, v: Tensor, valid: Bool[Tensor, "B L"] | None
    ) -> Float[Tensor, "B H g Dv"]:
        """Rows of the global tokens: over all keys, or over those up to themselves in the causal pattern."""
        visible = None if valid is None else valid[:, None, None, :]
        if self.pattern is Pattern.CAUSAL_SELF:
            count = q.shape[2]
            k, v = k[:, :, :count], v[:, :, :count]
            past = torch.ones(count, count, dtype=torch.bool, device=q.device).tril()
            visible = past if visible is None else visible[..., :count] & past
        return self.attend(q, k, v, visible, self.head_dim**-0.5)[0]

    def local_rows(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        valid: Bool[Tensor, "B L"] | None,
    ) -> Float[Tensor, "B H L-g Dv"]:
        """Rows of the other tokens: their window among themselves, and the global keys."""
        g, scale = self.num_global, self.head_dim**-0.5
        before, after = self._reach
        q = q[:, :, g:]
        in_window = attend_band(
            q,
            k[:, :, g:],
            v[:, :, g:],
            before=before,
            after=after,
            key_valid=None if valid is None else valid[:, g:],
            scale=scale,
            dropout=self.dropout if self.training else 0.0,
        )
        if g == 0:
            return in_window[0]
        visible = None if valid is None else valid[:, None, None, :g]
        on_global = self.attend(q, k[:, :, :g], v[:, :, :g], visible, scale)
        out, lse = (torch.stack(parts) for parts in zip(in_window, on_global, strict=True))
        return merge_by_lse(out, lse, dim=0)[0]

    def forward(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B H L Dv"]:
        g = self.num_global
        valid = None if key_padding_mask is None else ~key_padding_mask
        rows = []
        if g > 0:
            rows.append(self.global_rows(q[:, :, :g], k, v, valid))
        if g < q.shape[2]:
            rows.append(self.local_rows(q, k, v, valid))
        return torch.cat(rows, dim=2).to(v.dtype)

    def prefill(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B H L Dv"], State]:
        out = self(q, k, v, key_padding_mask=key_padding_mask)
        return out, keep_ends(KVCache(k, v, key_padding_mask), self.num_global, self.window)

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert isinstance(state, KVCache)
        assert k is not None
        assert v is not None
        state = state.append(k, v)
        mask = state.key_padding_mask
        visible = None if mask is None else ~mask[:, None, None, :]
        out, _ = self.attend(q, state.k, state.v, visible, self.head_dim**-0.5)
        return out.to(v.dtype), keep_ends(state, self.num_global, self.window)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        g = min(self.num_global, length_q)
        pairs = g * (g if self.pattern is Pattern.CAUSAL_SELF else length_k)
        return 4 * batch * self.num_heads * self.head_dim * (pairs + self.local_pairs(length_q))

    def local_pairs(self, length: int) -> int:
        """Pairs computed for the rows of the tokens that are not global."""
        rest = length - min(self.num_global, length)
        return rest * self.num_global + band_pairs(rest, *self._reach) if rest else 0

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        kept = min(length, self.num_global + self.window)
        return 2 * batch * self.num_heads * kept * self.head_dim * element_size


class LongformerAttention(HeadwiseAttention):
    """Multi-head Longformer attention; in the noncausal pattern global tokens have projections of their own."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = LongformerCore
    core: LongformerCore

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(
            embed_dim,
            num_heads,
            pattern,
            max_length=max_length,
            max_length_key=max_length_key,
            dropout=dropout,
            bias=bias,
            **options,
        )
        self.has_global_rows = self.pattern is Pattern.NONCAUSAL_SELF and self.core.num_global > 0
        if self.has_global_rows:
            self.global_query_projection = nn.Linear(embed_dim, embed_dim, bias=bias)
            self.global_key_projection = nn.Linear(embed_dim, embed_dim, bias=False)
            self.global_value_projection = nn.Linear(embed_dim, embed_dim, bias=bias)
            for name in ("query", "key", "value"):
                local, own = (getattr(self, f"{prefix}{name}_projection") for prefix in ("", "global_"))
                own.load_state_dict({key: local.state_dict()[key] for key in own.state_dict()})

    def forward(
        self,
        query: Float[Tensor, "B L E"],
        key: Float[Tensor, "B L E"] | None = None,
        value: Float[Tensor, "B L E"] | None = None,
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B L E"]:
        if not self.has_global_rows:
            return super().forward(query, key, value, key_padding_mask=key_padding_mask)
        self.check_inputs(query, key, value, key_padding_mask)
        valid = None if key_padding_mask is None else ~key_padding_mask
        rows = [self._global_rows(query, valid)]
        if self.core.num_global < query.shape[1]:
            rows.append(self.core.local_rows(*self._project(query, query, query), valid))
        return self._merge(torch.cat([part.to(rows[-1].dtype) for part in rows], dim=2).to(query.dtype))

    def _global_rows(self, x: Float[Tensor, "B L E"], valid: Bool[Tensor, "B L"] | None) -> Float[Tensor, "B H g D"]:
        """softmax(Qg Kg^T / sqrt(D)) Vg over all tokens, with W_Kg moved to the queries and W_Vg to the outputs."""
        heads = (self.num_heads, self.head_dim)
        q = self._split(self.global_query_projection(x[:, : self.core.num_global]))
        w_key = self.global_key_projection.weight.unflatten(0, heads)
        w_value = self.global_value_projection.weight.unflatten(0, heads)
        q = q @ w_key
        x = x.to(q.dtype)
        visible = None if valid is None else valid[:, None, :]
        mixed, lse = self.core.attend(q.flatten(1, 2), x, x, visible, self.head_dim**-0.5)
        out = mixed.to(q.dtype).unflatten(1, q.shape[1:3]) @ w_value.transpose(-2, -1)
        bias = self.global_value_projection.bias
        if bias is not None:
            seen = lse.isfinite().unflatten(1, q.shape[1:3]).unsqueeze(-1)
            out = out + torch.where(seen, bias.view(self.num_heads, 1, self.head_dim), 0.0)
        return out

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        if not self.has_global_rows:
            return super().flops(batch, length_q, length_k)
        g, wide = min(self.core.num_global, length_q), self.embed_dim**2
        rest = length_q > g
        projections = g * 3 * wide + length_q * (4 if rest else 1) * wide
        pairs = self.embed_dim * (2 * self.core.local_pairs(length_q) + 2 * g * self.num_heads * length_q)
        return 2 * batch * (projections + pairs)
