"""Masks of transformers' models as key padding and causality: made so where a model asks for one, else read.

What :func:`key_padding` makes is ``[B, 1, 1, Lk]`` with causality in its dtype, so that no mask of Lq x Lk is ever in
memory. A model that computes its attention itself would take it for one of its own, so it may be moved and sliced, and
nothing else. A mask from elsewhere is read by its values (:mod:`attention_zoo._masks`), or refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import bidirectional_mask_function, causal_mask_function, sdpa_mask

from attention_zoo._masks import Reading, read, visible_of
from attention_zoo.contract import Unsupported

# Key padding as [B, 1, 1, Lk]: 0 where a key is hidden, else VISIBLE. The dtype says whether the mask is causal. So it
# lives through slicing, copies and moves; in another dtype it has no meaning and is refused.
VISIBLE = 73
CODES = {torch.int8: True, torch.uint8: False}
DTYPES = {causal: dtype for dtype, causal in CODES.items()}


class KeyPadding(Tensor):
    """A mask that is none to anybody else: what makes another kind of tensor of it is :class:`Unsupported`."""

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = super().__torch_function__(func, types, args, kwargs or {})
        parts = found if isinstance(found, tuple | list) else (found,)
        if any(isinstance(part, Tensor) and part.dtype not in CODES for part in parts):
            raise Unsupported(
                "the model computes an attention itself, past transformers' AttentionInterface, with a mask that was "
                "made for the zoo: nothing can be put in its place"
            )
        return found

    def __repr__(self) -> str:  # type: ignore[override]
        return f"KeyPadding({list(self.shape)}, causal={CODES[self.dtype]})"

    def plain(self) -> Tensor:
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)


def key_padding(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int | Tensor = 0,
    kv_offset: int | Tensor = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: Tensor | None = None,
    use_vmap: bool = False,
    device: torch.device | str = "cpu",
    **_: Any,
) -> KeyPadding:
    """The mask of a model as key padding ``[B, 1, 1, Lk]`` in :data:`CODES`; :class:`Unsupported` if it is more.

    transformers describes a mask by a function, composed of simpler ones; the two plain ones are told by identity. Any
    other is evaluated, and is plain if it hides no more than that: a sliding window that is longer than the input.
    """
    if attention_mask is not None and attention_mask.ndim != 2:
        raise Unsupported(f"a mask of {list(attention_mask.shape)} is neither [B, Lk] nor [B, 1, Lq, Lk]")
    first, start = int(q_offset), int(kv_offset)
    causal = {causal_mask_function: True, bidirectional_mask_function: False}.get(mask_function)
    if causal is None:
        whole: dict[str, Any] = {"batch_size": batch_size, "q_length": q_length, "kv_length": kv_length}
        whole |= {"q_offset": first, "kv_offset": start, "attention_mask": attention_mask, "device": device}

        def rows(function: Callable[..., Any], **how: Any) -> Tensor:
            mask = sdpa_mask(**whole, **how, mask_function=function, allow_is_causal_skip=False)
            assert mask is not None
            return mask

        asked = rows(mask_function, use_vmap=use_vmap)
        for function, is_causal in ((causal_mask_function, True), (bidirectional_mask_function, False)):
            if causal is None and torch.equal(asked, rows(function)):
                causal = is_causal
        if causal is None:
            raise Unsupported(
                "the model's mask is more than key padding and causality (a sliding window shorter than the input, "
                "packed sequences, or blocks of its own), and a core takes no other"
            )
    if causal and first + q_length != start + kv_length:
        raise Unsupported(
            f"the last of {q_length} queries is at position {first + q_length - 1}, the last of {kv_length} keys at "
            f"{start + kv_length - 1}: a cache of fixed length; use a dynamic one, or use_cache=False"
        )
    kept = torch.ones(batch_size, kv_length, dtype=torch.bool, device=device)
    if attention_mask is not None:
        given = attention_mask[:, start : start + kv_length].to(device=device, dtype=torch.bool)
        kept = nn.functional.pad(given, (0, kv_length - given.shape[1])).expand(batch_size, -1)
    return (kept.to(DTYPES[causal]) * VISIBLE)[:, None, None].as_subclass(KeyPadding)


def reading(mask: Tensor | None, batch: int, length_q: int, length_k: int, is_causal: bool | None) -> Reading:
    """What the mask and the module say together of causality and padding."""
    if mask is None:
        if is_causal is None and length_q > 1:
            raise Unsupported("there is no mask, and the module does not say whether it is causal (is_causal)")
        if is_causal and 1 < length_q != length_k:
            raise Unsupported(f"there is no mask that says how {length_q} causal queries lie to {length_k} keys")
        return Reading(bool(is_causal), None)
    if not isinstance(mask, Tensor):
        raise Unsupported(f"a mask of type {type(mask).__name__} cannot be read")
    if mask.shape[-1] != length_k:
        raise Unsupported(f"the mask is over {mask.shape[-1]} keys, and there are {length_k}")
    if mask.shape[0] not in (1, batch):
        raise Unsupported(f"the mask is for a batch of {mask.shape[0]}, and there are {batch}")
    if isinstance(mask, KeyPadding):
        mask = mask.plain()
    if mask.dtype in CODES:
        hidden = mask == 0
        if mask.ndim != 4 or mask.shape[1:3] != (1, 1) or not bool((hidden | (mask == VISIBLE)).all()):
            raise Unsupported(f"a mask of {mask.dtype} {list(mask.shape)} is not one that was made here")
        return Reading(CODES[mask.dtype], hidden[:, 0, 0].expand(batch, -1) if bool(hidden.any()) else None)
    is_padding = mask.ndim == 2 and not mask.is_floating_point()
    if is_padding:
        mask = mask.bool()[:, None, None]
    if mask.ndim != 4:
        raise Unsupported(f"a mask of {mask.dtype} {list(mask.shape)} is neither [B, Lk] nor [B, 1, Lq, Lk]")
    found = read(visible_of(mask), length_q)
    # [B, Lk] says nothing of causality; [B, 1, 1, Lk] says that all queries see the same, and models take it so.
    causal = bool(is_causal) if found.causal is None or is_padding else found.causal
    if causal and 1 < length_q != length_k and is_padding:
        raise Unsupported(f"the mask does not say how {length_q} causal queries lie to {length_k} keys")
    padding = None if found.key_padding_mask is None else found.key_padding_mask.expand(batch, -1)
    return Reading(causal, padding)
