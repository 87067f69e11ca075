"""Softmax attention, fused: the mathematics of ``softmax`` by PyTorch's ``scaled_dot_product_attention``.

    O = softmax(Q K^T / sqrt(D) + M) V

computed tile by tile over the keys with a running maximum m, normaliser l and output o (FlashAttention, algorithm 1):
for a tile with logits x and values v, and m* = max(m, max x),

    l <- l e^(m - m*) + sum e^(x - m*),    o <- o e^(m - m*) + e^(x - m*) v,    m <- m*,    finally O = o / l,

so that the L x L weights are never in memory. Which kernel runs (flash, memory-efficient, cuDNN, plain) is PyTorch's
choice by device, dtype and mask: with a key padding mask a CUDA device leaves the flash kernel. PyTorch takes a
triangle or a mask, not both, and both as one mask would be L x L; so in the causal self pattern padding is one more
column of queries and keys,

    [q_i, c] . [k_j, -c p_j] = q_i . k_j - c^2 p_j,    p_j = 1 where key j is padding, else 0,

with c so large that e^(-c^2 / sqrt(D)) is zero beside any weight.

``impl`` names a kernel in place of PyTorch's choice: ``math`` is its plain one, whose L x L weights are in memory,
``flash`` the tiled one and no other.

Time O(Lq Lk D), half of it in the causal self pattern; memory O(L D). All four patterns are published.

Source: T. Dao et al., "FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness", NeurIPS 2022,
arXiv:2205.14135; the tiled softmax is M. Milakov and N. Gimelshein, arXiv:1805.02867.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from attention_zoo import softmax
from attention_zoo.contract import AttentionCore, HeadwiseAttention, Pattern, Unsupported
from attention_zoo.errors import UnknownName

CARD = dataclasses.replace(
    softmax.CARD,
    name="sdpa",
    title="FlashAttention: Fast and Memory-Efficient Exact Attention with IO-Awareness",
    authors="Dao, Fu, Ermon, Rudra, Ré",
    year=2022,
    paper="arXiv:2205.14135",
    memory_order="L",
)

PADDING = 2.0**15  # c: a number in every floating-point type, its square far above any logit

# Those that the CPU has too, where certificates are made.
KERNELS = {"math": SDPBackend.MATH, "flash": SDPBackend.FLASH_ATTENTION}


class SDPACore(softmax.SoftmaxCore):
    """Fused softmax attention; cache and steps are those of :class:`~attention_zoo.softmax.SoftmaxCore`.

    Args:
        impl: ``auto`` (PyTorch chooses), ``math`` or ``flash``; :class:`~attention_zoo.contract.Unsupported` is raised
            by a call for which there is no such kernel.
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
        impl: str = "auto",
    ) -> None:
        super().__init__(
            num_heads, head_dim, pattern, max_length=max_length, max_length_key=max_length_key, dropout=dropout
        )
        if impl not in self.implementations():
            raise UnknownName("impl", impl, self.implementations())
        self.impl = impl

    @classmethod
    def implementations(cls) -> tuple[str, ...]:
        return ("auto", *KERNELS)

    def attend(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        key_padding_mask: Bool[Tensor, "B Lk"] | None,
        *,
        causal: bool,
    ) -> Float[Tensor, "B H Lq Dv"]:
        scale = q.shape[-1] ** -0.5
        if self.impl == "auto":
            return self._attend(q, k, v, key_padding_mask, causal=causal, scale=scale)
        if self.impl == "flash" and self.dropout and self.training and q.device.type == "cpu":
            raise Unsupported("PyTorch's flash kernel has no dropout on the CPU")
        width_of_values = v.shape[-1]
        if q.shape[-1] != v.shape[-1]:  # the flash kernel wants one width
            width = max(x.shape[-1] for x in (q, v))
            q, k, v = (F.pad(x, (0, width - x.shape[-1])) for x in (q, k, v))
        try:
            with sdpa_kernel(KERNELS[self.impl]):
                return self._attend(q, k, v, key_padding_mask, causal=causal, scale=scale)[..., :width_of_values]
        except RuntimeError as error:
            if not str(error).startswith(("No available kernel", "No viable backend")):
                raise
            where = f"{q.dtype} on {q.device.type}".removeprefix("torch.")
            raise Unsupported(f"PyTorch has no {self.impl} kernel for {where}, head size {q.shape[-1]}") from error

    def _attend(
        self,
        q: Float[Tensor, "B H Lq D"],
        k: Float[Tensor, "B H Lk D"],
        v: Float[Tensor, "B H Lk Dv"],
        key_padding_mask: Bool[Tensor, "B Lk"] | None,
        *,
        causal: bool,
        scale: float,
    ) -> Float[Tensor, "B H Lq Dv"]:
        dropout = self.dropout if self.training else 0.0
        if key_padding_mask is None:
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=causal, scale=scale)
        if causal:
            return self._attend_padded(q, k, v, key_padding_mask, dropout, scale)
        visible = softmax.visible_keys(q.shape[2], k, key_padding_mask, causal=causal)
        assert visible is not None
        # Kernels differ in what they make of a row that sees nothing (zeros, means, NaN): let it see all, then zero it.
        blind = ~visible.any(-1, keepdim=True)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible | blind, dropout_p=dropout, scale=scale)
        return out.masked_fill(blind, 0.0)

    def _attend_padded(
        self,
        q: Float[Tensor, "B H L D"],
        k: Float[Tensor, "B H L D"],
        v: Float[Tensor, "B H L Dv"],
        key_padding_mask: Bool[Tensor, "B L"],
        dropout: float,
        scale: float,
    ) -> Float[Tensor, "B H L Dv"]:
        """The causal self pattern with padding, in memory O(L D)."""
        padding = key_padding_mask[:, None, :, None].expand(*k.shape[:-1], 1)
        out = F.scaled_dot_product_attention(
            torch.cat((q, torch.full_like(q[..., :1], PADDING)), -1),
            torch.cat((k, padding.to(k.dtype) * -PADDING), -1),
            F.pad(v, (0, 1)),  # the fused kernels want one width
            dropout_p=dropout,
            is_causal=True,
            scale=scale,
        )[..., : v.shape[-1]]
        blind = (~key_padding_mask).cumsum(-1) == 0
        return out.masked_fill(blind[:, None, :, None], 0.0)

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        # The plain kernel computes the upper triangle and throws it away.
        skips = self.pattern is Pattern.CAUSAL_SELF and self.impl != "math"
        pairs = length_q * (length_q + 1) // 2 if skips else length_q * length_k
        return 4 * batch * self.num_heads * pairs * self.head_dim


class SDPAAttention(HeadwiseAttention):
    """Multi-head attention around the fused kernel."""

    card = CARD
    core_type: ClassVar[type[AttentionCore]] = SDPACore
