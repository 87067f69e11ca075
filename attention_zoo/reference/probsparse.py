"""Oracle of ProbSparse attention: its whole matrix, rows of softmax for the chosen queries and of 1 / n for the others.

Sampled keys, M and the choice are found one sample and head at a time, straight from the definitions.
"""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def _count(factor: int, tokens: int) -> int:
    return min(tokens, max(1, factor * math.ceil(math.log(tokens))))


def sampled(places: list[int], keys: list[int], factor: int) -> list[int]:
    """Of n keys in U runs, equal up to one key, the one at the place p_j / 2^16 of run j."""
    size = _count(factor, len(keys))
    borders = [len(keys) * j // size for j in range(size + 1)]
    runs = [keys[first:last] for first, last in itertools.pairwise(borders)]
    return [run[len(run) * places[j % len(places)] >> 16] for j, run in enumerate(runs)]


def chosen(
    core: AttentionCore, q: Tensor, k: Tensor, places: list[int], queries: list[int], keys: list[int]
) -> set[int]:
    """The queries of the largest M_i = max - mean of their scores on the sample; ``q`` [Lq, D] and ``k`` [Lk, D]."""
    factor = int(vars(core)["factor"])
    scores = q.detach() @ k.detach()[sampled(places, keys, factor)].T
    measure = (scores.max(dim=1).values - scores.mean(dim=1)).tolist()
    return set(sorted(queries, key=lambda i: (-measure[i], i))[: _count(factor, len(queries))])


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, Lq, Lk]; rows sum to one, or are zero where nothing is visible."""
    batch, heads, length_q, width = q.shape
    length_k = k.shape[2]
    kept = torch.ones(batch, length_k, dtype=torch.bool, device=q.device)
    if key_padding_mask is not None:
        kept &= key_padding_mask.logical_not()
    seen = kept[:, None, None].expand(batch, 1, length_q, length_k)
    if core.pattern == "causal_self":
        position = torch.arange(length_k, device=q.device)
        seen = seen & (position[None] <= position[:, None])
    sharp = torch.zeros(batch, heads, length_q, dtype=torch.bool, device=q.device)
    for b in range(batch):
        keys = torch.nonzero(kept[b]).flatten().tolist()
        queries = list(range(length_q)) if core.pattern == "noncausal_cross" else keys
        if not keys:
            continue
        for h in range(heads):
            places = core.get_buffer("places")[h].tolist()
            sharp[b, h, list(chosen(core, q[b, h], k[b, h], places, queries, keys))] = True
    # The rows of the others are a softmax of zeros.
    logits = torch.where(sharp[..., None], torch.einsum("bhid,bhjd->bhij", q, k) / width**0.5, 0.0)
    largest = torch.where(seen, logits, -torch.inf).amax(-1, keepdim=True).detach()
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    numerator = torch.exp(torch.where(seen, logits - largest, -torch.inf))
    denominator = numerator.sum(-1, keepdim=True)
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
