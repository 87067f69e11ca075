"""Oracle of Longformer: dense softmax under the mask of window and global tokens, whose rows have own projections."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore, HeadwiseAttention


def visible(core: AttentionCore, length: int, key_padding_mask: Tensor | None) -> Tensor:
    """[B or 1, 1, L, L]: j is near i, or one of the two is global; j is no padding and, if causal, not after i."""
    window, lead = int(vars(core)["window"]), int(vars(core)["num_global"])
    i, j = torch.arange(length)[:, None], torch.arange(length)[None, :]
    seen = ((i - j).abs() <= window) | (j < lead) | (i < lead)
    if core.pattern == "causal_self":
        seen = seen & (j <= i)
    seen = seen[None, None]
    return seen if key_padding_mask is None else seen & key_padding_mask.logical_not()[:, None, None, :]


def masked_softmax(logits: Tensor, seen: Tensor) -> Tensor:
    largest = torch.where(seen, logits, -torch.inf).amax(-1, keepdim=True).detach()
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    numerator = torch.exp(torch.where(seen, logits - largest, -torch.inf))
    denominator = numerator.sum(-1, keepdim=True)
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, L, L]."""
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    return masked_softmax(logits, visible(core, q.shape[2], key_padding_mask))


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
    """Every row with both sets of projections; the second is that of the first ``num_global`` rows."""
    p = dict(layer.named_parameters())
    batch, length, width = query.shape

    def heads(name: str) -> Tensor:
        projected = query @ p[f"{name}_projection.weight"].T + p.get(f"{name}_projection.bias", 0.0)
        return projected.reshape(batch, length, layer.num_heads, width // layer.num_heads).permute(0, 2, 1, 3)

    def rows(prefix: str) -> Tensor:
        q, k, v = (heads(f"{prefix}{name}") for name in ("query", "key", "value"))
        return dense_core(layer.core, q, k, v, key_padding_mask=key_padding_mask)

    out = rows("")
    if "global_query_projection.weight" in p:
        is_global = (torch.arange(length) < int(vars(layer.core)["num_global"]))[:, None]
        out = torch.where(is_global, rows("global_"), out)
    out = out.permute(0, 2, 1, 3).reshape(batch, length, width)
    return out @ p["output_projection.weight"].T + p.get("output_projection.bias", 0.0)
