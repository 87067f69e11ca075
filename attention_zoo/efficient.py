"""Efficient attention: softmax attention without the key and value projections.

    H_i = softmax(Q W_i^Q K_i^T / sqrt(d_k)) V_i,    O = [H_1 ... H_h] W^O

where K_i and V_i are the columns of the raw keys and values that belong to head i. In Q W^Q (K W^K)^T two linear maps
stand in a row, so W^K is dropped as well as ``optimised``'s W^V: 2 d^2 weights instead of 4 d^2.

With one head nothing is lost (W^Q W^K^T and W^V W^O are one matrix each). With more it is another model: K_i and V_i
read their own slice of the input only, so a trained layer cannot be converted exactly.

The core is the fused softmax of ``sdpa``, for the reason given in ``optimised``. Time O(L^2 d), memory O(L d). All four
patterns are published (keys and values need the width of the layer).

Source: M. Hosseini and P. Hosseini, "You Need to Pay Better Attention: Rethinking the Mathematics of Attention
Mechanism", 2024, arXiv:2403.01643 (version 3: "Cost-Effective Attention Mechanisms for Low Resource Settings").
Not the "Efficient Attention" of Shen et al. (arXiv:1812.01243), which is a linear attention.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from attention_zoo import optimised, sdpa
from attention_zoo.contract import AttentionCore, HeadwiseAttention

CARD = dataclasses.replace(optimised.CARD, name="efficient")


class EfficientAttention(HeadwiseAttention):
    """Softmax attention on projected queries and on raw keys and values."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = sdpa.SDPACore
    projections: ClassVar[frozenset[str]] = frozenset({"query", "output"})
