"""Oracle of SMYRF: softmax with the logit bias log m_ij, m_ij = number of rounds in which i and j share a cluster.

The clusters are found one sample, head and round at a time, straight from the definitions:
F(q) = [q, 0, sqrt(S^2 - |q|^2)], G(k) = [k, sqrt(S^2 - |k|^2), 0], hashes a . F and a . G, lists cut into equal pieces.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def _hash_query(a: Tensor, q: Tensor, s2: float) -> float:
    *first, _, last = a.tolist()
    return sum(x * y for x, y in zip(first, q.tolist(), strict=True)) + last * max(s2 - float(q @ q), 0.0) ** 0.5


def _hash_key(a: Tensor, k: Tensor, s2: float) -> float:
    *first, middle, _ = a.tolist()
    return sum(x * y for x, y in zip(first, k.tolist(), strict=True)) + middle * max(s2 - float(k @ k), 0.0) ** 0.5


def _cut(items: list[int], pieces: int) -> list[list[int]]:
    return [items[len(items) * c // pieces : len(items) * (c + 1) // pieces] for c in range(pieces)]


def _ceil_div(n: int, m: int) -> int:
    return max(1, (n + m - 1) // m)


def _balanced(q: Tensor, k: Tensor, a: Tensor, queries: list[int], keys: list[int], size: int, met: Tensor) -> None:
    """Adds one to met[i, j] for every i and j in pieces of the same number."""
    squares = [[float(x[i] @ x[i]) for i in items] for x, items in ((q, queries), (k, keys))]
    s2 = max(squares[0], default=0.0) + max(squares[1])
    by_hash_q = sorted(queries, key=lambda i: _hash_query(a, q[i], s2))
    by_hash_k = sorted(keys, key=lambda j: _hash_key(a, k[j], s2))
    pieces = _ceil_div(len(queries), size)
    cut_q, cut_k = _cut(by_hash_q, pieces), _cut(by_hash_k, min(pieces, len(keys)))
    cut_q[-1] = cut_q[-1] + [i for i in range(len(q)) if i not in set(queries)]  # padded queries read the last piece
    for c, piece in enumerate(cut_q):
        for i in piece:
            met[i, cut_k[c * len(cut_k) // pieces]] += 1


def _anchored(q: Tensor, k: Tensor, a: Tensor, queries: list[int], keys: list[int], size: int, met: Tensor) -> None:
    """Adds one to met[i, j] for every query i whose hash lies in the interval of the piece of key j."""
    bound = max(float(k[j].norm()) for j in keys)
    hashes = {j: _hash_key(a, k[j], 2 * bound**2) for j in keys}
    cut = _cut(sorted(keys, key=lambda j: hashes[j]), _ceil_div(len(keys), size))
    borders = [(hashes[low[-1]] + hashes[high[0]]) / 2 for low, high in itertools.pairwise(cut)]
    for i in queries:
        norm = float(q[i].norm())
        hashed = _hash_query(a, q[i] * (bound / norm) if norm > 0 else q[i], 2 * bound**2)
        met[i, cut[sum(border <= hashed for border in borders)]] += 1


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
            for a in hashes[h]:
                if core.pattern == "causal_self":
                    for i in range(length_q):
                        met[b, h, i, [j for j in keys if i // size * size <= j <= i]] += 1
                    block = size
                    while block < length_k:
                        for start in range(0, length_k - block, 2 * block):
                            past = [j for j in keys if start <= j < start + block]
                            if past:
                                later = list(range(start + block, min(start + 2 * block, length_q)))
                                _anchored(qh, kh, a, later, past, size, met[b, h])
                        block *= 2
                elif keys and core.pattern == "causal_cross":
                    _anchored(qh, kh, a, list(range(length_q)), keys, size, met[b, h])
                elif keys:
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
