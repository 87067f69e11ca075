"""What mechanisms share: chunked causal scan, log-sum-exp merge, block gather, masks.

Each function is mathematics on tensors with no state; a mechanism composes them in the order of its paper.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64, Shaped
from torch import Tensor
from torch.autograd.function import once_differentiable

SCAN_CHUNK = 64  # positions per chunk of a causal scan


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A block in which autocast leaves dtypes as they are, for sums that low precision would spoil."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """At least float32, so that bfloat16 and float16 are widened and float64 stays."""
    return torch.promote_types(x.dtype, torch.float32)


class ScanSums(NamedTuple):
    """S = sum_j k_j v_j^T and z = sum_j k_j over the positions so far."""

    s: Float[Tensor, "B H F Dv"]
    z: Float[Tensor, "B H F"]


def causal_scan(
    q: Float[Tensor, "B H L F"], k: Float[Tensor, "B H L F"], v: Float[Tensor, "B H L Dv"], *, chunk: int = SCAN_CHUNK
) -> tuple[Float[Tensor, "B H L Dv"], Float[Tensor, "B H L 1"]]:
    """sum_{j <= i} (q_i . k_j) v_j and sum_{j <= i} (q_i . k_j), by matrix products over chunks of the sequence."""
    return continue_scan(q, k, v, None, chunk=chunk, more=False)[:2]


def continue_scan(
    q: Float[Tensor, "B H L F"],
    k: Float[Tensor, "B H L F"],
    v: Float[Tensor, "B H L Dv"],
    sums: ScanSums | None,
    *,
    chunk: int = SCAN_CHUNK,
    more: bool = True,
) -> tuple[Float[Tensor, "B H L Dv"], Float[Tensor, "B H L 1"], ScanSums | None]:
    """:func:`causal_scan` behind the positions whose sums are given, and the sums after it (None unless ``more``).

    With S and z the sums over all chunks before the one at hand,

        numerator = tril(Q K^T) V + Q S,    denominator = rowsum(tril(Q K^T)) + Q z.

    S and z are added up from the left (never a difference, which would carry rounding back from the future). On a CPU
    chunk by chunk, since what a chunk needs fits its cache; on a GPU all chunks at once, since there launches cost.
    Time O(L (chunk + F) (F + Dv)); memory O(L (F + Dv)), and O(L F Dv / chunk) for gradients; any length.
    """
    scan = _scan_at_once if q.is_cuda else _scan_in_order
    leading = q.shape[:2]
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    before = None if sums is None else (sums.s.flatten(0, 1), sums.z.flatten(0, 1).unsqueeze(-1))
    numerator, denominator, after = scan(q, k, v, before, chunk, more)
    if after is not None:
        sums = ScanSums(after[0].unflatten(0, leading), after[1].squeeze(-1).unflatten(0, leading))
    return numerator.unflatten(0, leading), denominator.unflatten(0, leading), sums if more else None


_Sums = tuple[Float[Tensor, "N F Dv"], Float[Tensor, "N F 1"]]


def _scan_in_order(
    q: Float[Tensor, "N L F"],
    k: Float[Tensor, "N L F"],
    v: Float[Tensor, "N L Dv"],
    sums: _Sums | None,
    chunk: int,
    more: bool,
) -> tuple[Float[Tensor, "N L Dv"], Float[Tensor, "N L 1"], _Sums | None]:
    numerators, denominators = [], []
    parts = list(zip(*(x.split(chunk, dim=1) for x in (q, k, v)), strict=True))
    for number, (queries, keys, values) in enumerate(parts, start=1):
        transposed = keys.transpose(1, 2)
        scores = torch.bmm(queries, transposed).tril_()
        numerator, denominator = torch.bmm(scores, values), scores.sum(-1, keepdim=True)
        if sums is not None:
            numerator = torch.baddbmm(numerator, queries, sums[0])
            denominator = torch.baddbmm(denominator, queries, sums[1])
        numerators.append(numerator)
        denominators.append(denominator)
        if not more and number == len(parts):
            sums = None
        elif sums is None:
            sums = torch.bmm(transposed, values), keys.sum(1).unsqueeze(-1)
        else:
            sums = torch.baddbmm(sums[0], transposed, values), sums[1] + keys.sum(1).unsqueeze(-1)
    return torch.cat(numerators, dim=1), torch.cat(denominators, dim=1), sums


def _scan_at_once(
    q: Float[Tensor, "N L F"],
    k: Float[Tensor, "N L F"],
    v: Float[Tensor, "N L Dv"],
    sums: _Sums | None,
    chunk: int,
    more: bool,
) -> tuple[Float[Tensor, "N L Dv"], Float[Tensor, "N L 1"], _Sums | None]:
    length = q.shape[1]
    chunk = min(chunk, length)
    q, k, v = (F.pad(x, (0, 0, 0, -length % chunk)).unflatten(1, (-1, chunk)) for x in (q, k, v))
    scores = (q @ k.transpose(-2, -1)).tril_()
    added = k.transpose(-2, -1) @ v, k.sum(-2).unsqueeze(-1)
    first = tuple(torch.zeros_like(x[:, 0]) for x in added) if sums is None else sums
    s, z = (torch.cat((start[:, None], x), dim=1).cumsum(1) for start, x in zip(first, added, strict=True))
    numerator = (scores @ v + q @ s[:, :-1]).flatten(1, 2)[:, :length]
    denominator = (scores.sum(-1, keepdim=True) + q @ z[:, :-1]).flatten(1, 2)[:, :length]
    return numerator, denominator, (s[:, -1], z[:, -1]) if more else None


def gather_rows(x: Float[Tensor, "*n L D"], index: Int64[Tensor, "*n *m"]) -> Float[Tensor, "*n *m D"]:
    """y[n, m, :] = x[n, index[n, m], :]: rows by number. ``index`` begins with the leading shape of ``x``.

    One ``index_select`` on the flattened rows: ``torch.gather`` would need an index as large as its output.
    """
    leading, (length, width) = x.shape[:-2], x.shape[-2:]
    count = math.prod(leading)
    first = torch.arange(0, count * length, max(length, 1), device=x.device)
    flat = (index.reshape(count, -1) + first[:, None]).flatten()
    return x.reshape(count * length, width).index_select(0, flat).view(*index.shape, width)


def segment_means(
    x: Float[Tensor, "B H L D"], valid: Bool[Tensor, "B L"] | None, segments: int
) -> tuple[Float[Tensor, "B H S D"], Int64[Tensor, "B S"]]:
    """Means of S runs of tokens as equal in size as can be, and how many tokens each holds.

    Of a sample's n valid tokens the p-th (from 0) is in segment floor(p s / n), s = min(S, n): segment c < s holds the
    tokens ceil(c n / s) .. ceil((c + 1) n / s) - 1, and the others are empty, with mean and count 0. So a padded sample
    has the means of the cut one. Means are in at least float32.

    Time and memory O(L D), whatever S; forward is a gather and a sum, deterministic on every device.
    """
    batch, heads, length, width = x.shape
    wide, device = accumulation_dtype(x), x.device
    if valid is None and length % segments == 0:
        counts = torch.full((batch, segments), length // segments, device=device)
        return x.unflatten(2, (segments, -1)).sum(3, dtype=wide) / (length // segments), counts
    tokens = torch.full((batch, 1), length, device=device) if valid is None else valid.sum(-1, keepdim=True)
    filled = tokens.clamp(min=1, max=segments)
    border = (torch.arange(segments + 1, device=device) * tokens + filled - 1) // filled
    start, end = (side.clamp(max=tokens) for side in (border[:, :-1], border[:, 1:]))
    rank = start[..., None] + torch.arange(math.ceil(length / segments), device=device)
    inside = rank < end[..., None]
    # Empty places repeat a token of the segment, with weight 0.
    index = torch.minimum(rank, (end[..., None] - 1).clamp(min=0)).flatten(1)
    if valid is not None:
        index = (~valid).to(torch.uint8).argsort(dim=-1, stable=True).gather(-1, index)
    counts = end - start
    weight = inside.to(wide) / counts.clamp(min=1)[..., None].to(wide)
    rows = gather_rows(x.transpose(1, 2).flatten(2), index).unflatten(1, (segments, -1)).to(wide)
    means = rows.mul_(weight[..., None]).sum(2)
    return means.unflatten(-1, (heads, width)).transpose(1, 2), counts


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


class _AttentionWithLse(torch.autograd.Function):
    """Forward and backward of :func:`attention_with_lse` in few passes over the pairs, most of them in place.

    With e_ij = e^(x_ij - max) / c_ij, t_i = sum_j e_ij, g the gradient of o and h that of lse:

        dv = e^T (g / t),    dx = e (g v^T / t - (g . o - h) / t),    dq = scale dx k,    dk = scale dx^T q.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        visible: Tensor | None,
        divisor: Tensor | None,
        dropout: float,
    ) -> tuple[Tensor, Tensor]:
        wide = accumulation_dtype(q)
        with without_autocast(q):
            weights = ((q * scale) @ k.transpose(-2, -1)).to(wide)
            if visible is not None:
                weights.masked_fill_(~visible, -torch.inf)
            # The maximum cancels between numerator and normaliser.
            largest = weights.amax(-1, keepdim=True)
            largest = torch.where(largest.isfinite(), largest, 0.0)
            weights.sub_(largest).exp_()
            if divisor is not None:
                weights.div_(divisor)
            total = weights.sum(-1, keepdim=True)
            seen = total > 0
            total = torch.where(seen, total, 1.0)
            lse = torch.where(seen, total.log() + largest, -torch.inf).squeeze(-1)
            keep = None if dropout == 0 else (torch.rand_like(weights) >= dropout).to(wide).div_(1 - dropout)
            out = (weights if keep is None else weights * keep).to(v.dtype) @ v
            out = out.to(wide).div_(total)
        ctx.save_for_backward(q, k, v, weights, total, seen, keep, out)
        ctx.scale = scale
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, total, seen, keep, out = ctx.saved_tensors
        with without_autocast(q):
            # The gradient of -inf is void.
            grad_lse = torch.where(seen, grad_lse.unsqueeze(-1), 0.0)
            grad_sum = ((grad_out * out).sum(-1, keepdim=True) - grad_lse) / total
            grad_out = (grad_out / total).to(v.dtype)
            grad_v = (weights if keep is None else weights * keep).to(v.dtype).transpose(-2, -1) @ grad_out
            grad_logits = (grad_out @ v.transpose(-2, -1)).to(weights.dtype)
            if keep is not None:
                grad_logits.mul_(keep)
            grad_logits = grad_logits.sub_(grad_sum).mul_(weights).to(q.dtype)
            grad_q = (grad_logits @ k).mul_(ctx.scale)
            grad_k = (grad_logits.transpose(-2, -1) @ q).mul_(ctx.scale)
        return grad_q, grad_k, grad_v, None, None, None, None


