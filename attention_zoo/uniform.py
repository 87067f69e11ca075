"""Attention without attending: every visible key has the same weight. The floor under every choice of weights.

    O_i = sum_j m_ij V_j / sum_j m_ij,    m_ij = 1 where query i may see key j, else 0      (zeros where it sees none)

Softmax attention with all logits equal: the mean of the visible values, a running mean in the causal self pattern. As
with ``identity`` queries and keys play no part and get no projection; value and output projections stay. What a model
keeps with this in place of its attention is what the mixing of positions alone gives, without a choice among them.

Time O(L D), memory O(L D). All four patterns; in the cross patterns every query gets the mean of the source. Decoding
carries the sum and the count. Not a published mechanism.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, HeadwiseAttention, Pattern, State, Support
from attention_zoo.primitives import accumulation_dtype

CARD = Card(
    name="uniform",
    title="The mean of the visible values (a floor)",
    authors="this benchmark",
    year=2026,
    paper="none",
    family="floor",
    exact=False,
    time_order="L",
    memory_order="L",
    supports=dict.fromkeys(Pattern, Support.PUBLISHED),
    softmax_logits=True,  # a softmax of equal logits, whatever is added to all of them
    incremental=frozenset({Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS}),
)


@dataclass
class RunningMean(State):
    """The sum of the values seen, ``[B, H, Dv]``, and how many they are, ``[B]``, in at least float32."""

    total: Tensor
    count: Tensor


class UniformCore(AttentionCore):
    """Takes means of values; dropout, while training, falls on the output."""

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        return self._attend(q, v, key_padding_mask)[0]

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        return self._attend(q, v, key_padding_mask)

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert isinstance(state, RunningMean)
        if v is not None:
            state = RunningMean(state.total + v[:, :, 0], state.count + 1)
        return self._mean(state.total[:, :, None], state.count[:, None], q.dtype), state

    def _attend(self, q: Tensor, v: Tensor, key_padding_mask: Tensor | None) -> tuple[Tensor, RunningMean]:
        wide = accumulation_dtype(v)
        kept = torch.ones(v.shape[0], v.shape[2], dtype=wide, device=v.device)
        values = v.to(wide)
        if key_padding_mask is not None:
            kept = kept.masked_fill(key_padding_mask, 0.0)
            values = values.masked_fill(key_padding_mask[:, None, :, None], 0.0)
        if self.pattern is Pattern.CAUSAL_SELF:
            totals, counts = values.cumsum(2), kept.cumsum(1)
            return self._mean(totals, counts, v.dtype), RunningMean(totals[:, :, -1], counts[:, -1])
        state = RunningMean(values.sum(2), kept.sum(1))
        mean = self._mean(state.total[:, :, None].expand(-1, -1, q.shape[2], -1), state.count[:, None], v.dtype)
        return mean, state

    def _mean(
        self, total: Float[Tensor, "B H L Dv"], count: Float[Tensor, "B l"], dtype: torch.dtype
    ) -> Float[Tensor, "B H L Dv"]:
        out = (total / count.clamp(min=1)[:, None, :, None]).to(dtype)
        return F.dropout(out, self.dropout, self.training)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return 0  # sums, and no matrix product

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return batch * (self.num_heads * self.head_dim + 1) * max(element_size, 4)


class UniformAttention(HeadwiseAttention):
    """Value and output projection around the mean of the visible values."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = UniformCore
    projections: ClassVar[frozenset[str]] = frozenset({"value", "output"})
