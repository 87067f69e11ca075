"""Oracle of local attention: the dense weights of each query, softmax in its window and, in cross, Luong's Gaussian."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def _softmax(logits: Tensor, seen: Tensor) -> Tensor:
    largest = torch.where(seen, logits, -torch.inf).amax(-1, keepdim=True).detach()
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    numerator = torch.exp(torch.where(seen, logits - largest, -torch.inf))
    denominator = numerator.sum(-1, keepdim=True)
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]."""
    window = int(vars(core)["window"])
    batch, length_q, length_k = q.shape[0], q.shape[2], k.shape[2]
    valid = torch.ones(batch, length_k, dtype=torch.bool)
    if key_padding_mask is not None:
        valid = key_padding_mask.logical_not()
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    if not core.pattern.is_cross:
        i, j = torch.arange(length_q)[:, None], torch.arange(length_k)[None, :]
        near = (i - j).abs() <= window
        if core.pattern == "causal_self":
            near = (j <= i) & (j > i - window)
        return _softmax(logits, near & valid[:, None, None, :])
    # The numbers of the keys that are left when padding is cut out, and how many they are.
    s = (valid.long().cumsum(-1) - 1)[:, None, None, :]
    total = valid.long().sum(-1)[:, None, None]
    wide = torch.promote_types(q.dtype, torch.float32)
    w, u = core.get_parameter("centre_weight").to(wide), core.get_parameter("centre_vector").to(wide)
    hidden = torch.tanh(torch.einsum("hef,bhif->bhie", w, q.to(wide)))
    p = (total / (1 + torch.exp(-torch.einsum("he,bhie->bhi", u, hidden))))[..., None]
    seen = (s >= p - window) & (s <= p + window) & valid[:, None, None, :]
    sigma = window / 2
    bell = torch.exp(-((s - p) ** 2) / (2 * sigma**2))
    return _softmax(logits, seen) * bell.to(logits.dtype)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
