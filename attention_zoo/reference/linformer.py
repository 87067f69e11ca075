"""Oracle of Linformer: the matrix softmax(Q (E K)^T / sqrt(D)) F on tokens, E and F without the columns of padding."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]."""
    batch, heads, length, width = k.shape
    p = dict(core.named_parameters())
    e = p["key_matrix"].to(q.dtype)[:, :, :length].expand(heads, -1, -1)
    f = p.get("value_matrix", p["key_matrix"]).to(q.dtype)[:, :, :length].expand(heads, -1, -1)
    kept = torch.ones(batch, length, dtype=q.dtype, device=q.device)
    if key_padding_mask is not None:
        kept = kept * key_padding_mask.logical_not()
    rows = torch.einsum("hrj,bj,bhjd->bhrd", e, kept, k)
    logits = torch.einsum("bhid,bhrd->bhir", q, rows) / width**0.5
    exponentials = torch.exp(logits - logits.amax(-1, keepdim=True).detach())
    probabilities = exponentials / exponentials.sum(-1, keepdim=True)
    return torch.einsum("bhir,hrj,bj->bhij", probabilities, f, kept)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
