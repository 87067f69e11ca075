"""A BERT encoder whose self attentions are slots, with pretrained weights, as an embedding of texts.

    x_0 = LN(token + position + segment),    x <- LN(x + Attention(x)),    x <- LN(x + W_2 gelu(W_1 x))
    e = x_mean / |x_mean|,    x_mean = mean of x over the positions that are not padding

Post-norm, with the exact GELU (Devlin et al., BERT, NAACL 2019, arXiv:1810.04805); mean pooling as in Reimers and
Gurevych, Sentence-BERT, EMNLP 2019, arXiv:1908.10084. No dropout: short fine-tuning goes on from a trained model.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Attention, Pattern
from attention_zoo.eligibility import PROJECTIONS
from tasks.contract import Slots
from tasks.decoding import SteppedBlock
from tasks.layers import LearnedPositions
from tasks.retrieval.dropin import require_drop_in
from tasks.retrieval.pretrained import Pretrained, Shape


def _block(attention: Attention, shape: Shape) -> SteppedBlock:
    require_drop_in(attention)
    block = SteppedBlock(attention, shape.hidden, norm_first=False)
    block.attention_norm.eps = block.feed_forward_norm.eps = shape.epsilon
    return block


class SentenceEncoder(nn.Module):
    """Tokens ``[B, L]`` to unit vectors ``[B, E]``.

    Args:
        slots: asked for NS.
        shape: of the pretrained encoder.
        max_length: the longest L.

    Raises:
        Unsupported: the attention cannot be dropped in (:func:`tasks.retrieval.dropin.require_drop_in`).
    """

    def __init__(self, slots: Slots, shape: Shape, max_length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.positions = LearnedPositions(shape.positions, shape.width)
        self.segment = nn.Parameter(torch.zeros(shape.width))
        self.norm = nn.LayerNorm(shape.width, eps=shape.epsilon)
        self.blocks = nn.ModuleList(
            _block(slots[Pattern.NONCAUSAL_SELF](shape.width, shape.heads, max_length=max_length), shape)
            for _ in range(shape.layers)
        )

    def forward(self, tokens: Int[Tensor, "B L"], padding: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
        x = self.norm(self.positions(self.embedding(tokens)) + self.segment)
        mask = padding if bool(padding.any()) else None
        for block in self.blocks:
            x = block(x, key_padding_mask=mask)
        real = (~padding).to(x)[:, :, None]
        return nn.functional.normalize((x * real).sum(1) / real.sum(1), dim=-1)


def _names(layers: int) -> dict[str, str]:
    """BERT's name of each part of ours that has parameters."""
    names = {
        "embedding": "embeddings.word_embeddings",
        "positions": "embeddings.position_embeddings",
        "norm": "embeddings.LayerNorm",
    }
    of_projection = {name: f"attention.self.{name}" for name in PROJECTIONS} | {"output": "attention.output.dense"}
    for layer in range(layers):
        ours, theirs = f"blocks.{layer}", f"encoder.layer.{layer}"
        names |= {f"{ours}.attention.{name}_projection": f"{theirs}.{of_projection[name]}" for name in PROJECTIONS}
        names |= {
            f"{ours}.attention_norm": f"{theirs}.attention.output.LayerNorm",
            f"{ours}.feed_forward.expand": f"{theirs}.intermediate.dense",
            f"{ours}.feed_forward.contract": f"{theirs}.output.dense",
            f"{ours}.feed_forward_norm": f"{theirs}.output.LayerNorm",
        }
    return names


@torch.no_grad()
def load(model: SentenceEncoder, pretrained: Pretrained) -> None:
    """Puts the pretrained weights into every parameter of ``model``.

    Raises:
        ValueError: a tensor is missing, or has another shape.
    """
    shape, names = pretrained.shape, _names(len(model.blocks))
    for name, parameter in model.named_parameters():
        if name == "segment":
            types = pretrained.tensor("embeddings.token_type_embeddings.weight", (2, shape.width))
            parameter.copy_(types[0])
        else:
            part, _, kind = name.rpartition(".")
            parameter.copy_(pretrained.tensor(f"{names[part]}.{kind}", tuple(parameter.shape)))
