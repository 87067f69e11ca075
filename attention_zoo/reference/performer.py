"""Oracle of Performer: the L x L matrix of phi(q_i) . phi(k_j) from the equations, no stabiliser, rows normalised."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore
from attention_zoo.reference.linear import masked_row_average


def phi(core: AttentionCore, x: Tensor) -> Tensor:
    """[B, H, L, m], feature by feature."""
    w = core.get_buffer("projection").to(x.dtype)
    x = x / x.shape[-1] ** 0.25
    features = []
    for w_j in w:
        dot = (x * w_j).sum(-1)
        if core.kernel == "softmax":
            features.append(torch.exp(dot - (x * x).sum(-1) / 2) / len(w) ** 0.5)
        else:
            features.append(torch.where(dot > 0, dot, 0.0) / len(w) ** 0.5 + 0.001)
    return torch.stack(features, dim=-1)


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]."""
    kernel = torch.einsum("bhif,bhjf->bhij", phi(core, q), phi(core, k))
    return masked_row_average(core, kernel, key_padding_mask)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
