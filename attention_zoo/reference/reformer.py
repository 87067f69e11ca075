"""Oracle of Reformer: softmax over the pairs that meet, weighted by 1 (duplicates corrected) or by their rounds N_ij.

The pairs are found one sample, head and round at a time, straight from the definitions: buckets
argmax([xR ; -xR]), sorted places, chunks, own chunk or the one before; or, for separate queries and keys, the best
occupied bucket and its first m keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def _directions(rotation: Tensor, tokens: int, size: int) -> Tensor | None:
    """The buckets' directions, one a row; None where all tokens share one bucket."""
    if tokens <= size:
        return None
    columns = rotation[:, : (tokens + size - 1) // size].T
    return torch.cat([columns, -columns])


def _shared(x: Tensor, rotation: Tensor, valid: list[int], size: int, across: bool) -> list[tuple[int, list[int]]]:
    """For each token, those of its own chunk and of the one before (of its bucket, unless across)."""
    directions = _directions(rotation, len(valid), size)
    bucket = [0] * len(x) if directions is None else [int((directions @ token).argmax()) for token in x]
    padding = [i for i in range(len(x)) if i not in set(valid)]
    place = {i: s for s, i in enumerate(sorted(valid, key=lambda i: (bucket[i], i)) + padding)}
    last = (len(valid) - 1) // size
    sees = []
    for i in range(len(x)):
        chunk = place[i] // size
        before = last if across and chunk == 0 and last > 0 else chunk - 1
        near = [j for j in valid if place[j] // size in (chunk, before)]
        sees.append((i, [j for j in near if j != i and (across or bucket[j] == bucket[i])]))
    return sees


def _separate(q: Tensor, k: Tensor, rotation: Tensor, valid: list[int], size: int) -> list[tuple[int, list[int]]]:
    """For each query, the first m keys of the bucket that is best for it among those with a key."""
    directions = _directions(rotation, len(valid), size)
    if directions is None:
        return [(i, valid) for i in range(len(q))]
    members: dict[int, list[tuple[float, int]]] = {}
    for j in valid:
        scores = directions @ k[j]
        members.setdefault(int(scores.argmax()), []).append((-float(scores.max()), j))
    occupied = sorted(members)
    best = [occupied[int((directions[occupied] @ query).argmax())] for query in q]
    return [(i, [j for _, j in sorted(members[best[i]])[:size]]) for i in range(len(q))]


def rounds_met(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """N_ij, [B, H, Lq, Lk]: the rounds in which i may see j; 1 for a token that sees only itself."""
    batch, heads, length_q, _ = q.shape
    length_k, options = k.shape[2], vars(core)
    met = torch.zeros(batch, heads, length_q, length_k, dtype=q.dtype)
    rotations = core.get_buffer("rotations").to(q.dtype)
    for b in range(batch):
        valid = [j for j in range(length_k) if key_padding_mask is None or not bool(key_padding_mask[b, j])]
        for h in range(heads if valid else 0):
            for rotation in rotations[h]:
                qh, kh = q[b, h].detach(), k[b, h].detach()
                if options["shared_qk"]:
                    sees = _shared(qh, rotation, valid, options["bucket_size"], options["attend_across_buckets"])
                else:
                    sees = _separate(qh, kh, rotation, valid, options["bucket_size"])
                for i, seen in sees:
                    met[b, h, i, [j for j in seen if core.pattern != "causal_self" or j <= i]] += 1
            if core.pattern in ("causal_self", "noncausal_self"):
                for i in valid:
                    if not met[b, h, i].any():
                        met[b, h, i, i] = 1
    return met.to(q.device)


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]: N_ij e^(q_i.k_j / sqrt(D)) over its sum, N_ij > 0 counted as 1 where duplicates are corrected."""
    met = rounds_met(core, q, k, key_padding_mask=key_padding_mask)
    if vars(core)["correct_duplicates"]:
        met = (met > 0).to(met.dtype)
    keys = q / q.square().sum(-1, keepdim=True).sqrt() if vars(core)["shared_qk"] else k
    logits = torch.einsum("bhid,bhjd->bhij", q, keys) / q.shape[-1] ** 0.5
    largest = torch.where(met > 0, logits, -torch.inf).amax(-1, keepdim=True).detach()
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    numerator = met * torch.exp(torch.where(met > 0, logits - largest, -torch.inf))
    denominator = numerator.sum(-1, keepdim=True)
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
