"""Oracle of cosFormer: the L x L matrix relu(q_i) . relu(k_j) cos(pi/2 (i - j) / M), masked, rows normalised."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore
from attention_zoo.reference.linear import masked_row_average


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]."""
    longest = max(core.max_length, core.max_length_key)
    distance = torch.arange(q.shape[2])[:, None] - torch.arange(k.shape[2])[None, :]
    cosine = torch.cos(math.pi / 2 * distance.double() / longest).to(q.dtype)
    positive_q, positive_k = (torch.where(x > 0, x, 0.0) for x in (q, k))
    kernel = torch.einsum("bhid,bhjd->bhij", positive_q, positive_k) * cosine
    return masked_row_average(core, kernel, key_padding_mask)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
