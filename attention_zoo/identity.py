"""No attention: each position keeps its own value. The floor under every mechanism of a self pattern.

    O_i = V_i                                (zeros where position i is padding)

The layer keeps its value and output projections, O = (X W^V) W^O, so that a backbone with it differs from one with
attention in the mixing of positions alone. Queries and keys play no part and get no projection: its weights would
never have a gradient. What a model with this layer scores is what the task gives away without any context; a mechanism
that does not beat it has not been tested.

Time O(L), memory O(L), no state. Not a published mechanism. In the cross patterns target position i has no value of
its own, so there is no such floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo.contract import AttentionCore, Card, HeadwiseAttention, Pattern, State, Support

_NO_CROSS = "a target position has no value of its own in the source, so there is nothing to pass on unmixed"

CARD = Card(
    name="identity",
    title="No mixing of positions (the floor)",
    authors="this benchmark",
    year=2026,
    paper="none",
    family="floor",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={Pattern.NONCAUSAL_SELF: Support.PUBLISHED, Pattern.CAUSAL_SELF: Support.PUBLISHED},
    unsupported={Pattern.NONCAUSAL_CROSS: _NO_CROSS, Pattern.CAUSAL_CROSS: _NO_CROSS},
    softmax_logits=True,  # a softmax over one key: whatever its logit, the weight is one
    past_influence=False,
    incremental=frozenset({Pattern.CAUSAL_SELF}),
)


@dataclass
class NoState(State):
    """Nothing is carried from one position to the next."""


class IdentityCore(AttentionCore):
    """Passes the values on; dropout, while training, falls on the output."""

    def forward(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> Float[Tensor, "B H L Dv"]:
        out = v if key_padding_mask is None else v.masked_fill(key_padding_mask[:, None, :, None], 0.0)
        return F.dropout(out, self.dropout, self.training)

    def prefill(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
    ) -> tuple[Float[Tensor, "B H L Dv"], State]:
        return self(q, k, v, key_padding_mask=key_padding_mask), NoState()

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert v is not None
        return F.dropout(v, self.dropout, self.training), state

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return 0

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        return 0


class IdentityAttention(HeadwiseAttention):
    """Value and output projection with nothing between them."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = IdentityCore
    projections: ClassVar[frozenset[str]] = frozenset({"value", "output"})
