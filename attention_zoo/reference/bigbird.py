"""Oracle of BigBird: dense softmax under the union of global, neighbouring and random blocks, found block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from attention_zoo.contract import AttentionCore


def chosen(numbers: list[int], candidates: list[int]) -> set[int]:
    """Floyd's sampling of as many candidates as there are numbers, each u standing for the fraction u / 2^31."""
    size = len(numbers)
    if len(candidates) <= size:
        return set(candidates)
    picked: set[int] = set()
    for number, last in zip(numbers, range(len(candidates) - size, len(candidates)), strict=True):
        place = number * (last + 1) // 2**31
        picked.add(last if place in picked else place)
    return {candidates[place] for place in picked}


def blocks_seen(core: AttentionCore, head: int, n: int, blocks: int, total: int) -> set[int]:
    """Blocks that block n of the ``blocks`` after the global ones sees, the first ``total`` of which are not padding.

    The global ones are left out. A block of padding may draw all blocks before it; what it gives has no meaning.
    """
    near = {n - 1, n, n + 1} & set(range(blocks))
    others = [m for m in range(max(total, n - 1)) if m not in near]
    if core.pattern == "causal_self":
        near, others = {m for m in near if m <= n}, [m for m in others if m <= n]
    return near | chosen(core.get_buffer("draws")[head, n].tolist(), others)


def visible(core: AttentionCore, batch: int, length: int, key_padding_mask: Tensor | None) -> Tensor:
    """[B, H, L, L]."""
    size, lead = int(vars(core)["block_size"]), int(vars(core)["num_global"])
    blocks = -(-length // size)
    valid = torch.ones(batch, length, dtype=torch.bool)
    if key_padding_mask is not None:
        valid = key_padding_mask.logical_not()
    graph = torch.zeros(batch, core.num_heads, blocks, blocks, dtype=torch.bool)
    graph[:, :, :lead] = True
    graph[:, :, :, :lead] = True
    for b, sample in enumerate(valid.tolist()):
        end = max((j + 1 for j in range(length) if sample[j]), default=0)
        # In the causal pattern nothing after a block matters to it, so that it may as well be the last one.
        total = blocks - lead if core.pattern == "causal_self" else -(-end // size) - lead
        for h in range(core.num_heads):
            for n in range(blocks - lead):
                for m in blocks_seen(core, h, n, blocks - lead, total):
                    graph[b, h, lead + n, lead + m] = True
    of = torch.arange(length) // size
    seen = graph[:, :, of][..., of] & valid[:, None, None, :]
    return seen.tril() if core.pattern == "causal_self" else seen


def weights(core: AttentionCore, q: Tensor, k: Tensor, *, key_padding_mask: Tensor | None = None) -> Tensor:
    """[B, H, L, L]."""
    seen = visible(core, q.shape[0], q.shape[2], key_padding_mask)
    logits = torch.einsum("bhid,bhjd->bhij", q, k) / q.shape[-1] ** 0.5
    largest = torch.where(seen, logits, -torch.inf).amax(-1, keepdim=True).detach()
    largest = torch.where(torch.isfinite(largest), largest, 0.0)
    numerator = torch.exp(torch.where(seen, logits - largest, -torch.inf))
    denominator = numerator.sum(-1, keepdim=True)
    return numerator / torch.where(denominator > 0, denominator, 1.0)


def dense_core(
    core: AttentionCore, q: Tensor, k: Tensor, v: Tensor, *, key_padding_mask: Tensor | None = None
) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", weights(core, q, k, key_padding_mask=key_padding_mask), v)
