"""Oracle of optimised attention: the paper's equation, head by head, on the layer's weights."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import HeadwiseAttention
from attention_zoo.reference import softmax
from attention_zoo.reference.softmax import dense_core, weights

__all__ = ["dense_core", "dense_layer", "weights"]


def dense_layer(
    layer: HeadwiseAttention,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """[H_1 ... H_h] W^O with H_i = softmax(Q W_i^Q (K W_i^K)^T / sqrt(d_k)) V_i."""
    key = query if key is None else key
    value = query if value is None else value
    p = dict(layer.named_parameters())
    q = query @ p["query_projection.weight"].T + p.get("query_projection.bias", 0.0)
    k = key @ p["key_projection.weight"].T + p.get("key_projection.bias", 0.0)
    width = layer.embed_dim // layer.num_heads
    heads = []
    for i in range(layer.num_heads):
        columns = slice(i * width, (i + 1) * width)
        seen = softmax.weights(
            layer.core, q[:, None, :, columns], k[:, None, :, columns], key_padding_mask=key_padding_mask
        )
        heads.append(seen[:, 0] @ value[:, :, columns])
    return torch.cat(heads, dim=-1) @ p["output_projection.weight"].T + p.get("output_projection.bias", 0.0)
