"""An encoder-decoder Transformer over tokens, with a slot for every attention. Knows nothing of data sets.

    source -> embedding + position -> encoder blocks (NS) -> memory
    target -> embedding + position -> decoder blocks (CS over the target, CC to the memory) -> logits

After Vaswani et al., "Attention Is All You Need" (NeurIPS 2017, arXiv:1706.03762), section 3, with learned positions.
CAB trains ParaGen's form of it (Shark-NLP/CAB, tasks/Sum/train.yaml): post-norm, embeddings times sqrt(E) and
normalised after the positions are added, three matrices of E x V for source, target and logits, no bias of the logits.
The small form has pre-norm and one such matrix (section 3.4), which train faster on little data.
Shape letters: B batch, Ls and Lt lengths of source and target, E width, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.decoding import DecoderState, SteppedBlock, SteppedDecoderBlock, at_position, steps_everywhere
from tasks.layers import LearnedPositions


@dataclass(frozen=True)
class Shape:
    """The sizes of the backbone and its variant.

    Attributes:
        vocabulary, width, heads, hidden: V, E, attention heads, inner width of the feed-forward layers.
        encoder_layers, decoder_layers: numbers of blocks.
        source_length, target_length: the largest Ls and Lt, for which the attention is built.
        source_positions, target_positions: how many positions are learned, at least the lengths.
        dropout: probability.
        paragen: ParaGen's form; the small form where False.
    """

    vocabulary: int
    width: int
    heads: int
    hidden: int
    encoder_layers: int
    decoder_layers: int
    source_length: int
    target_length: int
    source_positions: int
    target_positions: int
    dropout: float = 0.0
    paragen: bool = False


class TokenInput(nn.Module):
    """Token embedding plus learned position, [B, L] to [B, L, E].

    Args:
        embedding: of the tokens; another module may share it.
        positions: how many are learned.
        dropout: probability.
        paragen: ``LayerNorm(sqrt(E) e + p)`` with p from N(0, 1/E); ``e + p`` where False.
    """

    def __init__(self, embedding: nn.Embedding, positions: int, dropout: float, *, paragen: bool) -> None:
        super().__init__()
        width = embedding.embedding_dim
        self.embedding = embedding
        self.positions = LearnedPositions(positions, width, std=width**-0.5 if paragen else 0.02)
        self.norm: nn.Module = nn.LayerNorm(width) if paragen else nn.Identity()
        self.scale = width**0.5 if paragen else 1.0
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        return self.dropout(self.norm(self.positions(self.scale * self.embedding(tokens))))

    def at(self, tokens: Int[Tensor, " B"], index: int) -> Float[Tensor, "B 1 E"]:
        """For one token of each row, all at position ``index``."""
        x = at_position(self.positions, self.scale * self.embedding(tokens[:, None]), index)
        return self.dropout(self.norm(x))


class EncoderDecoder(nn.Module):
    """The summarisation backbone.

    Args:
        slots: attention factories; asked for NS (encoder), CS (decoder over the target) and CC (target to source).
        shape: see :class:`Shape`.
        pad: the token that fills up sources.
        output_bias: [V] initial bias of the logits: log-probabilities of the tokens spare the model learning them.
            None: the logits have no bias.
    """

    def __init__(self, slots: Slots, shape: Shape, *, pad: int, output_bias: Float[Tensor, " V"] | None = None) -> None:
        super().__init__()
        self.pad = pad
        width, heads, norm_first = shape.width, shape.heads, not shape.paragen
        embedding = _embedding(shape)
        self.source_input = TokenInput(embedding, shape.source_positions, shape.dropout, paragen=shape.paragen)
        self.target_input = TokenInput(
            _embedding(shape) if shape.paragen else embedding,
            shape.target_positions,
            shape.dropout,
            paragen=shape.paragen,
        )
        self.encoder = nn.ModuleList(
            SteppedBlock(
                slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=shape.source_length),
                shape.hidden,
                shape.dropout,
                norm_first=norm_first,
            )
            for _ in range(shape.encoder_layers)
        )
        self.encoder_norm: nn.Module = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.decoder = nn.ModuleList(
            SteppedDecoderBlock(
                slots[Pattern.CAUSAL_SELF](width, heads, max_length=shape.target_length),
                slots[Pattern.CAUSAL_CROSS](
                    width, heads, max_length=shape.target_length, max_length_key=shape.source_length
                ),
                shape.hidden,
                shape.dropout,
                norm_first=norm_first,
            )
            for _ in range(shape.decoder_layers)
        )
        self.decoder_norm: nn.Module = nn.LayerNorm(width) if norm_first else nn.Identity()
        self.output_weight = _embedding(shape).weight if shape.paragen else embedding.weight
        self.output_bias = None if output_bias is None else nn.Parameter(output_bias.float().clone())

    def encode(self, source: Int[Tensor, "B Ls"]) -> tuple[Float[Tensor, "B Ls E"], Bool[Tensor, "B Ls"]]:
        """The memory, and where the source is padding."""
        padding = source == self.pad
        memory = self.source_input(source)
        for block in self.encoder:
            memory = block(memory, key_padding_mask=padding)
        return self.encoder_norm(memory), padding

    def decode(
        self, inputs: Int[Tensor, "B Lt"], memory: Float[Tensor, "B Ls E"], padding: Bool[Tensor, "B Ls"]
    ) -> Float[Tensor, "B Lt E"]:
        """The last hidden state at every target position.

        Padding in the target needs no mask: it comes last, and no position looks ahead.
        """
        x = self.target_input(inputs)
        for block in self.decoder:
            x = block(x, memory, source_key_padding_mask=padding)
        return self.decoder_norm(x)

    def logits(self, hidden: Float[Tensor, "*positions E"]) -> Float[Tensor, "*positions V"]:
        return nn.functional.linear(hidden, self.output_weight, self.output_bias)

    def forward(self, source: Int[Tensor, "B Ls"], decoder_inputs: Int[Tensor, "B Lt"]) -> Float[Tensor, "B Lt V"]:
        """Logits of the next token at every target position."""
        return self.logits(self.decode(decoder_inputs, *self.encode(source)))

    def summarise(self, source: Int[Tensor, "B Ls"]) -> SummaryDecoder:
        """The decoder over these sources, for a search."""
        return SummaryDecoder(self, *self.encode(source))


def _embedding(shape: Shape) -> nn.Embedding:
    embedding = nn.Embedding(shape.vocabulary, shape.width)
    nn.init.normal_(embedding.weight, std=shape.width**-0.5)  # logits of unit variance at the start
    return embedding


@dataclass(frozen=True)
class SummaryDecoder:
    """The decoder over encoded sources (:class:`tasks.decoding.NextToken`)."""

    model: EncoderDecoder
    memory: Float[Tensor, "B Ls E"]
    padding: Bool[Tensor, "B Ls"]

    @property
    def incremental(self) -> bool:
        return steps_everywhere(self.model.decoder)

    @property
    def _blocks(self) -> list[SteppedDecoderBlock]:
        return [block for block in self.model.decoder if isinstance(block, SteppedDecoderBlock)]

    def _next(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B V"]:
        return self.model.logits(self.model.decoder_norm(x[:, -1]))

    def last_logits(self, tokens: Int[Tensor, "B L"]) -> Float[Tensor, "B V"]:
        return self.model.logits(self.model.decode(tokens, self.memory, self.padding)[:, -1])

    def prefill(self, tokens: Int[Tensor, "B L"]) -> tuple[Float[Tensor, "B V"], list[DecoderState]]:
        x, states = self.model.target_input(tokens), []
        for block in self._blocks:
            x, state = block.prefill(x, self.memory, source_key_padding_mask=self.padding)
            states.append(state)
        return self._next(x), states

    def step(
        self, tokens: Int[Tensor, " B"], index: int, states: list[DecoderState]
    ) -> tuple[Float[Tensor, "B V"], list[DecoderState]]:
        x, after = self.model.target_input.at(tokens, index), []
        for block, state in zip(self._blocks, states, strict=True):
            x, state = block.step(x, state)
            after.append(state)
        return self._next(x), after
