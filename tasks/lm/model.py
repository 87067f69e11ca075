"""A decoder of causal self-attention blocks over tokens, pre-norm: GPT-2 (Radford et al., 2019).

GPT-2's own initial values where ``tied``: embeddings, which also read the logits out, and positions from N(0, 0.02^2)
and N(0, 0.01^2), and the projections that end a residual branch scaled by 1 / sqrt(2 layers) (section 2.3).
Otherwise positions start as sinusoids whose longest wave is of the order of the sequence, and are then learned: from
random positions, a short training does not get past what the last byte says. Embeddings start at unit scale then, like
the positions, and the output layer has weights of its own.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.decoding import SteppedBlock, at_position, steps_everywhere
from tasks.layers import LearnedPositions, sinusoids


class Decoder(nn.Module):
    """Tokens ``[B, L]`` to logits ``[B, L, V]`` of the next token; all attention is causal self attention.

    Args:
        slots: asked for CS.
        vocabulary: V.
        width, heads, hidden, layers: of the blocks.
        max_length: the longest L.
        wave: the longest wave of the initial positions where not ``tied``.
        tied: the embeddings read the logits out, without a bias, as in GPT-2.
        dropout: probability.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        vocabulary: int,
        width: int,
        heads: int,
        hidden: int,
        layers: int,
        max_length: int,
        wave: int,
        tied: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        initial = None if tied else sinusoids(max_length, width, longest=wave)
        self.positions = LearnedPositions(max_length, width, std=0.01, initial=initial)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(
            SteppedBlock(slots[Pattern.CAUSAL_SELF](width, heads, max_length=max_length), hidden, dropout)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = None if tied else nn.Linear(width, vocabulary)
        if tied:
            self._start_as_gpt2(layers)

    def _start_as_gpt2(self, layers: int) -> None:
        """Outside the attention layers, which start alike in all backbones."""
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in self.blocks:
            assert isinstance(block, SteppedBlock)
            for linear, std in (
                (block.feed_forward.expand, 0.02),
                (block.feed_forward.contract, 0.02 / (2 * layers) ** 0.5),
            ):
                nn.init.normal_(linear.weight, std=std)
                nn.init.zeros_(linear.bias)

    def _read_out(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L V"]:
        x = self.norm(x)
        return nn.functional.linear(x, self.embedding.weight) if self.output is None else self.output(x)

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L V"]:
        x = self.dropout(self.positions(self.embedding(tokens)))
        for block in self.blocks:
            x = block(x)
        return self._read_out(x)

    # What :func:`tasks.decoding.continue_prompts` asks for.

    @property
    def incremental(self) -> bool:
        return steps_everywhere(self.blocks)

    def last_logits(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B V"]:
        return self(tokens)[:, -1]

    def prefill(self, tokens: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B V"], list[Any]]:
        x, states = self.positions(self.embedding(tokens)), []
        for block in self.blocks:
            assert isinstance(block, SteppedBlock)
            x, state = block.prefill(x)
            states.append(state)
        return self._read_out(x[:, -1:])[:, 0], states

    def step(self, tokens: Int[Tensor, " B"], index: int, states: list[Any]) -> tuple[Float[Tensor, "B V"], list[Any]]:
        x, new = at_position(self.positions, self.embedding(tokens)[:, None], index), []
        for block, state in zip(self.blocks, states, strict=True):
            assert isinstance(block, SteppedBlock)
            x, after = block.step(x, state)
            new.append(after)
        return self._read_out(x)[:, 0], new


def blank_tokens(rows: int, length: int, vocabulary: int) -> Tensor:
    """Tokens of no meaning, int64 ``[rows, length]``."""
    return torch.arange(rows * length).reshape(rows, length) % vocabulary