def attention_with_lse(
    q: Float[Tensor, "*n m D"],
    k: Float[Tensor, "*n l D"],
    v: Float[Tensor, "*n l Dv"],
    *,
    scale: float,
    visible: Bool[Tensor, "*pairs"] | None = None,
    divisor: Shaped[Tensor, "*pairs"] | None = None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "*n m Dv"], Float[Tensor, "*n m"]]:
    """Softmax attention and the logarithm of its normaliser, both differentiable (once).

    With x_ij = scale q_i . k_j and positive divisors c_ij (1 where None), over the visible j:

        lse_i = log sum_j e^x_ij / c_ij,    o_i = e^(-lse_i) sum_j (e^x_ij / c_ij) v_j.

    A row that sees nothing gives o_i = 0 and lse_i = -inf, with zero gradients. ``visible`` and ``divisor`` broadcast
    to ``[*n, m, l]``. Normalisers are in at least float32, and so are the results. Dropout acts on the weights only.
    """
    out, lse = _AttentionWithLse.apply(q, k, v, scale, visible, divisor, dropout)
    return out, lse


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
    query_ids: Sequence[Int64[Tensor, "*n R Lq"]],
    key_id: Int64[Tensor, "*n R Lk"],
    query_slot: Int64[Tensor, "*n R P m"],
    key_slot: Int64[Tensor, "*n R P l"],
) -> Shaped[Tensor, "*n R P m l"]:
    """N_ij, the rounds in which i and j meet, for the pairs (i, j) that meet in a block of the round at hand.

    They meet in round r where key_id[r, j] equals query_id[r, i] for one of ``query_ids`` (which differ from each
    other). The round at hand is not looked at: a pair that shares its block without meeting gets a count of no meaning.
    """
    rounds = key_id.shape[-2]
    # One byte a pair where it suffices: these are the largest tensors here.
    dtype = torch.uint8 if rounds < 256 else torch.int16
    count = torch.ones((*query_slot.shape, key_slot.shape[-1]), dtype=dtype, device=key_id.device)
    equal = torch.empty_like(count, dtype=torch.bool)
    for other in range(1, rounds):
        of_key = key_id.roll(-other, dims=-2).gather(-1, key_slot.flatten(-2)).view_as(key_slot).int()
        for query_id in query_ids:
            of_query = query_id.roll(-other, dims=-2).gather(-1, query_slot.flatten(-2)).view_as(query_slot).int()
            torch.eq(of_query[..., :, None], of_key[..., None, :], out=equal)
            count.add_(equal.view(torch.uint8))
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
