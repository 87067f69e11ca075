"""Oracle of Reformer: softmax over the pairs that meet, weighted by 1 (duplicates corrected) or by their rounds N_ij.

The pairs are found one sample, head and round at a time, straight from the definitions: buckets
argmax([xR ; -xR]) (more than 2 m of them as pairs of two such numbers), sorted places, chunks, own chunk or the one
before; or, for separate queries and keys, the best occupied bucket and its first m keys.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def _directions(first: Tensor, second: Tensor, tokens: int, size: int) -> list[Tensor]:
    """For each factor of the buckets its directions, one a row; no factor where all tokens share one bucket."""
    if tokens <= size:
        return []
    half = (tokens + size - 1) // size
    if half <= size:
        return [torch.cat([first[:, :half].T, -first[:, :half].T])]
    c1 = next(c for c in range(1, half + 1) if 2 * c * c >= half)  # ceil(sqrt(half / 2))
    c2 = next(c for c in range(1, half + 1) if 2 * c1 * c >= half)
    return [torch.cat([m[:, :c].T, -m[:, :c].T]) for m, c in ((first, c1), (second, c2))]


def _shared(x: Tensor, factors: list[Tensor], valid: list[int], size: int, across: bool) -> Tensor:
    """[L, L]: each token sees those of its own chunk and of the one before (of its bucket, unless across)."""
    buckets = torch.stack([(x @ directions.T).argmax(-1) for directions in factors] or [torch.zeros(len(x))])
    keys = list(zip(*buckets.tolist(), strict=True))
    padding = sorted(set(range(len(x))) - set(valid))
    place = torch.zeros(len(x), dtype=torch.int64)
    place[sorted(valid, key=lambda i: (keys[i], i)) + padding] = torch.arange(len(x))
    chunk, last = place // size, (len(valid) - 1) // size
    before = torch.where(chunk == 0, last, chunk - 1) if across and last > 0 else chunk - 1
    sees = (chunk[None] == chunk[:, None]) | (chunk[None] == before[:, None])
    if not across:
        sees &= (buckets[:, None] == buckets[:, :, None]).all(0)
    sees[:, padding] = False
    return sees.fill_diagonal_(False)


def _separate(q: Tensor, k: Tensor, factors: list[Tensor], valid: list[int], size: int) -> Tensor:
    """[Lq, Lk]: each query sees the first m keys of the bucket that is best for it, factor by factor, with a key."""
    sees = torch.zeros(len(q), len(k), dtype=torch.bool)
    if not factors:  # one bucket, which is not cut
        sees[:, valid] = True
        return sees
    of_keys, of_queries = ([x @ directions.T for directions in factors] for x in (k, q))
    bucket = list(zip(*([scores.argmax(-1).tolist() for scores in of_keys]), strict=True))
    along = sum(scores.amax(-1) for scores in of_keys)
    assert isinstance(along, Tensor)
    members: dict[tuple[int, ...], list[int]] = {}
    for j in sorted(valid, key=lambda j: (-float(along[j]), j)):
        members.setdefault(bucket[j], []).append(j)
    for i in range(len(q)):
        best: tuple[int, ...] = ()
        for scores in of_queries:
            occupied = sorted({found[len(best)] for found in members if found[: len(best)] == best})
            best = (*best, occupied[int(scores[i, occupied].argmax())])
        sees[i, members[best][:size]] = True
    return sees


def rounds_met(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """N_ij, [B, H, Lq, Lk]: the rounds in which i may see j; 1 for a token that sees only itself."""
    batch, heads, length_q, _ = q.shape
    length_k, options = k.shape[2], vars(core)
    met = torch.zeros(batch, heads, length_q, length_k, dtype=q.dtype)
    rotations, seconds = (core.get_buffer(name).to(q.dtype) for name in ("rotations", "second_rotations"))
    for b in range(batch):
        valid = [j for j in range(length_k) if key_padding_mask is None or not bool(key_padding_mask[b, j])]
        for h in range(heads if valid else 0):
            for rotation, second in zip(rotations[h], seconds[h], strict=True):
                qh, kh = q[b, h].detach(), k[b, h].detach()
                factors = _directions(rotation, second, len(valid), options["bucket_size"])
                if options["shared_qk"]:
                    sees = _shared(qh, factors, valid, options["bucket_size"], options["attend_across_buckets"])
                else:
                    sees = _separate(qh, kh, factors, valid, options["bucket_size"])
                met[b, h] += sees.tril() if core.pattern == "causal_self" else sees
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
