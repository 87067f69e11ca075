"""Transformer-TTS: phonemes to a mel spectrogram, a few frames per step. Knows nothing of data sets.

    phonemes -> embedding -> 3 convolutions -> linear -> + position -> encoder blocks (NS) -> LayerNorm
    frames said so far -> 2 linear layers with ReLU and dropout -> linear -> + position
             -> decoder blocks (CS over the steps, CC to the phonemes) -> LayerNorm
             -> the next frames, and whether they are the last; frames + 5 convolutions over time

N. Li et al., "Neural Speech Synthesis with Transformer Network", AAAI 2019, arXiv:1809.08895, section 3, in the form
that CAB trained (fairseq's architecture ``tts_transformer``, pre-norm). A step predicts ``frames_per_step`` frames.
The last five convolutions (the post-net) look ahead: what comes before them is causal, and teacher-forced errors are of
that; what comes after is for listening.
Shape letters: B batch, Ls phonemes, S steps, E width, G = frames per step x mel bands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.decoding import DecoderState, SteppedDecoderBlock, steps_everywhere
from tasks.layers import SelfAttentionBlock, sinusoids

_Activation = Literal["linear", "relu", "tanh"]


class Spoken(NamedTuple):
    """What the model says: frames before and after the post-net, and the logit of each step's being the last."""

    causal: Float[Tensor, "B S G"]
    refined: Float[Tensor, "B S G"]
    stop: Float[Tensor, "B S"]


def _convolution(inputs: int, outputs: int, kernel: int, activation: _Activation) -> nn.Conv1d:
    layer = nn.Conv1d(inputs, outputs, kernel, padding=(kernel - 1) // 2)
    nn.init.xavier_uniform_(layer.weight, nn.init.calculate_gain(activation))
    return layer


class EncoderPrenet(nn.Module):
    """Three times convolution, batch normalisation, ReLU, dropout; then a linear layer (section 3.3).

    Padding is set to zero after each, so that an utterance sounds the same beside longer ones.
    """

    def __init__(self, width: int, layers: int, kernel: int, dropout: float) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(_convolution(width, width, kernel, "relu") for _ in range(layers))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(layers))
        self.output = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L E"], padding: Bool[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        keep = ~padding[:, None, :]
        x = x.transpose(1, 2)
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = self.dropout(norm(convolution(x)).relu()) * keep
        return self.output(x.transpose(1, 2))


