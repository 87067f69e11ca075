"""What mechanisms share: chunked causal scan, log-sum-exp merge, block gather, masks.

Each function is mathematics on tensors with no state; a mechanism composes them in the order of its paper.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int16, Int64
from torch import Tensor

SCAN_CHUNK = 128  # positions per chunk of a causal scan


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block in which autocast leaves dtypes as they are, for sums that low precision would spoil."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """At least float32, so that bfloat16 and float16 are widened and float64 stays."""
    return torch.promote_types(x.dtype, torch.float32)


def causal_scan(
    q: Float[Tensor, "B H L F"], k: Float[Tensor, "B H L F"], v: Float[Tensor, "B H L Dv"], *, chunk: int = SCAN_CHUNK
) -> tuple[Float[Tensor, "B H L Dv"], Float[Tensor, "B H L 1"]]:
    """sum_{j <= i} (q_i . k_j) v_j and sum_{j <= i} (q_i . k_j), by matrix products over chunks of the sequence.

    With S and z the sums of k_j v_j^T and of k_j over all chunks before the one at hand,

        numerator = Q S + tril(Q K^T) V,    denominator = Q z + rowsum(tril(Q K^T)).

    S is the exclusive prefix sum of the chunks' own sums (never a difference, which would carry rounding back from the
    future). All chunks at once: time O(L (chunk + F) (F + Dv)), memory O(L (chunk + F Dv / chunk)); any length.
    """
    length = q.shape[2]
    chunk = min(chunk, length)
    short = -length % chunk
    if short:
        q, k, v = (F.pad(x, (0, 0, 0, short)) for x in (q, k, v))
    q, k, v = (x.unflatten(2, (-1, chunk)) for x in (q, k, v))
    scores = (q @ k.transpose(-2, -1)).tril()
    numerator, denominator = scores @ v, scores.sum(-1, keepdim=True)
    if q.shape[2] > 1:
        before_kv = _exclusive_cumsum(k.transpose(-2, -1) @ v)
        before_k = _exclusive_cumsum(k.sum(-2, keepdim=True))
        numerator = numerator + q @ before_kv
        denominator = denominator + q @ before_k.transpose(-2, -1)
    return numerator.flatten(2, 3)[:, :, :length], denominator.flatten(2, 3)[:, :, :length]


def _exclusive_cumsum(x: Float[Tensor, "B H N *rest"]) -> Float[Tensor, "B H N *rest"]:
    return F.pad(x[:, :, :-1].cumsum(2), (0, 0, 0, 0, 1, 0))


def gather_rows(x: Float[Tensor, "*n L D"], index: Int64[Tensor, "*n *m"]) -> Float[Tensor, "*n *m D"]:
    """y[n, m, :] = x[n, index[n, m], :]: rows by number. ``index`` begins with the leading shape of ``x``.

    One ``index_select`` on the flattened rows: ``torch.gather`` would need an index as large as its output.
    """
    leading, (length, width) = x.shape[:-2], x.shape[-2:]
    count = math.prod(leading)
    first = torch.arange(0, count * length, max(length, 1), device=x.device)
    flat = (index.reshape(count, -1) + first[:, None]).flatten()
    return x.reshape(count * length, width).index_select(0, flat).view(*index.shape, width)


def invert_permutation(order: Int64[Tensor, "*n L"]) -> Int64[Tensor, "*n L"]:
    """rank with rank[order[r]] = r."""
    ranks = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, ranks)


class Groups(NamedTuple):
    """Items laid out in blocks of ``m`` slots, each block of one group (see :func:`group_into_blocks`)."""

    item: Int64[Tensor, "*n P m"]
    """The item of each slot; 0 in the empty slots, which ``slot`` never names."""
    group: Int64[Tensor, "*n P"]
    """The group of each block."""
    slot: Int64[Tensor, "*n L"]
    """The slot of each item, in 0 .. P m - 1."""


def group_into_blocks(group: Int64[Tensor, "*n L"], num_groups: int, block_size: int) -> Groups:
    """Cuts groups of any sizes s_g into ceil(s_g / m) blocks of m slots, so that one batched product serves them all.

    P = floor(L / m) + min(num_groups, L) blocks always suffice, whatever the sizes, so shapes do not depend on data.
    """
    length = group.shape[-1]
    blocks = length // block_size + min(num_groups, length)
    size = group.new_zeros(*group.shape[:-1], num_groups).scatter_add_(-1, group, torch.ones_like(group))
    blocks_of_group = (size + block_size - 1) // block_size
    last_block = blocks_of_group.cumsum(-1)
    first_rank = size.cumsum(-1) - size
    rank = invert_permutation(group.argsort(dim=-1, stable=True))
    slot = (last_block - blocks_of_group).gather(-1, group) * block_size + rank - first_rank.gather(-1, group)
    items = torch.arange(length, device=group.device).expand_as(group)
    item = group.new_zeros(*group.shape[:-1], blocks * block_size).scatter_(-1, slot, items)
    number = torch.arange(blocks, device=group.device).expand(*group.shape[:-1], blocks)
    block_group = torch.searchsorted(last_block, number.contiguous(), right=True).clamp(max=num_groups - 1)
    return Groups(item.unflatten(-1, (blocks, block_size)), block_group, slot)


def attention_with_lse(
    q: Float[Tensor, "*n m D"],
    k: Float[Tensor, "*n l D"],
    v: Float[Tensor, "*n l Dv"],
    *,
    scale: float,
    visible: Bool[Tensor, "*pairs"] | None = None,
    bias: Float[Tensor, "*pairs"] | None = None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "*n m Dv"], Float[Tensor, "*n m"]]:
    """Softmax attention and the logarithm of its normaliser, both differentiable.

    x_ij = scale q_i . k_j + bias_ij over the visible j;  lse_i = log sum_j e^x_ij,  o_i = sum_j e^(x_ij - lse_i) v_j.

    A row that sees nothing gives o_i = 0 and lse_i = -inf, with zero gradients. ``visible`` and ``bias`` broadcast to
    ``[*n, m, l]``. Normalisers are in at least float32, and so are the results. Dropout acts on the weights only.
    """
    wide = accumulation_dtype(q)
    logits = ((q * scale) @ k.transpose(-2, -1)).to(wide)
    if bias is not None:
        logits = logits + bias
    if visible is not None:
        logits = logits.masked_fill(~visible, -torch.inf)
    # The maximum cancels between numerator and normaliser, so it needs no gradient.
    largest = logits.detach().amax(-1, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)
    weights = torch.exp(logits - largest)
    total = weights.sum(-1, keepdim=True)
    # A total of 0 is replaced before division and logarithm: where() alone would leave NaN in the gradient.
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    lse = torch.where(seen, total.log() + largest, -torch.inf).squeeze(-1)
    weights = F.dropout(weights, dropout, training=dropout > 0)
    return (weights.to(v.dtype) @ v).to(wide) / total, lse


def merge_by_lse(
    out: Float[Tensor, "*parts Dv"], lse: Float[Tensor, "*parts"], dim: int
) -> tuple[Float[Tensor, "*rest Dv"], Float[Tensor, "*rest"]]:
    """o = sum_r e^(lse_r - lse) o_r with lse = log sum_r e^lse_r: attention over several sets of keys, from its parts.

    Exact, gradient included, where the sets are disjoint; a key in N sets counts N times. ``out`` is ``[..., Dv]`` and
    ``lse`` the same without the last dimension; ``dim`` is the dimension of r in ``lse``. Parts with lse = -inf do not
    count; where all are, o = 0 and lse = -inf, with zero gradients.
    """
    dim = dim % lse.ndim
    largest = lse.detach().amax(dim, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)
    weights = torch.exp(lse - largest)
    total = weights.sum(dim, keepdim=True)
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    merged = (out * (weights / total).unsqueeze(-1)).sum(dim)
    return merged, torch.where(seen, total.log() + largest, -torch.inf).squeeze(dim)


def count_shared_rounds(
    query_id: Int64[Tensor, "*n R Lq"],
    key_id: Int64[Tensor, "*n R Lk"],
    query_slot: Int64[Tensor, "*n R P m"],
    key_slot: Int64[Tensor, "*n R P l"],
) -> Int16[Tensor, "*n R P m l"]:
    """N_ij = #{r : query_id[r, i] = key_id[r, j]} for the pairs (i, j) that meet in a block."""
    count = torch.zeros((), dtype=torch.int16, device=query_id.device)  # the largest tensor here: kept small
    for r in range(query_id.shape[-2]):
        of_query = query_id[..., r, :].gather(-1, query_slot.flatten(-3)).view_as(query_slot)
        of_key = key_id[..., r, :].gather(-1, key_slot.flatten(-3)).view_as(key_slot)
        count = count + (of_query[..., :, None] == of_key[..., None, :])
    return count


def frozen_normal(*shape: int) -> Tensor:
    """Independent N(0, 1) numbers for a buffer, from an own generator seeded once by torch's global one.

    They are rounded to bfloat16, so that a model in any dtype compares the same projections: a hash that changed with
    the dtype would be another mechanism there.
    """
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    generator = torch.Generator("cpu").manual_seed(seed)
    sample = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32).to(torch.bfloat16)
    return sample.to(device=torch.get_default_device(), dtype=torch.get_default_dtype())
