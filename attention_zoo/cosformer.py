"""cosFormer: linear attention with ReLU features and a cosine that weighs down what is far.

With Q' = relu(Q), K' = relu(K), positions i and j counted from the start of their sequences, and a length M,

    O_i = sum_j s_ij V_j / sum_j s_ij,    s_ij = Q'_i . K'_j cos(pi/2 (i - j) / M)

As cos(a - b) = cos a cos b + sin a sin b, the weight is a dot product of features of twice the width,

    phi(x)_i = [relu(x) cos(pi i / 2M); relu(x) sin(pi i / 2M)]

so that sums over keys come first, as in ``linear``; no 1/sqrt(D). Both factors of every product are non-negative for
0 <= i, j < M: no weight is negative, and none is lost to cancellation.

M is a constant of the layer, the larger of ``max_length`` and ``max_length_key``, on one scale for both sequences. The
authors' code takes the length of the sequence at hand, which lets a longer future change past outputs and makes
decoding another function. Their ReLU stands before the split into heads, which is the same as behind it. They ignore
padding and put a floor of 10^-6 under the denominator; here a padded key is taken out of the sums, and a row whose
weights are all zero (which ReLU makes possible) is zero.

Time O(L D^2), memory O(L D); the causal form is a scan over chunks and decodes from a state of constant size, the sums
and the position. Published: noncausal self, causal self and noncausal cross attention. Our extension: the causal cross
pattern, where the sums are over the whole source; it is well defined because M is fixed.

Source: Z. Qin et al., "cosFormer: Rethinking Softmax in Attention", ICLR 2022, arXiv:2202.08791.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attention_zoo import linear
from attention_zoo.contract import AttentionCore, HeadwiseAttention, Pattern, State, Support
from attention_zoo.primitives import accumulation_dtype, without_autocast

CARD = dataclasses.replace(
    linear.CARD,
    name="cosformer",
    title="cosFormer: Rethinking Softmax in Attention",
    authors="Qin, Sun, Deng, Li, Wei, Lv, Yan, Kong, Zhong",
    year=2022,
    paper="arXiv:2202.08791",
    supports={
        Pattern.NONCAUSAL_SELF: Support.PUBLISHED,
        Pattern.CAUSAL_SELF: Support.PUBLISHED,
        Pattern.NONCAUSAL_CROSS: Support.PUBLISHED,
        Pattern.CAUSAL_CROSS: Support.EXTENSION,
    },
    vanishing_rows=True,
    permutation_equivariant=False,
)


@dataclass
class CosformerState(linear.KernelState):
    """The sums of :class:`~attention_zoo.linear.KernelState`, and the position of the next query."""

    position: int


def cos_sin(first: int, length: int, longest: int, like: Tensor) -> Float[Tensor, "L 2 1"]:
    """cos(pi i / 2M) and sin(pi i / 2M) for i = first .. first + length - 1, with M = ``longest``."""
    angle = torch.arange(first, first + length, device=like.device).to(like.dtype) * (math.pi / (2 * longest))
    return torch.stack((angle.cos(), angle.sin()), -1)[..., None]


def cosine_features(x: Float[Tensor, "B H L D"], first: int, longest: int) -> Float[Tensor, "B H L 2D"]:
    """[relu(x) cos(pi i / 2M); relu(x) sin(pi i / 2M)] for the positions i from ``first`` on."""
    return (F.relu(x)[..., None, :] * cos_sin(first, x.shape[2], longest, x)).flatten(-2)


class CosformerCore(linear.KernelCore):
    """cosFormer attention."""

    smallest_denominator = 1e-30

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        pattern: Pattern | str,
        *,
        max_length: int,
        max_length_key: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        self.longest = max(self.max_length, self.max_length_key)
        self.num_features = 2 * head_dim

    def query_features(self, q: Float[Tensor, "B H L D"], first: int = 0) -> Float[Tensor, "B H L F"]:
        return cosine_features(q, first, self.longest)

    def key_features(self, k: Float[Tensor, "B H L D"], first: int = 0) -> Float[Tensor, "B H L F"]:
        return cosine_features(k, first, self.longest)

    def _divide(self, numerator: Tensor, denominator: Tensor, dtype: torch.dtype) -> Tensor:
        # A row without weight is divided by one: over a tiny floor its gradient would overflow before ReLU stops it.
        total = torch.where(denominator > self.smallest_denominator, denominator, 1.0)
        return F.dropout((numerator / total).to(dtype), self.dropout, self.training)

    def prefill(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        *,
        key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> tuple[Float[Tensor, "B H Lq Dv"], State]:
        out, state = super().prefill(q, k, v, key_padding_mask=key_padding_mask)
        assert isinstance(state, linear.KernelState)
        return out, CosformerState(state.s, state.z, q.shape[2])

    def step(
        self,
        q: Float[Tensor, "B H 1 D"],
        k: Float[Tensor, "B H 1 D"] | None,
        v: Float[Tensor, "B H 1 Dv"] | None,
        state: State,
    ) -> tuple[Float[Tensor, "B H 1 Dv"], State]:
        assert isinstance(state, CosformerState)
        with without_autocast(q):
            sums = linear.KernelState(state.s, state.z)
            if k is not None and v is not None:
                phi_k = self.key_features(k.to(accumulation_dtype(k)), state.position)
                new = linear.summarise(phi_k, v.to(phi_k.dtype))
                sums = linear.KernelState(state.s + new.s, state.z + new.z)
            phi_q = self.query_features(q.to(accumulation_dtype(q)), state.position)
            out = self._divide(*linear.read(phi_q, sums), q.dtype)
        return out, CosformerState(sums.s, sums.z, state.position + 1)


class CosformerAttention(HeadwiseAttention):
    """Multi-head cosFormer attention."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = CosformerCore
