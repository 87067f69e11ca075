"""Oracle of LARA without noise: segments by a loop over the tokens, and the L x L weights sum_c W_nc p_cm."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def segment_of(tokens: Tensor, segments: int) -> list[Tensor]:
    """The members of each segment: of n tokens the p-th is in segment floor(p s / n), s = min(segments, n)."""
    n = len(tokens)
    s = min(segments, n)
    return [tokens[[p for p in range(n) if p * s // n == c]] for c in range(segments)]


def landmarks(core: AttentionCore, x: Tensor, visible: Tensor, side: str) -> tuple[Tensor, Tensor]:
    """q~ or k~ of one sample, [H, C, D], and which segments have tokens, [C]."""
    rows, filled = [], []
    for members in segment_of(visible.nonzero()[:, 0], int(vars(core)["num_landmarks"])):
        mean = x[:, members].mean(1) if len(members) else torch.zeros_like(x[:, 0])
        if core.proposal == "pool" and len(members):
            weight, bias, gain, offset = (
                core.get_parameter(f"{side}_landmarks.{name}")
                for name in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")
            )
            y = torch.einsum("hd,ed->he", mean, weight) + bias
            centred = y - y.mean(-1, keepdim=True)
            mean = centred / torch.sqrt((centred * centred).mean(-1, keepdim=True) + 1e-5) * gain + offset
        rows.append(mean)
        filled.append(len(members) > 0)
    return torch.stack(rows, 1), torch.tensor(filled)


def log_gaussian(w: Tensor, mean: Tensor) -> Tensor:
    """log N(w; mean, I), up to its constant."""
    return -((w - mean) * (w - mean)).sum(-1) / 2


def log_feature(x: Tensor, w: Tensor) -> Tensor:
    """log xi(x, w) of scaled x."""
    return (x * w).sum(-1) - (x * x).sum(-1) / 2


def sample_weights(core: AttentionCore, q: Tensor, k: Tensor, visible_q: Tensor, visible_k: Tensor) -> Tensor:
    """[H, Lq, Lk] of one sample that sees something."""
    scale = core.head_dim**-0.25
    q_bar, filled_q = landmarks(core, q, visible_q, "query")
    k_bar, filled_k = landmarks(core, k, visible_k, "key")
    filled = filled_q | filled_k
    mu = ((q_bar + k_bar) * scale)[:, filled]
    q_bar = (q_bar * scale)[:, filled]
    queries, keys = q * scale, k * scale
    log_xi_k = log_feature(keys[:, None], mu[:, :, None])  # [H, C, Lk]
    log_xi_k = torch.where(visible_k, log_xi_k, -torch.inf)
    log_xi_q = log_feature(queries[:, :, None], mu[:, None])  # [H, Lq, C]
    if core.weighting == "query":
        log_alpha = torch.einsum("hnd,hcd->hnc", queries, mu)
    else:
        density = log_gaussian(mu[:, :, None], mu[:, None])  # [H, sample, proposal]
        heuristic = torch.softmax(density, -1).diagonal(dim1=-2, dim2=-1)
        relevance = torch.softmax(torch.einsum("hnd,hcd->hnc", queries, q_bar), -1)
        alpha = heuristic[:, None] + relevance - relevance.mean(-1, keepdim=True)
        log_alpha = torch.log(torch.where(alpha > 1e-8, alpha, 1e-8))
    log_target = log_xi_q + torch.logsumexp(log_xi_k, -1)[:, None] + log_gaussian(mu, torch.zeros_like(mu))[:, None]
    w = torch.softmax(log_alpha + log_target - log_gaussian(mu, mu)[:, None], -1)
    return torch.einsum("hnc,hcm->hnm", w, torch.softmax(log_xi_k, -1))


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]."""
    batch, heads, length_q, _ = q.shape
    length_k = k.shape[2]
    rows = []
    for b in range(batch):
        visible = torch.ones(length_k, dtype=torch.bool) if key_padding_mask is None else ~key_padding_mask[b]
        visible_q = torch.ones(length_q, dtype=torch.bool) if core.pattern.is_cross else visible
        if visible.any():
            rows.append(sample_weights(core, q[b], k[b], visible_q, visible))
        else:
            rows.append(q.new_zeros(heads, length_q, length_k))
    return torch.stack(rows)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhnm,bhmd->bhnd", weights(core, q, k, key_padding_mask=key_padding_mask), v)
