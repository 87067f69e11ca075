"""Optimised attention: softmax attention without the value projection.

    H_i = softmax(Q W_i^Q (K W_i^K)^T / sqrt(d_k)) V_i,    O = [H_1 ... H_h] W^O

where V_i are the columns of the raw values that belong to head i. W^V and W^O are two linear maps in a row with only
the averaging over positions between them, so one is dropped: 3 d^2 weights instead of 4 d^2.

With one head nothing is lost (W^V W^O is one matrix). With more it is another model, not the same one written shorter:
V W_i^V reads all d columns of the input, V_i only its own slice, so a trained layer cannot be converted exactly.

The core is the fused softmax of ``sdpa``, because the mechanism is exact softmax attention on other projections: beside
``sdpa`` in a table, it then differs by the projection alone. Time O(L^2 d), memory O(L d). All four patterns are
published (masks act on the logits as in softmax attention; keys and values need the width of the layer).

Source: M. Hosseini and P. Hosseini, "You Need to Pay Better Attention: Rethinking the Mathematics of Attention
Mechanism", 2024, arXiv:2403.01643 (version 3: "Cost-Effective Attention Mechanisms for Low Resource Settings").
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from attention_zoo import sdpa
from attention_zoo.contract import AttentionCore, HeadwiseAttention

CARD = dataclasses.replace(
    sdpa.CARD,
    name="optimised",
    title="You Need to Pay Better Attention: Rethinking the Mathematics of Attention Mechanism",
    authors="Hosseini, Hosseini",
    year=2024,
    paper="arXiv:2403.01643",
    family="projection",
)


class OptimisedAttention(HeadwiseAttention):
    """Softmax attention on projected queries and keys and on raw values."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = sdpa.SDPACore
    projections: ClassVar[frozenset[str]] = frozenset({"query", "key", "output"})
