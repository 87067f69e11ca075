"""Oracle of ABC: the control vectors of every slot as a dense matrix over (query, token), one slot at a time."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import Attention, Pattern


def heads(layer: Attention, name: str, x: Tensor) -> Tensor:
    """[B, H, L, D]: x W^T + b, cut into heads."""
    p = dict(layer.named_parameters())
    projected = torch.einsum("ble,fe->blf", x, p[f"{name}_projection.weight"])
    if f"{name}_projection.bias" in p:
        projected = projected + p[f"{name}_projection.bias"]
    batch, length, _ = projected.shape
    return projected.reshape(batch, length, layer.num_heads, layer.head_dim).permute(0, 2, 1, 3)


def written(a: Tensor, visible: Tensor, x: Tensor) -> Tensor:
    """[B, H, T, r, D]: slot n after the tokens that row t sees; a [B, H, Lk, r], visible [B, 1, T, Lk]."""
    slots = []
    for n in range(a.shape[-1]):
        logits = torch.where(visible, a[:, :, None, :, n], torch.finfo(a.dtype).min)
        phi = torch.softmax(logits, dim=-1) * visible
        slots.append(torch.einsum("bhtj,bhjd->bhtd", phi, x))
    return torch.stack(slots, dim=3)


def dense_layer(
    layer: Attention,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """W_O concat_h softmax(q K~^T / sqrt(D)) V~."""
    key = query if key is None else key
    value = query if value is None else value
    q, k, v = heads(layer, "query", query), heads(layer, "key", key), heads(layer, "value", value)
    p = dict(layer.named_parameters())
    if vars(layer)["control"] == "input":
        weight = p["slot_projections.0.weight"].reshape(layer.num_heads, -1, layer.embed_dim)
        of_keys = of_values = torch.einsum("hne,bje->bhjn", weight, key)
    else:
        of_keys = torch.einsum("nd,bhjd->bhjn", p["slot_projections.0.weight"], k)
        of_values = torch.einsum("nd,bhjd->bhjn", p["slot_projections.1.weight"], v)
    visible = torch.ones(key.shape[0], 1, 1, key.shape[1], dtype=torch.bool)
    if layer.pattern == Pattern.CAUSAL_SELF:
        visible = visible & torch.ones(key.shape[1], key.shape[1], dtype=torch.bool).tril()
    if key_padding_mask is not None:
        visible = visible & ~key_padding_mask[:, None, None, :]
    logits = (q[:, :, :, None] * written(of_keys, visible, k)).sum(-1) / layer.head_dim**0.5
    out = (torch.softmax(logits, dim=-1)[..., None] * written(of_values, visible, v)).sum(-2)
    merged = out.permute(0, 2, 1, 3).flatten(2)
    return torch.einsum("ble,fe->blf", merged, p["output_projection.weight"]) + p.get("output_projection.bias", 0.0)
