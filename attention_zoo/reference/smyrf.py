"""Oracle of SMYRF: softmax with the logit bias log m_ij, m_ij = number of rounds in which i and j share a cluster.

The clusters are found one sample, head and round at a time, straight from the definitions:
F(q) = [q, 0, sqrt(S^2 - |q|^2)], G(k) = [k, sqrt(S^2 - |k|^2), 0], hashes a . F and a . G, lists cut into equal
pieces; in the causal patterns F(q) = kappa q / |q|, G(k) = k - mean(k), kappa^2 = mean |G(k)|^2, and the keys' list
alone is cut.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def _hash_queries(a: Tensor, q: Tensor, s2: Tensor) -> list[float]:
    rest = (s2 - q.square().sum(-1)).clamp(min=0).sqrt()
    return list((torch.cat([q, torch.zeros_like(q[:, :1]), rest[:, None]], -1) @ a).tolist())


def _hash_keys(a: Tensor, k: Tensor, s2: Tensor) -> list[float]:
    rest = (s2 - k.square().sum(-1)).clamp(min=0).sqrt()
    return list((torch.cat([k, rest[:, None], torch.zeros_like(k[:, :1])], -1) @ a).tolist())


def _cut(items: list[int], pieces: int) -> list[list[int]]:
    return [items[len(items) * c // pieces : len(items) * (c + 1) // pieces] for c in range(pieces)]


def _ceil_div(n: int, m: int) -> int:
    return max(1, (n + m - 1) // m)


def _balanced(q: Tensor, k: Tensor, a: Tensor, queries: list[int], keys: list[int], size: int, met: Tensor) -> None:
    """Adds one to met[i, j] for every i and j in pieces of the same number."""
    s2 = q[queries].square().sum(-1).max() if queries else torch.zeros((), dtype=q.dtype)
    s2 = s2 + k[keys].square().sum(-1).max()
    hash_q, hash_k = _hash_queries(a, q, s2), _hash_keys(a, k, s2)
    by_hash_q, by_hash_k = sorted(queries, key=hash_q.__getitem__), sorted(keys, key=hash_k.__getitem__)
    pieces = _ceil_div(len(queries), size)
    cut_q, cut_k = _cut(by_hash_q, pieces), _cut(by_hash_k, min(pieces, len(keys)))
    cut_q[-1] = cut_q[-1] + [i for i in range(len(q)) if i not in set(queries)]  # padded queries read the last piece
    for c, piece in enumerate(cut_q):
        met[torch.tensor(piece, dtype=torch.int64)[:, None], cut_k[c * len(cut_k) // pieces]] += 1


def _anchored(q: Tensor, k: Tensor, a: Tensor, queries: list[int], keys: list[int], size: int, met: Tensor) -> None:
    """Adds one to met[i, j] for every query i whose hash lies in the interval of the piece of key j."""
    a = a[:-2]
    mean = k[keys].mean(0)
    kappa = float((k[keys] - mean).square().sum(-1).mean()) ** 0.5
    hashes = ((k - mean) @ a).tolist()
    cut = _cut(sorted(keys, key=hashes.__getitem__), _ceil_div(len(keys), size))
    borders = [(hashes[low[-1]] + hashes[high[0]]) / 2 for low, high in itertools.pairwise(cut)]
    norms = q[queries].norm(dim=-1)
    hashed = kappa * (q[queries] @ a) / torch.where(norms > 0, norms, 1.0)
    for i, x in zip(queries, hashed.tolist(), strict=True):
        met[i, cut[sum(border <= x for border in borders)]] += 1


def _past(q: Tensor, k: Tensor, hashes: Tensor, head: int, valid: list[int], size: int, met: Tensor) -> None:
    """Own chunks, and per round one of the K = floor(log2 c) + 1 sources of each chunk c."""
    length, rounds = len(q), len(hashes)
    for i in range(length):
        visits = max(1.0, rounds / max(1, (i // size).bit_length()))
        met[i, [j for j in valid if i // size * size <= j <= i]] += visits
    for r in range(rounds):
        visitors: dict[tuple[int, int], list[int]] = {}
        for i in range(size, length):
            count = (i // size).bit_length()
            turn = r % count
            if count > rounds and r == rounds - 1:  # what there is no round for is shared among the heads
                turn = r + head % (count - r)
            n = 2 ** (count - 1 - turn)
            visitors.setdefault((i // size // n * n, n), []).append(i)
        for (end, n), queries in visitors.items():
            keys = [j for j in valid if (end - n) * size <= j < end * size]
            if keys:
                _anchored(q, k, hashes[r], queries, keys, size, met)


def multiplicity(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """m_ij, [B, H, Lq, Lk]."""
    batch, heads, length_q, _ = q.shape
    length_k = k.shape[2]
    met = torch.zeros(batch, heads, length_q, length_k, dtype=q.dtype)
    size, hashes = int(vars(core)["cluster_size"]), core.get_buffer("hashes").to(q.dtype)
    for b in range(batch):
        keys = [j for j in range(length_k) if key_padding_mask is None or not bool(key_padding_mask[b, j])]
        for h in range(heads):
            qh, kh = q[b, h].detach(), k[b, h].detach()
            if core.pattern == "causal_self":
                _past(qh, kh, hashes[h], h, keys, size, met[b, h])
                continue
            for a in hashes[h] if keys else ():
                if core.pattern == "causal_cross":
                    _anchored(qh, kh, a, list(range(length_q)), keys, size, met[b, h])
                else:
                    queries = keys if core.pattern == "noncausal_self" else list(range(length_q))
                    _balanced(qh, kh, a, queries, keys, size, met[b, h])
    return met.to(q.device)


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]: m_ij e^(q_i.k_j / sqrt(D)) over its sum; with corrected duplicates every m_ij > 0 is 1."""
    met = multiplicity(core, q, k, key_padding_mask=key_padding_mask)
    if core.correct_duplicates:
        met = (met > 0).to(met.dtype)
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    largest = torch.where(met > 0, logits, -torch.inf).amax(-1, keepdim=True).detach()
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    numerator = met * torch.exp(torch.where(met > 0, logits - largest, -torch.inf))
    denominator = numerator.sum(-1, keepdim=True)
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
