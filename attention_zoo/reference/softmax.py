"""Oracle of softmax attention: weights exp(q_i . k_j / sqrt(D)) over the visible keys, divided by their sum."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def visible(core: AttentionCore, q: Tensor, k: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """[B, 1, Lq, Lk], True where query i may see key j: key j is no padding, and j <= i in the causal self pattern."""
    batch, length_q, length_k = q.shape[0], q.shape[2], k.shape[2]
    seen = torch.ones(batch, 1, length_q, length_k, dtype=torch.bool, device=q.device)
    if key_padding_mask is not None:
        seen &= key_padding_mask.logical_not().reshape(batch, 1, 1, length_k)
    if core.pattern == "causal_self":
        position = torch.arange(length_k, device=q.device)
        seen &= position[None, :] <= position[:length_q, None]
    return seen


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]; rows sum to one, or are zero where nothing is visible."""
    seen = visible(core, q, k, key_padding_mask)
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    # The largest visible logit (0 in a row without any) is taken out; it cancels between numerator and denominator.
    largest = torch.where(seen, logits, -torch.inf).amax(-1, keepdim=True).detach()
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    numerator = torch.exp(torch.where(seen, logits - largest, -torch.inf))
    denominator = numerator.sum(-1, keepdim=True)
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
