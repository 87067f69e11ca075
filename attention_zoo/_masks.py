"""Reads masks that other libraries pass: key padding, key padding with causality, or a refusal.

A core takes a key padding mask and has its causality in its pattern. A mask of the form

    visible[b, i, j] = kept[b, j]                        or        kept[b, j] and j <= i + Lk - Lq

says just that; any other (a window, packed sequences, a bias, another mask per head) has no place in a core, and to
drop it would be wrong without a sign.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor

from attention_zoo.contract import Unsupported

HIDDEN_BELOW = -1e4  # what people add to logits to hide a key: this, the lowest number of the dtype, or -inf


class Reading(NamedTuple):
    """What a mask says. ``causal`` is None where it can be read both ways (one query, most often)."""

    causal: bool | None
    key_padding_mask: Tensor | None  # [B, Lk], True where a key is ignored by all queries; None for no such key


def visible_of(mask: Shaped[Tensor, "*s"]) -> Bool[Tensor, "*s"]:
    """True where a query may see a key, of a boolean mask (True: may see) or one that is added to the logits.

    Raises :class:`Unsupported` for an added mask that holds anything but zero and numbers that hide.
    """
    if mask.dtype is torch.bool:
        return mask
    if not mask.is_floating_point():
        raise Unsupported(f"an attention mask of {mask.dtype} is neither boolean nor added to the logits")
    visible = mask == 0
    if not bool((visible | (mask <= HIDDEN_BELOW)).all()):
        raise Unsupported(
            "the attention mask adds numbers to the logits (a position bias?), and a core takes none: only 0 and "
            f"numbers up to {HIDDEN_BELOW:g}, which hide a key, can be read"
        )
    return visible


def read(visible: Bool[Tensor, "#B #H #Lq Lk"], length_q: int) -> Reading:
    """Key padding and causality of a mask; :class:`Unsupported` where it is more than that.

    A mask with one row for all queries is not causal, whatever their number.
    """
    if visible.shape[1] > 1 and not bool((visible == visible[:, :1]).all()):
        raise Unsupported("the attention mask differs between heads, and a core takes one for all")
    rows = visible[:, 0]
    length_k = rows.shape[-1]
    if rows.shape[1] not in (1, length_q):
        raise Unsupported(f"the attention mask has {rows.shape[1]} rows for {length_q} queries")
    kept = rows.any(1)
    causal: bool | None = False
    if rows.shape[1] > 1 or length_q == 1:
        past = torch.ones(rows.shape[1], length_k, dtype=torch.bool, device=rows.device).tril(length_k - length_q)
        is_full = bool((rows == kept[:, None]).all())
        is_past = bool((rows == kept[:, None] & past).all())
        if not is_full and not is_past:
            raise Unsupported(
                "the attention mask is more than key padding and causality (a sliding window, packed sequences, blocks "
                "of its own?), and a core takes no other"
            )
        causal = None if is_full and is_past else is_past
    return Reading(causal, None if bool(kept.all()) else ~kept)
