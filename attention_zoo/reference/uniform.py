"""Oracle of the uniform floor: weights 1 / n_i on the n_i keys that query i may see, and zero rows where n_i = 0."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]."""
    batch, heads, length_q, _ = q.shape
    length_k = k.shape[2]
    seen = torch.ones(batch, heads, length_q, length_k, dtype=q.dtype, device=q.device)
    if core.pattern == "causal_self":
        query, key = (torch.arange(n, device=q.device) for n in (length_q, length_k))
        seen = seen * (key[None, :] <= query[:, None])
    if key_padding_mask is not None:
        seen = seen * (1 - key_padding_mask.to(q.dtype))[:, None, None, :]
    number = seen.sum(-1, keepdim=True)
    return seen / torch.where(number > 0, number, 1.0)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
