"""Small models of each family that transformers routes through its attention interface, with inputs for them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertLMHeadModel,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianModel,
    MistralConfig,
    MistralModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    ViTConfig,
    ViTModel,
)

LENGTH = 12
LENGTHS = (LENGTH, 7, 4)  # of the samples of a batch
WIDTH = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXT = {"vocab_size": 64, "max_position_embeddings": 64, **WIDTH}
SIDES = {f"{side}_{part}": n for side in ("encoder", "decoder") for part, n in (("layers", 2), ("attention_heads", 4))}
PAIR = {"vocab_size": 64, "d_model": 32, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "pad_token_id": 1, **SIDES}
PAIR |= {"max_position_embeddings": 64, "decoder_start_token_id": 2}


def ragged(side: str) -> Tensor:
    """[B, L], 1 where there is a token."""
    place = torch.arange(LENGTH)[None]
    lengths = torch.tensor(LENGTHS)[:, None]
    return (place < lengths if side == "right" else place >= LENGTH - lengths).long()


def tokens(length: int = LENGTH) -> Tensor:
    return torch.randint(3, 60, (len(LENGTHS), length))


def text(side: str) -> dict[str, Tensor]:
    return {"input_ids": tokens(), "attention_mask": ragged(side)}


def text_and_source(side: str) -> dict[str, Tensor]:
    """The source is as long as the target, so that lengths do not tell them apart, and padded otherwise."""
    source = {"encoder_hidden_states": torch.randn(len(LENGTHS), LENGTH, 32)}
    return text(side) | source | {"encoder_attention_mask": ragged(side).flip(0)}


def source_and_target(side: str) -> dict[str, Tensor]:
    target = {f"decoder_{name}": value.flip(0) for name, value in text(side).items()}
    return text(side) | target


def image(side: str) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16)}


class Family(NamedTuple):
    model: type[PreTrainedModel]
    config: Any
    inputs: Callable[[str], dict[str, Tensor]]
    sides: tuple[str, ...] = ("right", "left")  # RoBERTa counts positions from the tokens; the others do so from place


FAMILIES = {
    "bert": Family(BertModel, BertConfig(**TEXT), text),
    "roberta": Family(RobertaModel, RobertaConfig(**TEXT, pad_token_id=1), text),
    "vit": Family(ViTModel, ViTConfig(**WIDTH, image_size=16, patch_size=4), image, ("right",)),
    "gpt2": Family(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, scale_attn_by_inverse_layer_idx=True),
        text,
    ),
    "llama": Family(LlamaForCausalLM, LlamaConfig(**TEXT, num_key_value_heads=2), text),
    "mistral": Family(MistralModel, MistralConfig(**TEXT, num_key_value_heads=1, sliding_window=LENGTH), text),
    "bert decoder": Family(BertLMHeadModel, BertConfig(**TEXT, is_decoder=True), text),
    "bert cross": Family(BertModel, BertConfig(**TEXT, is_decoder=True, add_cross_attention=True), text_and_source),
    "gpt2 cross": Family(
        GPT2LMHeadModel,
        GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64, add_cross_attention=True),
        text_and_source,
    ),
    "bart": Family(BartModel, BartConfig(**PAIR), source_and_target),
    "marian": Family(MarianModel, MarianConfig(**PAIR), source_and_target),
}
NONCAUSAL = ("bert", "roberta", "vit")
CAUSAL = ("gpt2", "llama", "mistral", "bert decoder")
SIDED = [(name, side) for name, family in FAMILIES.items() for side in family.sides]


def make(family: str, attention: str, **changed: Any) -> PreTrainedModel:
    """A model with the same random weights for every attention; large ones, so that its attention is not flat."""
    kind, config, *_ = FAMILIES[family]
    config = copy.deepcopy(config)
    for name, value in changed.items():
        setattr(config, name, value)
    return seeded(kind, config, attention)


def seeded(kind: type[PreTrainedModel], config: Any, attention: str) -> PreTrainedModel:
    torch.manual_seed(1)
    model = kind._from_config(config, attn_implementation=attention).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            scale = 0.15 if parameter.ndim > 1 and "embed" not in name else 0.02
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return model


def run(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    """The first output [B, L, ...], without a cache, where there are tokens (elsewhere it means nothing)."""
    out = model(**inputs, **({} if "pixel_values" in inputs else {"use_cache": False}))[0]
    mask = inputs.get("decoder_attention_mask", inputs.get("attention_mask"))
    return out if mask is None else out[mask.bool()]
