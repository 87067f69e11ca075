"""Attention over a band of keys: blocks of queries against the window of keys around each block.

Shared by the mechanisms whose queries see their neighbourhood. Queries are cut into blocks of m, and block n meets the
keys n m - before .. n m + m - 1 + after in one batched matrix product; what of that window a query sees is a mask.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from attention_zoo.primitives import attention_with_lse
from attention_zoo.softmax import KVCache


def band(block: int, before: int, after: int) -> Bool[Tensor, "m W"]:
    """True where key n m - before + c lies in the band i - before <= j <= i + after of query i = n m + r, at [r, c]."""
    row, column = torch.arange(block)[:, None], torch.arange(block + before + after)
    return (column >= row) & (column <= row + before + after)


def block_size(before: int, after: int, length: int) -> int:
    """A number of queries per block that suits the processor: the products are of m (m + before + after) pairs."""
    wanted = 16 if before + after <= 32 else 32 if before + after <= 128 else 64
    return min(wanted, length)


def count_blocks(length: int, block: int, before: int, after: int) -> int:
    """Windows that :func:`windows` makes; those past ceil(L / m) belong to no query."""
    blocks = -(-length // block)
    return -(-(before + blocks * block + after) // block)


class _Windows(torch.autograd.Function):
    """One padded copy seen through overlapping strides; backward adds the windows up where they overlap."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, block: int, before: int, after: int) -> Tensor:
        batch, heads, length, width = x.shape
        count, span = count_blocks(length, block, before, after), block + before + after
        rows = count * block
        # The padded length is whole blocks, so that windows of all heads are equally spaced and no product copies
        # them. The last windows of a head run into the next one; they belong to no query.
        storage = x.new_empty((batch * heads * rows + span, width))
        padded = storage[: batch * heads * rows].view(batch, heads, rows, width)
        padded[:, :, :before] = 0
        padded[:, :, before : before + length] = x
        padded[:, :, before + length :] = 0
        storage[batch * heads * rows :] = 0
        ctx.sizes = length, block, before
        strides = (heads * rows * width, rows * width, block * width, width, 1)
        return storage.as_strided((batch, heads, count, span, width), strides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        length, block, before = ctx.sizes
        grad = grad[:, :, : -(-length // block)]
        batch, heads, blocks, span, width = grad.shape
        total = grad.new_zeros((batch, heads, blocks + -(-span // block), block, width))
        for shift, part in enumerate(grad.split(block, dim=3)):
            total[:, :, shift : shift + blocks, : part.shape[3]] += part
        return total.flatten(2, 3)[:, :, before : before + length], None, None, None


def windows(x: Float[Tensor, "B H L D"], block: int, before: int, after: int) -> Float[Tensor, "B H N W D"]:
    """y[n, c] = x[n m - before + c] for c < W = m + before + after, zero outside the sequence.

    A view of one padded copy of ``x``. N is :func:`count_blocks`; windows n >= ceil(L / m) have no meaning.
    """
    found: Tensor = _Windows.apply(x, block, before, after)
    return found


def attend_windows(
    q: Float[Tensor, "B H L D"],
    k: Float[Tensor, "B H L D"],
    v: Float[Tensor, "B H L Dv"],
    pattern: Bool[Tensor, "m W"],
    *,
    before: int,
    key_valid: Bool[Tensor, "B L"] | None,
    scale: float,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "B H L Dv"], Float[Tensor, "B H L"]]:
    """Softmax attention of query i = n m + r over the keys n m - before + c with pattern[r, c], and its log-sum-exp.

    Keys outside the sequence and those with ``key_valid`` False are never seen. Time and memory O(L W).
    """
    length, (block, span) = q.shape[2], pattern.shape
    after = span - block - before
    count = count_blocks(length, block, before, after)
    inside = torch.ones(1, length, dtype=torch.bool, device=q.device) if key_valid is None else key_valid
    # The same windows as those of the keys, of what is a key at all.
    inside = F.pad(inside, (before, count * block - before - length + span)).unfold(-1, span, block)[:, :count]
    out, lse = attention_with_lse(
        F.pad(q, (0, 0, 0, count * block - length)).unflatten(2, (count, block)),
        windows(k, block, before, after),
        windows(v, block, before, after),
        scale=scale,
        visible=inside[:, None, :, None, :] & pattern.to(q.device),
        dropout=dropout,
    )
    return out.flatten(2, 3)[:, :, :length], lse.flatten(2, 3)[:, :, :length]


def attend_band(
    q: Float[Tensor, "B H L D"],
    k: Float[Tensor, "B H L D"],
    v: Float[Tensor, "B H L Dv"],
    *,
    before: int,
    after: int,
    key_valid: Bool[Tensor, "B L"] | None,
    scale: float,
    dropout: float = 0.0,
) -> tuple[Float[Tensor, "B H L Dv"], Float[Tensor, "B H L"]]:
    """Softmax attention of query i over the valid keys i - before <= j <= i + after, and its log-sum-exp."""
    length = q.shape[2]
    before, after = min(before, length - 1), min(after, length - 1)
    pattern = band(block_size(before, after, length), before, after)
    return attend_windows(q, k, v, pattern, before=before, key_valid=key_valid, scale=scale, dropout=dropout)


def band_pairs(length: int, before: int, after: int) -> int:
    """Query-key pairs whose logits :func:`attend_band` computes, masked ones included."""
    before, after = min(before, length - 1), min(after, length - 1)
    block = block_size(before, after, length)
    return count_blocks(length, block, before, after) * block * (block + before + after)


def keep_ends(cache: KVCache, first: int, last: int) -> KVCache:
    """The first ``first`` and, of the others, the last ``last`` positions of a cache."""
    length = cache.k.shape[2]
    if length <= first + last:
        return cache

    def ends(x: Tensor, dim: int) -> Tensor:
        end = x.narrow(dim, length - last, last)
        return torch.cat([x.narrow(dim, 0, first), end], dim) if first else end

    mask = cache.key_padding_mask
    return KVCache(ends(cache.k, 2), ends(cache.v, 2), None if mask is None else ends(mask, 1))
