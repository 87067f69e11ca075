"""Oracle of Nystromformer: the whole matrix softmax(Q K~^T) Z softmax(Q~ K^T) + C, one sample at a time.

Landmark c of n tokens cut into s segments is the mean of the tokens of ranks p with floor(p s / n) = c, s = min(m, n).
C is the banded matrix of the convolution over positions, zero in the columns of padding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def _landmarks(x: Tensor, tokens: list[int], most: int) -> Tensor:
    segments: list[list[int]] = [[] for _ in range(min(most, len(tokens)))]
    for rank, token in enumerate(tokens):
        segments[rank * len(segments) // len(tokens)].append(token)
    return torch.stack([x[:, segment].mean(1) for segment in segments], dim=1)


def _softmax(logits: Tensor) -> Tensor:
    e = torch.exp(logits - logits.amax(-1, keepdim=True).detach())
    return e / e.sum(-1, keepdim=True)


def _inverse(a: Tensor, iterations: int) -> Tensor:
    if iterations == 0:
        return torch.linalg.pinv(a.double() if a.dtype is torch.bfloat16 else a).to(a.dtype)
    column_sum, row_sum = a.abs().sum(1).amax(-1), a.abs().sum(2).amax(-1)
    z = a.mT / (column_sum * row_sum)[:, None, None]
    one = torch.eye(a.shape[1], dtype=a.dtype, device=a.device)
    for _ in range(iterations):
        z = 0.25 * z @ (13 * one - a @ z @ (15 * one - a @ z @ (7 * one - a @ z)))
    return z


def _band(kernel: Tensor, length: int) -> Tensor:
    """[H, L, L] with kernel[h, j - i + floor(w / 2)] at (i, j) wherever that index exists."""
    position = torch.arange(length, device=kernel.device)
    tap = position[None, :] - position[:, None] + kernel.shape[1] // 2
    inside = (tap >= 0) & (tap < kernel.shape[1])
    return torch.where(inside, kernel[:, tap.clamp(0, kernel.shape[1] - 1)], 0.0)


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]; zero for a sample without keys."""
    most, iterations = int(vars(core)["num_landmarks"]), int(vars(core)["pinv_iterations"])
    kernel = dict(core.named_parameters()).get("conv")
    scale = q.shape[-1] ** -0.5
    samples = []
    for b in range(len(q)):
        keys = [j for j in range(k.shape[2]) if key_padding_mask is None or not bool(key_padding_mask[b, j])]
        whole = q.new_zeros(q.shape[1], q.shape[2], k.shape[2]) + 0.0 * q[b].sum() + 0.0 * k[b].sum()
        if keys:
            queries = keys if core.pattern == "noncausal_self" else list(range(q.shape[2]))
            landmarks_q, landmarks_k = _landmarks(q[b], queries, most), _landmarks(k[b], keys, most)
            seen = k[b][:, keys]
            first = _softmax(scale * q[b] @ landmarks_k.mT)
            middle = _softmax(scale * landmarks_q @ landmarks_k.mT)
            last = _softmax(scale * landmarks_q @ seen.mT)
            row = first @ _inverse(middle, iterations) @ last
            if kernel is not None:
                row = row + _band(kernel.to(q.dtype), k.shape[2])[:, :, keys]
            whole = whole.index_copy(2, torch.tensor(keys, device=q.device), row)
        samples.append(whole)
    return torch.stack(samples)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return weights(core, q, k, key_padding_mask=key_padding_mask) @ v
