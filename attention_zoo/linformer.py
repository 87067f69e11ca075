"""Linformer: keys and values projected along the sequence, from n positions to r rows, by learned matrices.

    head_i = softmax(Q_i (E_i K_i)^T / sqrt(D)) F_i V_i,    E_i, F_i in R^(r x n)                            (eq. 7)

Time O(L r D), memory O(L D + r L) beside the parameters. ``share`` says which matrices a layer has (section 4):

* ``none``: an E_i and an F_i for each head;
* ``headwise``: one E and one F, shared by the heads;
* ``kv``: one matrix, E = F, shared by the heads.

The paper's fourth form, ``layerwise``, shares the ``kv`` matrix over all layers. A layer cannot do that alone, so it is
not offered: assign one layer's parameter to the others.

n is the largest number of keys: a fixed length is built in. Position j always meets column j, so a shorter sequence of
L keys uses the first L columns. Padded keys and values are zero before E and F, so they reach nothing, and trailing
padding equals cutting. The softmax is over the r rows, not over tokens: weights on tokens have any sign and sum.

Published: noncausal self attention, of a fixed length. Our extension: both cross patterns, E and F acting on the source
(n = ``max_length_key``). A query reads the r rows alone, so nothing passes between queries, and the rows are all that
decoding needs. There is no causal self form: each of the r rows mixes all positions.

E and F begin Xavier-uniform with gain 2^-1/2, like the projections of keys and values: at full length a row of E K then
has the scale of a key, whatever r and n. (The paper's theory has entries of variance 1 / r, a scale of (n / r)^1/2.)

Source: S. Wang, B. Z. Li, M. Khabsa, H. Fang, H. Ma, "Linformer: Self-Attention with Linear Complexity", 2020,
arXiv:2006.04768. Default: its r = 256, with headwise sharing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.contract import AttentionCore, Card, HeadwiseAttention, LengthExceeded, Pattern, State, Support
from attention_zoo.errors import UnknownName

CARD = Card(
    name="linformer",
    title="Linformer: Self-Attention with Linear Complexity",
    authors="Wang, Li, Khabsa, Fang, Ma",
    year=2020,
    paper="arXiv:2006.04768",
    family="low rank",
    exact=False,
    time_order="L",
    memory_order="L",
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.NONCAUSAL_CROSS: Support.EXTENSION,
        Pattern.CAUSAL_CROSS: Support.EXTENSION,
    },
    unsupported={Pattern.CAUSAL_SELF: "each of the r rows of E K and F V mixes all positions, the future included"},
    rows_sum_to_one=False,
    permutation_equivariant=False,
    fixed_length=True,
    incremental=frozenset({Pattern.CAUSAL_CROSS}),
    collapses=None,  # it is softmax attention at r = n and E = F = I, where it does not begin
)


def compress(e: Float[Tensor, "G r n"], x: Float[Tensor, "B H L D"]) -> Float[Tensor, "B H r D"]:
    """E_i x_i with the first L columns of E; G is H, or 1 where all heads share one matrix."""
    e = e[..., : x.shape[2]].to(x.dtype)
    if len(e) > 1:
        return e @ x
    # One product for all heads, side by side as the projections leave them.
    return (e @ x.transpose(1, 2).flatten(2)).unflatten(2, (x.shape[1], -1)).transpose(1, 2)


@dataclass
class CompressedSource(State):
    """E K and F V of the source, ``[B, H, r, D]`` and ``[B, H, r, Dv]``."""

    k: Tensor
    v: Tensor


class LinformerCore(AttentionCore):
    """Linformer attention on projected heads.

    Args:
        rank: r, the rows that keys and values are projected to.
        share: ``none``, ``headwise`` or ``kv`` (see the module).
    """

    SHARING: ClassVar[tuple[str, ...]] = ("none", "headwise", "kv")

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
        rank: int = 256,
        share: str = "headwise",
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        if rank < 1:
            raise ValueError(f"rank={rank} is not positive; linformer needs at least 1")
        if share not in self.SHARING:
            raise UnknownName("share", share, self.SHARING)
        self.rank = rank
        shape = (num_heads if share == "none" else 1, rank, self.max_length_key)
        self.key_matrix = nn.Parameter(torch.empty(shape))
        self.value_matrix = self.key_matrix if share == "kv" else nn.Parameter(torch.empty(shape))
        bound = (3 / (rank + self.max_length_key)) ** 0.5
        for matrix in self.parameters():
            nn.init.uniform_(matrix, -bound, bound)

    def compressed(
        self, k: Float[Tensor, "B H Lk D"], v: Float[Tensor, "B H Lk Dv"], key_padding_mask: Bool[Tensor, "B Lk"] | None
    ) -> CompressedSource:
        """E K and F V over what is no padding."""
        if k.shape[2] > self.max_length_key:
            raise LengthExceeded(f"key length {k.shape[2]} is over the {self.max_length_key} that E and F cover")
        if key_padding_mask is not None:
            padding = key_padding_mask[:, None, :, None]
            k, v = k.masked_fill(padding, 0.0), v.masked_fill(padding, 0.0)
        return CompressedSource(compress(self.key_matrix, k), compress(self.value_matrix, v))

    def attend(self, q: Float[Tensor, "B H Lq D"], source: CompressedSource) -> Float[Tensor, "B H Lq Dv"]:
        """softmax(Q (E K)^T / sqrt(D)) F V; zero where F V is, as for a sample that is all padding."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(q, source.k, source.v, dropout_p=dropout)

    def forward(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B H Lq Dv"]:
        return self.attend(q, self.compressed(k, v, key_padding_mask))

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        if self.pattern is not Pattern.CAUSAL_CROSS:
            return super().prefill(q, k, v, key_padding_mask=key_padding_mask)
        source = self.compressed(k, v, key_padding_mask)
        return self.attend(q, source), source

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert isinstance(state, CompressedSource)
        return self.attend(q, state), state

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        return 4 * batch * self.num_heads * self.rank * (length_k + length_q) * self.head_dim

    def state_bytes(self, batch: int, length: int, element_size: int = 4) -> int:
        """Of a source of any length."""
        return 2 * batch * self.num_heads * self.rank * self.head_dim * element_size


class LinformerAttention(HeadwiseAttention):
    """Multi-head Linformer attention; its E and F are its own, shared with no other layer."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = LinformerCore
