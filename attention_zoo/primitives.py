"""What mechanisms share: chunked causal scan, log-sum-exp merge, block gather, masks.

Each function is mathematics on tensors with no state; a mechanism composes them in the order of its paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
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

    One ``index_select`` on the rows as they lie in memory (so that heads cut out of a projection are not copied first):
    ``torch.gather`` would need an index as large as its output.
    """
    width, leading = x.shape[-1], x.shape[:-2]
    order = sorted(range(x.ndim - 1), key=x.stride, reverse=True)
    if not x.permute(*order, -1).is_contiguous():
        x, order = x.contiguous(), list(range(x.ndim - 1))
    strides = [stride // width for stride in x.stride()[:-1]]
    first = torch.zeros(leading, dtype=torch.int64, device=x.device)
    for dim, (length, stride) in enumerate(zip(leading, strides[:-1], strict=True)):
        steps = torch.arange(length, device=x.device) * stride
        first = first + steps.view(-1, *(1,) * (len(leading) - dim - 1))
    flat = (index.reshape(math.prod(leading), -1) * strides[-1] + first.view(-1, 1)).flatten()
    return x.permute(*order, -1).reshape(-1, width).index_select(0, flat).view(*index.shape, width)


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


def group_into_blocks(group: Int64[Tensor, "*n L"], num_groups: int, block_size: int, *, trim: bool = False) -> Groups:
    """Cuts groups of any sizes s_g into ceil(s_g / m) blocks of m slots, so that one batched product serves them all.

    P = floor(L / m) + min(num_groups, L) blocks always suffice, whatever the sizes, so shapes do not depend on data.
    With ``trim`` they do: P is what the sizes need, where there are data (on the meta device it is the bound).
    """
    length = group.shape[-1]
    blocks = length // block_size + min(num_groups, length)
    size = group.new_zeros(*group.shape[:-1], num_groups).scatter_add_(-1, group, torch.ones_like(group))
    blocks_of_group = (size + block_size - 1) // block_size
    last_block = blocks_of_group.cumsum(-1)
    if trim and not group.is_meta:
        blocks = int(last_block[..., -1].amax())
    first_rank = size.cumsum(-1) - size
    rank = invert_permutation(group.argsort(dim=-1, stable=True))
    slot = (last_block - blocks_of_group).gather(-1, group) * block_size + rank - first_rank.gather(-1, group)
    items = torch.arange(length, device=group.device).expand_as(group)
    item = group.new_zeros(*group.shape[:-1], blocks * block_size).scatter_(-1, slot, items)
    number = torch.arange(blocks, device=group.device).expand(*group.shape[:-1], blocks)
    block_group = torch.searchsorted(last_block, number.contiguous(), right=True).clamp(max=num_groups - 1)
    return Groups(item.unflatten(-1, (blocks, block_size)), block_group, slot)


TILE = 1 << 19  # pairs of query and key that are held at a time on a CPU, so that they stay in its cache


class _Blocks(NamedTuple):
    """Operands of :func:`attention_with_lse` with the leading dimensions folded into two; the mask may have ones."""

    q: Float[Tensor, "A C m D"]
    k: Float[Tensor, "A C l D"]
    v: Float[Tensor, "A C l Dv"]
    visible: Bool[Tensor, "#A #C #m #l"] | None

    @classmethod
    def fold(cls, q: Tensor, k: Tensor, v: Tensor, visible: Tensor | None) -> _Blocks:
        leading = (1, *q.shape[:-2])

        def fold(x: Tensor) -> Tensor:
            return x.reshape(-1, leading[-1], *x.shape[-2:])

        if visible is not None:
            visible = visible.reshape((1,) * (len(leading) + 2 - visible.ndim) + visible.shape)
            if any(n != 1 for n in visible.shape[:-3]):
                visible = visible.expand(*leading[:-1], *visible.shape[-3:])
            visible = visible.reshape(-1, *visible.shape[-3:])
        return cls(fold(q), fold(k), fold(v), visible)

    def tiles(self) -> Iterator[tuple[slice, slice]]:
        """Ranges of A and of C of at most ``TILE`` pairs (or one block); all in one where there is no cache to fit."""
        (first, second, rows, _), columns = self.q.shape, self.k.shape[-2]
        block = max(rows * columns, 1)
        size = TILE if self.q.device.type == "cpu" else first * second * block
        width = min(max(size // block, 1), second)
        height = max(size // (block * second), 1)
        for a in range(0, first, height):
            for c in range(0, second, width):
                yield slice(a, a + height), slice(c, c + width)

    def tile(self, at: tuple[slice, slice]) -> _Blocks:
        visible = self.visible
        if visible is not None:
            parts = (slice(None) if n == 1 else part for n, part in zip(visible.shape, at, strict=False))
            visible = visible[tuple(parts)]
        return _Blocks(self.q[at], self.k[at], self.v[at], visible)

    def logits(self, scale: float) -> Float[Tensor, "A C m l"]:
        """x_ij, -inf where j is not visible."""
        logits = ((self.q * scale) @ self.k.transpose(-2, -1)).to(accumulation_dtype(self.q))
        return logits if self.visible is None else logits.add_(bias_of(self.visible, logits.dtype))


def bias_of(visible: Bool[Tensor, "*pairs"], dtype: torch.dtype) -> Float[Tensor, "*pairs"]:
    """0 where visible, else -inf: as 1 - 1 / x, since a choice by pair costs a CPU many times as much."""
    return visible.view(torch.uint8).to(dtype).reciprocal_().neg_().add_(1)


def _attend_fused(blocks: _Blocks, scale: float) -> tuple[Tensor, Tensor]:
    """By PyTorch's flash attention for CPUs."""
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q, k, v, visible = blocks
    if visible is None:
        return flash(q, k, v, 0.0, False, scale=scale)
    if visible.shape[0] == visible.shape[1] == 1 or 1 in visible.shape[2:]:  # the bias is small
        out, lse = flash(q, k, v, 0.0, False, attn_mask=bias_of(visible, q.dtype), scale=scale)
    else:
        out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:-1])
        for at in blocks.tiles():
            part = blocks.tile(at)
            bias = None if part.visible is None else bias_of(part.visible, q.dtype)
            out[at], lse[at] = flash(part.q, part.k, part.v, 0.0, False, attn_mask=bias, scale=scale)
    # The kernel gives lse = 0 where nothing is visible.
    zero = (lse == 0).nonzero(as_tuple=True)
    lse[zero] = torch.where(visible.expand(*q.shape[:-1], -1)[zero].any(-1), lse[zero], -torch.inf)
    return out, lse


def _attend_explicitly(blocks: _Blocks, scale: float, keep: Float[Tensor, "A C m l"] | None) -> tuple[Tensor, Tensor]:
    weights = blocks.logits(scale)
    # The maximum cancels between numerator and normaliser.
    largest = weights.amax(-1, keepdim=True)
    largest = torch.where(largest.isfinite(), largest, 0.0)
    weights.sub_(largest).exp_()
    total = weights.sum(-1, keepdim=True)
    seen = total > 0
    total = torch.where(seen, total, 1.0)
    lse = torch.where(seen, total.log() + largest, -torch.inf).squeeze(-1)
    out = (weights if keep is None else weights * keep).to(blocks.v.dtype) @ blocks.v
    return out.to(weights.dtype).div_(total), lse


class _AttentionWithLse(torch.autograd.Function):
    """Forward and backward of :func:`attention_with_lse`. No float for each pair is kept between them.

    With p_ij = e^(x_ij - lse_i), g the gradient of o and h that of lse:

        dv = p^T g,    dx = p (g v^T - (g . o - h)),    dq = scale dx k,    dk = scale dx^T q.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor | None, dropout: float
    ) -> tuple[Tensor, Tensor]:
        blocks = _Blocks.fold(q, k, v, visible)
        keep = None
        if dropout > 0:
            shape = (*blocks.q.shape[:-1], blocks.k.shape[-2])
            keep = (torch.rand(shape, device=q.device) >= dropout).to(accumulation_dtype(q)).div_(1 - dropout)
        # Other types would have o rounded to their width, and the kernel has one width for keys and values.
        fused = q.device.type == "cpu" and q.dtype in (torch.float32, torch.float64) and q.shape[-1] == v.shape[-1]
        with without_autocast(q):
            if fused and keep is None:
                out, lse = _attend_fused(blocks, scale)
            else:
                out, lse = _attend_explicitly(blocks, scale, keep)
        out, lse = out.reshape(*q.shape[:-1], v.shape[-1]), lse.reshape(q.shape[:-1])
        ctx.save_for_backward(q, k, v, visible, keep, out, lse)
        ctx.scale = scale
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, visible, keep, out, lse = ctx.saved_tensors
        blocks = _Blocks.fold(q, k, v, visible)
        with without_autocast(q):
            # The gradient of -inf is void.
            seen, shape = lse != -torch.inf, (*blocks.q.shape[:-1], 1)
            grad_sum = ((grad_out * out).sum(-1) - torch.where(seen, grad_lse, 0.0)).view(shape)
            lse = torch.where(seen, lse, torch.inf).view(shape)
            grad_out = grad_out.to(v.dtype).reshape(*shape[:-1], v.shape[-1])
            grads = [x.new_empty(x.shape) for x in (blocks.q, blocks.k, blocks.v)]
            for at in blocks.tiles():
                part = blocks.tile(at)
                weights = part.logits(ctx.scale).sub_(lse[at]).exp_()
                kept = weights if keep is None else weights * keep[at]
                grads[2][at] = kept.to(v.dtype).transpose(-2, -1) @ grad_out[at]
                grad_logits = (grad_out[at] @ part.v.transpose(-2, -1)).to(weights.dtype)
                if keep is not None:
                    grad_logits.mul_(keep[at])
                grad_logits = grad_logits.sub_(grad_sum[at]).mul_(weights).to(q.dtype)
                grads[0][at] = (grad_logits @ part.k).mul_(ctx.scale)
                grads[1][at] = (grad_logits.transpose(-2, -1) @ part.q).mul_(ctx.scale)
        return *(grad.view(x.shape) for grad, x in zip(grads, (q, k, v), strict=True)), None, None, None


def attention_with_lse(
    q: Float[Tensor, "*n m D"],
    k: Float[Tensor, "*n l D"],
    v: Float[Tensor, "*n l Dv"],
    *,
    scale: float,
    visible: Bool[Tensor, "*pairs"] | None = None,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "*n m Dv"], Float[Tensor, "*n m"]]:
    """Softmax attention and the logarithm of its normaliser, both differentiable (once).

    With x_ij = scale q_i . k_j, over the visible j:

        lse_i = log sum_j e^x_ij,    o_i = e^(-lse_i) sum_j e^x_ij v_j.

    A row that sees nothing gives o_i = 0 and lse_i = -inf, with zero gradients. ``visible`` broadcasts to
    ``[*n, m, l]``. Normalisers are in at least float32, and so are the results. Dropout acts on the weights only.

    Gradients compute the weights anew from lse, in tiles: the memory kept is O(*n (m + l) D), and one byte a pair for
    a mask of that size. On a CPU without dropout, the fused kernel does the forward pass.
    """
    out, lse = _AttentionWithLse.apply(q, k, v, scale, visible, dropout)
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


class _MergeRounds(torch.autograd.Function):
    """Forward and backward of :func:`merge_rounds`. With w_r(i) = e^(lse_r(i) - lse(i)), g the gradient of o, h of lse:

    do_r(i) = w_r(i) g_i,    dlse_r(i) = w_r(i) (g_i . (o_r(i) - o_i) + h_i).
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, *parts: Tensor) -> tuple[Tensor, Tensor]:
        tables, found = parts[: len(rows)], parts[len(rows) :]
        weights = torch.stack([lse.index_select(0, row) for lse, row in zip(found, rows, strict=True)])
        largest = weights.amax(0)
        largest = torch.where(largest.isfinite(), largest, 0.0)
        weights.sub_(largest).exp_()
        total = weights.sum(0)
        seen = total > 0
        total = torch.where(seen, total, 1.0)
        weights.div_(total)
        merged = tables[0].new_zeros(rows.shape[1], tables[0].shape[1])
        for table, row, weight in zip(tables, rows, weights, strict=True):
            # Bags of one: rows are gathered and weighted in one pass.
            merged += F.embedding_bag(row[:, None], table, mode="sum", per_sample_weights=weight[:, None])
        ctx.save_for_backward(rows, weights, merged, *tables)
        return merged, torch.where(seen, total.log() + largest, -torch.inf)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        rows, weights, merged, *tables = ctx.saved_tensors
        own = grad_lse - (grad_out * merged).sum(-1)
        grad_tables, grad_found = [], []
        for table, row, weight in zip(tables, rows, weights, strict=True):
            # A row that is nowhere seen has an infinite lse, whose gradient is void: its weight is zero.
            change = weight * ((grad_out * table.index_select(0, row)).sum(-1) + own)
            change = torch.where(weight > 0, change, 0.0)
            grad_found.append(weights.new_zeros(len(table)).index_copy_(0, row, change))
            grad_tables.append(torch.zeros_like(table).index_copy_(0, row, grad_out * weight[:, None]))
        return None, *grad_tables, *grad_found


def merge_rounds(
    out: Sequence[Float[Tensor, "*n S Dv"]], lse: Sequence[Float[Tensor, "*n S"]], slot: Sequence[Int64[Tensor, "*n L"]]
) -> tuple[Float[Tensor, "*n L Dv"], Float[Tensor, "*n L"]]:
    """:func:`merge_by_lse` over rounds, in round r of which item i stands at ``slot[r][..., i]`` (each at its own).

    o_i = sum_r e^(lse_r(i) - lse(i)) o_r(i). S may differ by round.
    """
    rows = []
    for of_round, at in zip(lse, slot, strict=True):
        count, slots = math.prod(of_round.shape[:-1]), of_round.shape[-1]
        first = slots * torch.arange(count, device=at.device)
        rows.append((at.reshape(count, -1) + first[:, None]).flatten())
    parts = (part.reshape(-1, part.shape[-1]) for part in out)
    merged, total = _MergeRounds.apply(torch.stack(rows), *parts, *(part.flatten() for part in lse))
    return merged.view(*slot[0].shape, -1), total.view(slot[0].shape)


def met_before(
    query_ids: Iterable[Int64[Tensor, "*n m"]], key_ids: Iterable[Int64[Tensor, "*n l"]]
) -> Bool[Tensor, "*n m l"]:
    """Whether a query and a key have equal ids in one of the rounds (which are those before the round at hand).

    A pair that meets in several rounds counts once where it counts in the first of them alone.
    """
    nearest = None
    for query_id, key_id in zip(query_ids, key_ids, strict=True):
        # The distance of two ids, kept in place: comparisons that give truth values cost several times as much.
        distance = (query_id.int()[..., :, None] - key_id.int()[..., None, :]).abs_()
        nearest = distance if nearest is None else torch.minimum(nearest, distance, out=nearest)
    if nearest is None:
        raise ValueError("no round is before the first; leave what it sees as it is")
    return nearest.eq_(0).to(torch.uint8).view(torch.bool)


def frozen_normal(*shape: int) -> Tensor:
    """Independent N(0, 1) numbers for a buffer, from an own generator seeded once by torch's global one.

    They are rounded to bfloat16, so that a model in any dtype compares the same projections: a hash that changed with
    the dtype would be another mechanism there.
    """
    seed = int(torch.randint(2**63 - 1, (), device="cpu"))
    generator = torch.Generator("cpu").manual_seed(seed)
    sample = torch.randn(shape, generator=generator, device="cpu", dtype=torch.float32).to(torch.bfloat16)
    return sample.to(device=torch.get_default_device(), dtype=torch.get_default_dtype())
