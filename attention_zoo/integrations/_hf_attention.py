"""The function that transformers' models call in place of their attention, and what it refuses."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from torch import Tensor, nn

from attention_zoo._standin import Choice, Cores, attend_with_cache
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.integrations._hf_masks import reading

# Arguments of attention functions that change what is computed, and that no core takes.
REFUSED = {
    "position_bias": "adds a position bias to the logits",
    "softcap": "caps the logits (softcap)",
    "s_aux": "has attention sinks",
    "sinks": "has attention sinks",
    "cu_seq_lens_q": "packs sequences into one (cu_seq_lens)",
    "cu_seq_lens_k": "packs sequences into one (cu_seq_lens)",
    "indices": "selects keys of its own (indices)",
    "block_indices": "selects keys of its own (block_indices)",
    "block_table": "pages its cache",
    "cache": "pages its cache",
    "head_mask": "masks heads",
}
# Tensors that models pass along and that change nothing here: positions are in q and k already.
IGNORED = {"position_ids", "cache_position", "position_embeddings", "input_ids", "inputs_embeds", "labels"}
# What the forward of an attention may take without being given a second sequence.
ONE_SEQUENCE = {
    *("attention_mask", "past_key_values", "past_key_value", "layer_past", "position_embeddings", "position_ids"),
    *("use_cache", "cache_position", "output_attentions", "head_mask", "cu_seqlens", "max_seqlen", "layer_idx"),
    *("query_position_embeddings", "height", "width", "kwargs"),
}


ARRIVED: WeakSet[nn.Module] = WeakSet()  # modules whose calls came here


class AttentionFunction:
    """An attention function of transformers: ``[B, H, Lq, D]`` in, ``[B, Lq, H, Dv]`` and no weights out."""

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.cores: WeakKeyDictionary[nn.Module, Cores] = WeakKeyDictionary()

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        sliding_window: int | None = None,
        **more: Any,
    ) -> tuple[Tensor, None]:
        self._refuse(more, sliding_window, key.shape[2])
        batch = max(x.shape[0] for x in (query, key))
        query, key, value = (x.expand(batch, -1, -1, -1) for x in (query, key, value))
        groups = query.shape[1] // key.shape[1]
        if groups > 1:
            key, value = (x.repeat_interleave(groups, 1) for x in (key, value))
        if scaling is not None:
            query = query * (scaling * query.shape[-1] ** 0.5)  # a core divides by the root again
        if is_causal is None:
            is_causal = getattr(module, "is_causal", None)

        found = reading(attention_mask, batch, query.shape[2], key.shape[2], is_causal)
        if found.causal and query.shape[2] > key.shape[2]:
            raise Unsupported(f"{query.shape[2]} causal queries over {key.shape[2]} keys: the first would see none")
        cores = self.cores.get(module)
        if cores is None:
            cores = self.cores[module] = Cores(self.choice, _seed(module))
        how: dict[str, Any] = {
            "dropout": dropout,
            "training": module.training,
            "longest": getattr(getattr(module, "config", None), "max_position_embeddings", None) or 0,
        }
        if found.causal and query.shape[2] < key.shape[2]:
            out = attend_with_cache(cores, query, key, value, found.key_padding_mask, **how)
        else:
            pattern = self._pattern(module, bool(found.causal), query.shape[2] == key.shape[2])
            out = cores.attend(pattern, query, key, value, found.key_padding_mask, **how)
        ARRIVED.add(module)
        return out.transpose(1, 2).contiguous(), None

    def _refuse(self, more: Mapping[str, Any], sliding_window: int | None, length_k: int) -> None:
        for name, value in more.items():
            if value is None or value is False:
                continue
            if name == "output_attentions":
                raise Unsupported(f"{self.choice.name} returns no attention weights; leave out output_attentions")
            if name in REFUSED:
                raise Unsupported(f"the model {REFUSED[name]}, and a core of the zoo has no place for that")
            if isinstance(value, Tensor) and name not in IGNORED:
                raise Unsupported(
                    f"the model passes its attention a tensor {name!r}, and a core takes q, k and v alone"
                )
        if sliding_window is not None and sliding_window < length_k:
            raise Unsupported(
                f"the model has a sliding window of {sliding_window} over {length_k} keys; a core has none"
            )

    def _pattern(self, module: nn.Module, causal: bool, same_length: bool) -> Pattern:
        if causal:
            return Pattern.CAUSAL_SELF
        second = _has_second_sequence(module)
        if second is None and same_length:
            raise Unsupported(
                f"{type(module).__name__} may attend to its own sequence or to another of the same length, and nothing "
                "tells which: give the two sequences different lengths"
            )
        if second or second is None:
            return self.choice.cross
        return Pattern.NONCAUSAL_SELF if same_length else Pattern.NONCAUSAL_CROSS


def _has_second_sequence(module: nn.Module) -> bool | None:
    """Whether keys are of another sequence than queries; None where the module does not tell.

    Models have no common sign of it. In this order: the attribute ``is_cross_attention``; the name of the class; a
    ``forward`` that takes one sequence only; the attributes of the encoder-decoders, whose only attention that is in
    the decoder and not causal is that to the encoder.
    """
    flag = getattr(module, "is_cross_attention", None)
    if isinstance(flag, bool):
        return flag
    if "CrossAttention" in type(module).__name__:
        return True
    _, *given = inspect.signature(type(module).forward).parameters.values()
    named = all(parameter.kind is not parameter.VAR_POSITIONAL for parameter in given)
    if named and {parameter.name for parameter in given[1:]} <= ONE_SEQUENCE:
        return False
    decoder, causal = (getattr(module, name, None) for name in ("is_decoder", "is_causal"))
    if isinstance(decoder, bool) and isinstance(causal, bool):
        return decoder and not causal
    return None


def _seed(module: nn.Module) -> int:
    """The number of the layer where the module knows it, else 0: a copy, and another process, must draw the same."""
    layer = getattr(module, "layer_idx", None)
    return layer if isinstance(layer, int) else 0
