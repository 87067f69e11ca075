"""Oracle of long-short attention: one dense softmax over [summaries ; tokens], chunk by chunk and mask by mask."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import Attention, Pattern


def affine(layer: Attention, name: str, x: Tensor) -> Tensor:
    p = dict(layer.named_parameters())
    return torch.einsum("...e,fe->...f", x, p[f"{name}.weight"]) + p.get(f"{name}.bias", 0.0)


def norm(layer: Attention, name: str, x: Tensor) -> Tensor:
    """LN over all E numbers of a row; nothing where the layer has none."""
    p = dict(layer.named_parameters())
    if f"{name}.weight" not in p:
        return x
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]


def heads(layer: Attention, x: Tensor) -> Tensor:
    return x.reshape(*x.shape[:2], layer.num_heads, layer.head_dim).permute(0, 2, 1, 3)


def summaries(layer: Attention, x: Tensor, k: Tensor, v: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """K^ and V^ [B, r, E] of the tokens x [B, c, E], and whether there are any [B, r]."""
    rank = int(vars(layer)["num_landmarks"])
    logits = affine(layer, "dynamic_projection", x).reshape(*x.shape[:2], layer.num_heads, rank)
    logits = torch.where(valid[:, :, None, None], logits, torch.finfo(logits.dtype).min)
    p = torch.softmax(logits, dim=1) * valid[:, :, None, None]

    def compress(y: Tensor) -> Tensor:
        split = y.reshape(*y.shape[:2], layer.num_heads, layer.head_dim)
        return norm(layer, "summary_norm", torch.einsum("bchr,bchd->brhd", p, split).flatten(2))

    return compress(k), compress(v), valid.any(1, keepdim=True).expand(-1, rank)


def window_of(layer: Attention, length: int) -> Tensor:
    """[L, L]: True where query i has key j in its window."""
    i, j = torch.arange(length)[:, None], torch.arange(length)
    window = int(vars(layer)["window"])
    if layer.pattern == Pattern.CAUSAL_SELF:
        return (j <= i) & (j > i - window)
    start, reach = i // window * window, max(window // 2, 1)
    return (j >= start - reach) & (j < start + window + reach)


def dense_layer(
    layer: Attention,
    query: Tensor,
    key: Tensor | None = None,
    value: Tensor | None = None,
    *,
    key_padding_mask: Tensor | None = None,
) -> Tensor:
    """W_O concat_h softmax(s q [LN_G(K^) ; LN_L(K)]^T + M) [LN_G(V^) ; LN_L(V)]."""
    cross = key is not None
    key = query if key is None else key
    value = query if value is None else value
    batch, length = key.shape[:2]
    valid = torch.ones(batch, length, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask
    q, k, v = (affine(layer, f"{n}_projection", x) for n, x in (("query", query), ("key", key), ("value", value)))
    keys, values, visible = [], [], []
    chunk = int(vars(layer)["chunk_size"]) if layer.pattern == Pattern.CAUSAL_SELF else length
    if vars(layer)["num_landmarks"] > 0:
        for end in range(chunk, length + 1, chunk):
            part = slice(end - chunk, end)
            k_hat, v_hat, exists = summaries(layer, key[:, part], k[:, part], v[:, part], valid[:, part])
            past = torch.ones(query.shape[1], dtype=torch.bool)
            if layer.pattern == Pattern.CAUSAL_SELF:
                past = torch.arange(length) >= end
            keys.append(k_hat)
            values.append(v_hat)
            visible.append(exists[:, None, :] & past[None, :, None])
    if not cross:
        keys.append(norm(layer, "token_norm", k))
        values.append(norm(layer, "token_norm", v))
        visible.append(window_of(layer, length) & valid[:, None, :])
    seen = torch.cat(visible, dim=2)[:, None]
    logits = heads(layer, q) @ heads(layer, torch.cat(keys, dim=1)).mT / layer.head_dim**0.5
    weights = torch.softmax(torch.where(seen, logits, torch.finfo(logits.dtype).min), dim=-1) * seen
    out = weights @ heads(layer, torch.cat(values, dim=1))
    return affine(layer, "output_projection", out.permute(0, 2, 1, 3).flatten(2))
