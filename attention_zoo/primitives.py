"""What mechanisms share: chunked causal scan, log-sum-exp merge, block gather, masks.

Each function is mathematics on tensors with no state; a mechanism composes them in the order of its paper.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

SCAN_CHUNK = 64  # positions per chunk of a causal scan


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