class DecoderPrenet(nn.Module):
    """Two linear layers with ReLU and dropout, then a linear layer to the width (section 3.4).

    The dropout keeps the decoder from copying what it said. Tacotron 2 and fairseq leave it on in evaluation too; here
    it is off then, so that a model's score is one number.
    """

    def __init__(self, inputs: int, hidden: int, width: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B S G"]) -> Float[Tensor, "B S E"]:
        x = self.dropout(self.first(x).relu())
        return self.output(self.dropout(self.second(x).relu()))


class Postnet(nn.Module):
    """Convolutions over the steps with batch normalisation and tanh, the last one without (section 3.7)."""

    def __init__(self, width: int, hidden: int, layers: int, kernel: int, dropout: float) -> None:
        super().__init__()
        widths = [width, *[hidden] * (layers - 1), width]
        gains: list[_Activation] = ["tanh" for _ in range(layers - 1)]
        gains.append("linear")
        self.convolutions = nn.ModuleList(
            _convolution(widths[i], widths[i + 1], kernel, gain) for i, gain in enumerate(gains)
        )
        self.norms = nn.ModuleList(nn.BatchNorm1d(outputs) for outputs in widths[1:])
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B S G"], padding: Bool[Tensor, "B S"] | None) -> Float[Tensor, "B S G"]:
        keep = None if padding is None else ~padding[:, None, :]
        x = x.transpose(1, 2)
        for index, (convolution, norm) in enumerate(zip(self.convolutions, self.norms, strict=True)):
            x = norm(convolution(x if keep is None else x * keep))
            x = self.dropout(x if index == len(self.norms) - 1 else x.tanh())
        return x.transpose(1, 2)


class TransformerTTS(nn.Module):
    """The backbone.

    Args:
        slots: attention factories; asked for NS (encoder), CS (decoder over the steps) and CC (steps to phonemes).
        symbols: tokens, padding included; token ``pad`` fills up.
        max_phonemes, max_steps: the largest Ls and S; speech that does not stop is cut.
        bands, frames_per_step: G is their product.
        width, heads, hidden: E, attention heads, inner width of the feed-forward layers.
        encoder_layers, decoder_layers: numbers of blocks.
        encoder_convolutions: in front of the encoder; their kernel, and the post-net's, is 5.
        prenet_hidden: of the layers that frames enter through.
        postnet_hidden, postnet_layers: of the convolutions that refine the frames.
        dropout: probability in the blocks; ``side_dropout`` in prenets and post-net.
        history_dropout: probability that a step of the inputs is blanked in training (the paper has none): a decoder
            that cannot always copy what was said learns soon to read the text (word dropout: Bowman et al., 2016,
            arXiv:1511.06349, section 3.2.1).
    """

    positions: Tensor

    def __init__(
        self,
        slots: Slots,
        *,
        symbols: int,
        max_phonemes: int,
        max_steps: int,
        bands: int,
        frames_per_step: int,
        width: int,
        heads: int,
        hidden: int,
        encoder_layers: int,
        decoder_layers: int,
        encoder_convolutions: int,
        prenet_hidden: int,
        postnet_hidden: int,
        postnet_layers: int,
        dropout: float,
        side_dropout: float,
        history_dropout: float = 0.0,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.pad, self.max_steps, self.group = pad, max_steps, bands * frames_per_step
        self.history_dropout = history_dropout
        self.embedding = nn.Embedding(symbols, width, padding_idx=pad)
        self.encoder_prenet = EncoderPrenet(width, encoder_convolutions, 5, side_dropout)
        self.phoneme_scale = nn.Parameter(torch.ones(1))
        self.step_scale = nn.Parameter(torch.ones(1))
        self.register_buffer("positions", sinusoids(max(max_phonemes, max_steps), width), persistent=False)
        self.encoder = nn.ModuleList(
            SelfAttentionBlock(slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=max_phonemes), hidden, dropout)
            for _ in range(encoder_layers)
        )
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder_prenet = DecoderPrenet(self.group, prenet_hidden, width, side_dropout)
        self.decoder = nn.ModuleList(
            SteppedDecoderBlock(
                slots[Pattern.CAUSAL_SELF](width, heads, max_length=max_steps),
                slots[Pattern.CAUSAL_CROSS](width, heads, max_length=max_steps, max_length_key=max_phonemes),
                hidden,
                dropout,
            )
            for _ in range(decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.frames = nn.Linear(width, self.group)
        self.stop = nn.Linear(width, 1)
        self.postnet = Postnet(self.group, postnet_hidden, postnet_layers, 5, side_dropout)
        self.dropout = nn.Dropout(dropout)

    def encode(self, phonemes: Int[Tensor, "B Ls"]) -> tuple[Float[Tensor, "B Ls E"], Bool[Tensor, "B Ls"]]:
        """The encoded phonemes, and where they are padding."""
        padding = phonemes == self.pad
        x = self.encoder_prenet(self.embedding(phonemes), padding)
        x = self.dropout(x + self.phoneme_scale * self.positions[: phonemes.shape[1]])
        for block in self.encoder:
            x = block(x, key_padding_mask=padding)
        return self.encoder_norm(x), padding

    def _enter(self, previous: Float[Tensor, "B S G"], first: int = 0) -> Float[Tensor, "B S E"]:
        if self.training and self.history_dropout:
            kept = torch.rand(previous.shape[:2], device=previous.device) >= self.history_dropout
            previous = previous * kept[:, :, None]
        positions = self.positions[first : first + previous.shape[1]]
        return self.dropout(self.decoder_prenet(previous) + self.step_scale * positions)

    def _leave(self, x: Float[Tensor, "B S E"]) -> tuple[Float[Tensor, "B S G"], Float[Tensor, "B S"]]:
        x = self.decoder_norm(x)
        return self.frames(x), self.stop(x).squeeze(-1)

    def decode(
        self, previous: Float[Tensor, "B S G"], encoded: Float[Tensor, "B Ls E"], padding: Bool[Tensor, "B Ls"]
    ) -> tuple[Float[Tensor, "B S G"], Float[Tensor, "B S"]]:
        """Frames and stop logits of all steps, before the post-net, from the frames of the step before each.

        Padding among the steps needs no mask: it comes last, and no step looks ahead.
        """
        x = self._enter(previous)
        for block in self.decoder:
            x = block(x, encoded, source_key_padding_mask=padding)
        return self._leave(x)

    def forward(
        self,
        phonemes: Int[Tensor, "B Ls"],
        previous: Float[Tensor, "B S G"],
        step_padding: Bool[Tensor, "B S"] | None = None,
    ) -> Spoken:
        """All steps at once (teacher forcing). ``step_padding`` keeps the post-net from reading beyond the end."""
        causal, stop = self.decode(previous, *self.encode(phonemes))
        return Spoken(causal, causal + self.postnet(causal, step_padding), stop)

    @torch.no_grad()
    def generate(
        self, phonemes: Int[Tensor, "B Ls"], incremental: bool | None = None
    ) -> tuple[Float[Tensor, "B S G"], Int[Tensor, " B"]]:
        """Step by step until each utterance's stop probability is over 1/2, or ``max_steps``.

        Args:
            phonemes: tokens.
            incremental: with the state of the attention layers, or by full recomputation; None: the former where all
                layers of the decoder have an incremental form. The outputs agree.

        Returns:
            frames after the post-net, and the number of steps of each utterance.
        """
        encoded, padding = self.encode(phonemes)
        next_step = self._stepper(encoded, padding, self.is_incremental if incremental is None else incremental)
        previous = encoded.new_zeros(len(phonemes), 1, self.group)
        said: list[Tensor] = []
        steps = torch.full((len(phonemes),), self.max_steps, device=phonemes.device)
        for step in range(self.max_steps):
            frames, stop = next_step(previous)
            said.append(frames)
            steps = torch.where((steps == self.max_steps) & (stop[:, 0] > 0), step + 1, steps)
            if bool((steps < self.max_steps).all()):
                break
            previous = frames
        causal = torch.cat(said, dim=1)
        steps = steps.clamp(max=causal.shape[1])
        after_end = torch.arange(causal.shape[1], device=steps.device) >= steps[:, None]
        return causal + self.postnet(causal, after_end), steps

    @property
    def is_incremental(self) -> bool:
        """Whether every attention layer of the decoder has an incremental form."""
        return steps_everywhere(self.decoder)

    def _stepper(
        self, encoded: Tensor, padding: Tensor, incremental: bool
    ) -> Callable[[Float[Tensor, "B 1 G"]], tuple[Float[Tensor, "B 1 G"], Float[Tensor, "B 1"]]]:
        if not incremental:
            inputs: list[Tensor] = []

            def recompute(previous: Tensor) -> tuple[Tensor, Tensor]:
                inputs.append(previous)
                frames, stop = self.decode(torch.cat(inputs, dim=1), encoded, padding)
                return frames[:, -1:], stop[:, -1:]

            return recompute
        states: list[DecoderState] = []
        count = 0

        def continued(previous: Tensor) -> tuple[Tensor, Tensor]:
            nonlocal states, count
            x = self._enter(previous, count)
            kept = []
            for index, block in enumerate(self.decoder):
                assert isinstance(block, SteppedDecoderBlock)
                if states:
                    x, state = block.step(x, states[index])
                else:
                    x, state = block.prefill(x, encoded, source_key_padding_mask=padding)
                kept.append(state)
            states, count = kept, count + 1
            return self._leave(x)

        return continued
