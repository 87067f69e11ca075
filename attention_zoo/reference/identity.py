"""Oracle of the floor: the weights are the identity matrix, with a zero row (and column) for each padded position."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, L, L]."""
    batch, heads, length, _ = q.shape
    kept = torch.ones(batch, length, dtype=q.dtype, device=q.device)
    if key_padding_mask is not None:
        kept = 1 - key_padding_mask.to(q.dtype)
    return torch.diag_embed(kept)[:, None].expand(batch, heads, length, length)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)


def dense_layer(
    layer: torch.nn.Module,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """(X W^V + b^V) W^O + b^O, with the rows of padded positions zero between the two."""
    p = dict(layer.named_parameters())
    v = torch.einsum("ble,fe->blf", query, p["value_projection.weight"]) + p.get("value_projection.bias", 0.0)
    if key_padding_mask is not None:
        v = v * (1 - key_padding_mask.to(v.dtype))[:, :, None]
    return torch.einsum("blf,gf->blg", v, p["output_projection.weight"]) + p.get("output_projection.bias", 0.0)
