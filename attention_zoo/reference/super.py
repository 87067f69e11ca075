"""Oracle of super attention: softmax weights times the whole masked W^A, and the paper's equation head by head."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore, HeadwiseAttention
from attention_zoo.reference import softmax


def alignment(core: AttentionCore, x: Tensor, length: int, key_padding_mask: Tensor | None) -> Tensor:
    """[B, L, L]: the leading block of W^A, zero where the column is padding or, in the causal pattern, the future."""
    kernel = core.get_parameter("alignment_kernel").to(x.dtype)[None, :length, :length].expand(len(x), length, length)
    if core.pattern == "causal_self":
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        kernel = torch.where(later, 0.0, kernel)
    if key_padding_mask is not None:
        kernel = torch.where(key_padding_mask[:, None, :], 0.0, kernel)
    return kernel


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]: S W^A."""
    seen = softmax.weights(core, q, k, key_padding_mask=key_padding_mask)
    return torch.einsum("bhil,blj->bhij", seen, alignment(core, q, k.shape[2], key_padding_mask))


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)


def dense_layer(
    layer: HeadwiseAttention,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """[H_1 ... H_h] W^O with H_i = softmax(Q W_i^Q K_i^T / sqrt(d_k)) (W^A V)_i."""
    key = query if key is None else key
    value = query if value is None else value
    p = dict(layer.named_parameters())
    q = query @ p["query_projection.weight"].T + p.get("query_projection.bias", 0.0)
    aligned = alignment(layer.core, value, value.shape[1], key_padding_mask) @ value
    width = layer.embed_dim // layer.num_heads
    heads = []
    for i in range(layer.num_heads):
        columns = slice(i * width, (i + 1) * width)
        seen = softmax.weights(
            layer.core, q[:, None, :, columns], key[:, None, :, columns], key_padding_mask=key_padding_mask
        )
        heads.append(seen[:, 0] @ aligned[:, :, columns])
    return torch.cat(heads, dim=-1) @ p["output_projection.weight"].T + p.get("output_projection.bias", 0.0)
