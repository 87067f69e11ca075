"""Super attention: efficient attention whose values are first mixed over positions by a learned l x l matrix.

    H_i = softmax(Q W_i^Q K_i^T / sqrt(d_k)) (W^A V)_i,    O = [H_1 ... H_h] W^O,    W^A in R^(l x l)

where K_i and V_i are head i's columns of the raw keys and values, and W^A, the alignment kernel, is shared by all heads
of the layer and acts from the left, on positions. 2 d^2 + l^2 weights, l being the largest number of keys: a fixed
length is built in. A shorter sequence uses the leading block W^A[:L, :L]. Rows of V that are padding are zero before
W^A, so that they reach nothing. In the causal self pattern only the lower triangle of W^A is used (row t is output
position t), because an entry above the diagonal would bring a later value to an earlier position.

W^A starts as the identity, where the layer equals ``efficient``: a random mixture of positions would first have to be
unlearned, and the paper's choice is not stated where we could read it. Its rows are not normalised, so the effective
weights S W^A are neither non-negative nor of unit sum.

Time O(L^2 d), one and a half times the products of softmax attention; memory O(L d) beside W^A: in the causal pattern
it is applied by blocks of rows, so that no masked copy of it is made. Decoding keeps raw values too, since row t of W^A
needs them.
Published: noncausal and causal self attention. Our extension: both cross patterns, W^A then acting on the source
(l = ``max_length_key``), where a full matrix leaks nothing. The core is fused softmax, as in ``optimised``.

Source: M. Hosseini and P. Hosseini, "You Need to Pay Better Attention: Rethinking the Mathematics of Attention
Mechanism", 2024, arXiv:2403.01643 (version 3: "Cost-Effective Attention Mechanisms for Low Resource Settings").
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo import efficient, sdpa, softmax
from attention_zoo.contract import AttentionCore, HeadwiseAttention, Pattern, State, Support

CARD = dataclasses.replace(
    efficient.CARD,
    name="super",
    exact=False,
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.CAUSAL_SELF: Support.PUBLISHED,
        Pattern.NONCAUSAL_CROSS: Support.EXTENSION,
        Pattern.CAUSAL_CROSS: Support.EXTENSION,
    },
    memory_order="L^2",  # W^A and its gradient
    rows_sum_to_one=False,
    permutation_equivariant=False,
    fixed_length=True,
    collapses=None,  # it does at W^A = I, where it starts, but no option holds it there
)

ROW_BLOCK = 64


def tril_product(kernel: Float[Tensor, "L L"], columns: Float[Tensor, "L N"]) -> Float[Tensor, "L N"]:
    """tril(W) X by blocks of rows: all columns of W before the block, and the triangle on the diagonal."""
    out, start = [], 0
    for rows in kernel.split(ROW_BLOCK):
        end = start + len(rows)
        block = rows[:, start:end].tril() @ columns[start:end]
        out.append(block + rows[:, :start] @ columns[:start] if start else block)
        start = end
    return torch.cat(out)


def align(
    kernel: Float[Tensor, "rows L"], v: Float[Tensor, "B H L Dv"], *, causal: bool = False
) -> Float[Tensor, "B H rows Dv"]:
    """W^A V, the same for all samples and heads, so one matrix product over all their columns."""
    columns = v.permute(2, 0, 1, 3)
    product = tril_product if causal else torch.matmul
    aligned: Tensor = product(kernel, columns.flatten(1))
    return aligned.unflatten(1, columns.shape[1:]).permute(1, 2, 0, 3)


@dataclass
class AlignedCache(softmax.KVCache):
    """A cache whose ``v`` holds W^A V, and beside it the raw values ``[B, H, L, Dv]`` that later rows of W^A need."""

    raw: Tensor


class SuperCore(sdpa.SDPACore):
    """Softmax attention over values aligned by W^A, which is the core's own parameter."""

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        impl: str = "auto",
    ) -> None:
        super().__init__(
            num_heads,
            head_dim,
            pattern,
            max_length=max_length,
            max_length_key=max_length_key,
            dropout=dropout,
            impl=impl,
        )
        self.alignment_kernel = nn.Parameter(torch.eye(self.max_length_key))

    def aligned(self, v: Float[Tensor, "B H L Dv"], key_padding_mask: Tensor | None) -> Float[Tensor, "B H L Dv"]:
        """W^A V over the values that are no padding."""
        length = v.shape[2]
        if length > self.max_length_key:
            raise ValueError(f"key length {length} is over the {self.max_length_key} that the alignment kernel covers")
        if key_padding_mask is not None:
            v = v.masked_fill(key_padding_mask[:, None, :, None], 0.0)
        kernel = self.alignment_kernel[:length, :length].to(v.dtype)
        return align(kernel, v, causal=self.pattern is Pattern.CAUSAL_SELF)

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        return super().forward(q, k, self.aligned(v, key_padding_mask), key_padding_mask=key_padding_mask)

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        causal = self.pattern is Pattern.CAUSAL_SELF
        aligned = self.aligned(v, key_padding_mask)
        out = self.attend(q, k, aligned, key_padding_mask, causal=causal)
        if not causal:
            return out, softmax.KVCache(k, aligned, key_padding_mask)
        raw = v if key_padding_mask is None else v.masked_fill(key_padding_mask[:, None, :, None], 0.0)
        return out, AlignedCache(k, aligned, key_padding_mask, raw)

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        if k is None or v is None:
            return super().step(q, k, v, state)
        assert isinstance(state, AlignedCache)
        length = state.raw.shape[2] + 1
        if length > self.max_length:
            raise ValueError(f"position {length} is over the {self.max_length} that the alignment kernel covers")
        raw = torch.cat([state.raw, v], dim=2)
        row = self.alignment_kernel[length - 1 : length, :length].to(v.dtype)
        longer = state.append(k, align(row, raw))
        state = AlignedCache(longer.k, longer.v, longer.key_padding_mask, raw)
        return self.attend(q, state.k, state.v, state.key_padding_mask, causal=False), state

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        entries = length_k * length_k
        if self.pattern is Pattern.CAUSAL_SELF:
            ends = [min(start + ROW_BLOCK, length_k) for start in range(0, length_k, ROW_BLOCK)]
            entries = sum((end - start) * end for start, end in zip([0, *ends], ends, strict=False))
        alignment = 2 * batch * self.num_heads * entries * self.head_dim
        return alignment + super().flops(batch, length_q, length_k)

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        cached = super().state_bytes(batch, length, element_size)
        return cached * 3 // 2 if self.pattern is Pattern.CAUSAL_SELF else cached


class SuperAttention(HeadwiseAttention):
    """Projected queries, raw keys, and raw values aligned by W^A."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = SuperCore
    projections: ClassVar[frozenset[str]] = frozenset({"query", "output"})
