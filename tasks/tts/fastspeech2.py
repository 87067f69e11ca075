"""FastSpeech 2: phonemes to a mel spectrogram in one pass. Knows nothing of data sets.

    phonemes -> embedding + position -> 4 feed-forward-transformer blocks (NS)
             -> durations, pitch, energy predicted; pitch and energy embedded and added; repeated by duration
             -> + position -> 4 feed-forward-transformer blocks (NS) -> mel frames

Y. Ren et al., "FastSpeech 2: Fast and High-Quality End-to-End Text to Speech", ICLR 2021, arXiv:2006.04558, sections
2.2 and 2.3, in the form that CAB trained (fairseq's architecture ``fastspeech2``): both convolutions of a block have
kernel 9 (the paper: 9 and 1), pitch is one value per phoneme (the paper: a spectrogram of the contour), no post-net.
Shape letters: B batch, Ls phonemes, Lt frames, E width, M mel bands.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from attention_zoo.contract import Attention, Pattern
from tasks.contract import Slots
from tasks.layers import sinusoids


class Spoken(NamedTuple):
    """What the model says: frames beyond ``frames[b]`` are padding, and so are phonemes that are ``pad``."""

    mel: Float[Tensor, "B Lt M"]
    frames: Int[Tensor, " B"]
    log_durations: Float[Tensor, "B Ls"]
    pitch: Float[Tensor, "B Ls"]
    energy: Float[Tensor, "B Ls"]


def _convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv1d:
    layer = nn.Conv1d(inputs, outputs, kernel, padding=(kernel - 1) // 2)
    nn.init.xavier_uniform_(layer.weight, nn.init.calculate_gain("relu"))
    return layer


def _over_time(layer: nn.Conv1d, x: Float[Tensor, "B L C"]) -> Float[Tensor, "B L D"]:
    return layer(x.transpose(1, 2)).transpose(1, 2)


class FeedForwardTransformer(nn.Module):
    """A block: self attention, then two convolutions with a ReLU between, each with a residual and a LayerNorm after.

    Padding is set to zero after each half, so that convolutions see the same beside it as at an end.

    Args:
        attention: the layer of the slot.
        hidden, kernel: channels between the convolutions, and their kernel.
        dropout: probability, after the second convolution.
    """

    def __init__(self, attention: Attention, hidden: int, kernel: int, dropout: float) -> None:
        super().__init__()
        width = attention.embed_dim
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.expand = _convolution(width, hidden, kernel)
        self.contract = _convolution(hidden, width, kernel)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L E"], padding: Bool[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        keep = ~padding[:, :, None]
        x = self.attention_norm(x + self.attention(x, key_padding_mask=padding)) * keep
        hidden = _over_time(self.expand, x).relu() * keep
        return self.norm(x + self.dropout(_over_time(self.contract, hidden))) * keep


class VariancePredictor(nn.Module):
    """One number per phoneme: two convolutions of kernel 3, each with ReLU, LayerNorm and dropout; then linear.

    ``offset`` is the initial bias: a value that is right on average spares learning it.
    """

    def __init__(self, width: int, hidden: int, dropout: float, offset: float) -> None:
        super().__init__()
        self.first = _convolution(width, hidden, 3)
        self.first_norm = nn.LayerNorm(hidden)
        self.second = _convolution(hidden, hidden, 3)
        self.second_norm = nn.LayerNorm(hidden)
        self.output = nn.Linear(hidden, 1)
        nn.init.constant_(self.output.bias, offset)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L E"], padding: Bool[Tensor, "B L"]) -> Float[Tensor, "B L"]:
        keep = ~padding[:, :, None]
        x = self.dropout(self.first_norm(_over_time(self.first, x).relu())) * keep
        x = self.dropout(self.second_norm(_over_time(self.second, x).relu()))
        return self.output(x).squeeze(-1).masked_fill(padding, 0.0)


class Bins(nn.Module):
    """Embeds a number by which of ``count`` bins between ``low`` and ``high`` it falls into; beyond them, the outer."""

    edges: Tensor

    def __init__(self, low: float, high: float, count: int, width: int) -> None:
        super().__init__()
        self.register_buffer("edges", torch.linspace(low, high, count - 1), persistent=False)
        self.embedding = nn.Embedding(count, width)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)

    def forward(self, values: Float[Tensor, "B L"]) -> Float[Tensor, "B L E"]:
        return self.embedding(torch.bucketize(values.detach().to(self.edges.dtype), self.edges))


def regulate(
    x: Float[Tensor, "B Ls E"], durations: Int[Tensor, "B Ls"], length: int
) -> tuple[Float[Tensor, "B Lt E"], Bool[Tensor, "B Lt"]]:
    """The length regulator: phoneme i repeated ``durations[i]`` times, cut or filled with zeros to ``length``.

    Returns the frames, and where they are padding.
    """
    ends = durations.cumsum(dim=1)
    time = torch.arange(length, device=x.device).expand(len(x), length).contiguous()
    phoneme = torch.searchsorted(ends, time, right=True)
    padding = time >= ends[:, -1:]
    index = phoneme.clamp(max=x.shape[1] - 1)[:, :, None].expand(-1, -1, x.shape[2])
    return x.gather(1, index) * ~padding[:, :, None], padding


class FastSpeech2(nn.Module):
    """The backbone.

    Args:
        slots: attention factories; asked for NS, in the encoder (over phonemes) and in the decoder (over frames).
        symbols: tokens, padding included; token ``pad`` fills up.
        max_phonemes, max_frames: the largest Ls and Lt; longer speech of its own is cut.
        bands: M.
        width, heads, hidden, kernel: E, attention heads, channels and kernel of the blocks' convolutions.
        encoder_layers, decoder_layers: numbers of blocks.
        predictor_hidden, predictor_dropout: of the three predictors.
        bins: of pitch and of energy.
        pitch_range, energy_range: what the bins cover, in the units of the data.
        frames_per_phoneme: what durations are guessed before anything is learned.
        dropout: probability.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        symbols: int,
        max_phonemes: int,
        max_frames: int,
        bands: int,
        width: int,
        heads: int,
        hidden: int,
        kernel: int,
        encoder_layers: int,
        decoder_layers: int,
        predictor_hidden: int,
        predictor_dropout: float,
        bins: int,
        pitch_range: tuple[float, float],
        energy_range: tuple[float, float],
        frames_per_phoneme: float,
        dropout: float,
        pad: int = 0,
    ) -> None:
        super().__init__()
        self.pad, self.max_frames = pad, max_frames
        self.embedding = nn.Embedding(symbols, width, padding_idx=pad)
        with torch.no_grad():
            self.embedding.weight.normal_(std=width**-0.5)
            self.embedding.weight[pad] = 0.0
        self.phoneme_scale = nn.Parameter(torch.ones(1))
        self.frame_scale = nn.Parameter(torch.ones(1))
        self.register_buffer("positions", sinusoids(max(max_phonemes, max_frames), width), persistent=False)

        def blocks(count: int, max_length: int) -> nn.ModuleList:
            slot = slots[Pattern.NONCAUSAL_SELF]
            return nn.ModuleList(
                FeedForwardTransformer(slot(width, heads, max_length=max_length), hidden, kernel, dropout)
                for _ in range(count)
            )

        def predictor(offset: float) -> VariancePredictor:
            return VariancePredictor(width, predictor_hidden, predictor_dropout, offset)

        self.encoder = blocks(encoder_layers, max_phonemes)
        self.duration_predictor = predictor(math.log1p(frames_per_phoneme))
        self.pitch_predictor = predictor(sum(pitch_range) / 2)
        self.energy_predictor = predictor(sum(energy_range) / 2)
        self.pitch_bins = Bins(*pitch_range, bins, width)
        self.energy_bins = Bins(*energy_range, bins, width)
        self.decoder = blocks(decoder_layers, max_frames)
        self.output = nn.Linear(width, bands)
        self.dropout = nn.Dropout(dropout)

    positions: Tensor

    def forward(
        self,
        phonemes: Int[Tensor, "B Ls"],
        durations: Int[Tensor, "B Ls"] | None = None,
        pitch: Float[Tensor, "B Ls"] | None = None,
        energy: Float[Tensor, "B Ls"] | None = None,
        length: int | None = None,
    ) -> Spoken:
        """Speech; durations, pitch and energy are the model's own where None.

        ``length`` is Lt with given durations (padding included); None: that of the longest.
        """
        padding = phonemes == self.pad
        x = self.embedding(phonemes) + self.phoneme_scale * self.positions[: phonemes.shape[1]]
        x = self.dropout(x) * ~padding[:, :, None]
        for block in self.encoder:
            x = block(x, padding)
        log_durations = self.duration_predictor(x, padding)
        own_pitch = self.pitch_predictor(x, padding)
        x = (x + self.pitch_bins(own_pitch if pitch is None else pitch)) * ~padding[:, :, None]
        own_energy = self.energy_predictor(x, padding)
        x = x + self.energy_bins(own_energy if energy is None else energy)
        if durations is None:
            durations = self._durations(log_durations, padding)
        if length is None:
            length = min(int(durations.sum(dim=1).max()), self.max_frames)
        x, silent = regulate(x, durations, length)
        x = (x + self.frame_scale * self.positions[:length]) * ~silent[:, :, None]
        for block in self.decoder:
            x = block(x, silent)
        mel = self.output(x) * ~silent[:, :, None]
        return Spoken(mel, (~silent).sum(dim=1), log_durations, own_pitch, own_energy)

    def _durations(self, log_durations: Tensor, padding: Tensor) -> Tensor:
        """``max(0, round(exp(.) - 1))``, zero for padding; an utterance of no frame gets one."""
        # What is over the longest is cut anyway, and infinities would not be whole numbers.
        frames = log_durations.float().clamp(max=math.log1p(self.max_frames)).exp() - 1
        durations = frames.round().long().clamp(min=0).masked_fill(padding, 0)
        durations[:, 0] += durations.sum(dim=1) == 0
        return durations
