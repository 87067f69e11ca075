"""Softmax attention with its weights materialised: the exact baseline, and the mathematics of ``sdpa``.

    A = softmax(Q K^T / sqrt(D) + M),    O = A V                        (Vaswani et al. 2017, section 3.2.1, eq. 1)

M is 0 where query i may see key j and -inf elsewhere: padded keys in every pattern, keys after i in the causal self
pattern. A row that sees no key gives zeros. In the cross patterns each query is treated alone, so the causal cross
form needs no mask over the target.

Time O(Lq Lk D), memory O(Lq Lk) per head, whatever the pattern: the upper triangle of the causal form is computed and
thrown away, as in the usual unfused implementation. All four patterns are published. Decoding keeps all keys and
values (a KV cache), O(L D) bytes and O(L D) time per step.

Source: A. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, arXiv:1706.03762.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, Collapse, HeadwiseAttention, Pattern, State, Support

CARD = Card(
    name="softmax",
    title="Attention Is All You Need",
    authors="Vaswani, Shazeer, Parmar, Uszkoreit, Jones, Gomez, Kaiser, Polosukhin",
    year=2017,
    paper="arXiv:1706.03762",
    family="exact",
    exact=True,
    time_order="L^2",
    memory_order="L^2",
    supports=dict.fromkeys(Pattern, Support.PUBLISHED),
    softmax_logits=True,
    incremental=frozenset({Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS}),
    collapses=Collapse({}),
)


@dataclass
class KVCache(State):
    """Keys, values and padding seen so far: ``[B, H, L, D]``, ``[B, H, L, Dv]`` and ``[B, L]`` (None: no padding)."""

    k: Tensor
    v: Tensor
    key_padding_mask: Tensor | None

    def append(self, k: Float[Tensor, "B H 1 D"], v: Float[Tensor, "B H 1 Dv"]) -> KVCache:
        """A longer cache; the new position is never padding."""
        mask = self.key_padding_mask
        return KVCache(
            torch.cat([self.k, k], dim=2),
            torch.cat([self.v, v], dim=2),
            None if mask is None else F.pad(mask, (0, 1), value=False),
        )


def visible_keys(
    length_q: int, k: Float[Tensor, "B H Lk D"], key_padding_mask: Bool[Tensor, "B Lk"] | None, *, causal: bool
) -> Bool[Tensor, "#B 1 #Lq Lk"] | None:
    """True where query i may see key j; None where all see all. The one place where the padding mask is inverted."""
    visible = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
    if causal:
        past = torch.ones(length_q, k.shape[2], dtype=torch.bool, device=k.device).tril()
        visible = past[None, None] if visible is None else visible & past
    return visible


def attention_weights(
    q: Float[Tensor, "B H Lq D"], k: Float[Tensor, "B H Lk D"], visible: Bool[Tensor, "#B 1 #Lq Lk"] | None
) -> Float[Tensor, "B H Lq Lk"]:
    """softmax(q k^T / sqrt(D) + M), normalised in at least float32; uniform in a row that sees nothing."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    if visible is not None:
        # The lowest finite number, not -inf: a row of -inf alone would be NaN, and so would its gradient.
        logits = logits.masked_fill(~visible, torch.finfo(logits.dtype).min)
    return torch.softmax(logits, dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))


class SoftmaxCore(AttentionCore):
    """Materialised softmax attention; its subclasses compute the same ``attend`` by other means."""

    def attend(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        key_padding_mask: Bool[Tensor, "B Lk"] | None,
        *,
        causal: bool,
    ) -> Float[Tensor, "B H Lq Dv"]:
        """softmax(q k^T / sqrt(D) + M) v, with dropout on the weights while training."""
        visible = visible_keys(q.shape[2], k, key_padding_mask, causal=causal)
        weights = F.dropout(attention_weights(q, k, visible), self.dropout, self.training)
        out = weights.to(v.dtype) @ v
        if key_padding_mask is not None and visible is not None:
            out = out.masked_fill(~visible.any(-1, keepdim=True), 0.0)
        return out

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        return self.attend(q, k, v, key_padding_mask, causal=self.pattern is Pattern.CAUSAL_SELF)

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        return self(q, k, v, key_padding_mask=key_padding_mask), KVCache(k, v, key_padding_mask)

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert isinstance(state, KVCache)
        if k is not None and v is not None:
            state = state.append(k, v)
        # The newest query sees the whole cache, so there is no triangle to apply.
        return self.attend(q, state.k, state.v, state.key_padding_mask, causal=False), state

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return 4 * batch * self.num_heads * length_q * length_k * self.head_dim

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return 2 * batch * self.num_heads * length * self.head_dim * element_size


class SoftmaxAttention(HeadwiseAttention):
    """Multi-head attention with materialised weights (Vaswani et al. 2017, section 3.2.2)."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = SoftmaxCore
