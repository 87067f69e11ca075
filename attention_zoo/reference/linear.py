"""Oracle of linear attention: the L x L matrix phi(Q) phi(K)^T, masked, each row divided by its sum."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def phi(core: AttentionCore, x: Tensor) -> Tensor:
    if core.feature_map == "elu":
        return torch.where(x > 0, x + 1, torch.exp(torch.where(x > 0, 0.0, x)))
    if core.feature_map == "relu":
        return torch.where(x > 0, x, 0.0) + 0.001
    raise ValueError(f"the oracle knows no feature map {core.feature_map!r}")


def masked_row_average(core: AttentionCore, kernel: Tensor, key_padding_mask: Tensor | None) -> Tensor:
    """The non-negative ``kernel`` [B, H, Lq, Lk] over visible keys, each row divided by its sum (zero if that is)."""
    position_q, position_k = torch.arange(kernel.shape[2]), torch.arange(kernel.shape[3])
    if core.pattern == "causal_self":
        kernel = kernel * (position_q[:, None] >= position_k[None, :])
    if key_padding_mask is not None:
        kernel = kernel * (~key_padding_mask)[:, None, None, :]
    total = kernel.sum(-1, keepdim=True)
    return kernel / torch.where(total > 0, total, 1.0)


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]."""
    kernel = torch.einsum("bhif,bhjf->bhij", phi(core, q), phi(core, k))
    return masked_row_average(core, kernel, key_padding_mask)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
