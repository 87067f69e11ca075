"""An Informer-style encoder-decoder for forecasting, with a slot for every attention. Knows nothing of data sets.

    source    last ``input_length`` known steps -> embedding -> encoder blocks (NS), halved between blocks if distilling
    target    last ``label_length`` known steps and ``horizon`` zeros -> embedding -> decoder blocks (CS, NC)
    output    linear read-out at the ``horizon`` last positions: the whole forecast in one pass

Shape letters: B batch, L length, C channels, K calendar features, E width. After Zhou et al., "Informer" (AAAI 2021,
arXiv:2012.07436), sections 3.2 and 3.3; blocks are pre-norm here, and the attention is whatever fills the slots.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.layers import DecoderBlock, SelfAttentionBlock, SinusoidalPositions


class SeriesEmbedding(nn.Module):
    """``Conv1d_3(x) + W calendar + position`` (Informer, appendix B): values, time stamps and order in one vector."""

    def __init__(self, channels: int, calendar_features: int, width: int, max_length: int) -> None:
        super().__init__()
        self.values = nn.Conv1d(channels, width, kernel_size=3, padding=1)
        self.calendar = nn.Linear(calendar_features, width)
        self.positions = SinusoidalPositions(max_length, width)

    def forward(self, x: Float[Tensor, "B L C"], calendar: Float[Tensor, "B L K"]) -> Float[Tensor, "B L E"]:
        return self.positions(self.values(x.transpose(1, 2)).transpose(1, 2) + self.calendar(calendar))


class Distilling(nn.Module):
    """``MaxPool(ELU(Conv1d_3(x)))``, pool 3 with stride 2: half the length, rounded up (Informer, equation 5)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel_size=3, padding=1)
        self.pool = nn.MaxPool1d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B Lhalf E"]:
        return self.pool(nn.functional.elu(self.convolution(x.transpose(1, 2)))).transpose(1, 2)


class Informer(nn.Module):
    """The forecasting backbone.

    Args:
        slots: attention factories; asked for NS (encoder), CS (decoder over the target) and NC (target to source).
        channels: C, in and out.
        calendar_features: K.
        input_length, label_length, horizon: steps of the source, of its end that starts the target, of the forecast.
        width, heads, hidden: E, attention heads, inner width of the feed-forward layers.
        encoder_layers, decoder_layers: numbers of blocks.
        distil: halve the source between encoder blocks, so that the cross attention sees
            ``input_length / 2^(encoder_layers - 1)`` positions, rounded up at each halving.
        dropout: probability.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        channels: int,
        calendar_features: int,
        input_length: int,
        label_length: int,
        horizon: int,
        width: int,
        heads: int,
        hidden: int,
        encoder_layers: int,
        decoder_layers: int,
        distil: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.label_length, self.horizon = label_length, horizon
        target_length = label_length + horizon
        self.source_embedding = SeriesEmbedding(channels, calendar_features, width, input_length)
        self.target_embedding = SeriesEmbedding(channels, calendar_features, width, target_length)
        self.dropout = nn.Dropout(dropout)

        length = input_length
        encoder: list[nn.Module] = []
        for layer in range(encoder_layers):
            if distil and layer:
                encoder.append(Distilling(width))
                length = (length + 1) // 2
            attention = slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=length)
            encoder.append(SelfAttentionBlock(attention, hidden, dropout))
        self.encoder = nn.Sequential(*encoder)
        self.encoder_norm = nn.LayerNorm(width)
        self.decoder = nn.ModuleList(
            DecoderBlock(
                slots[Pattern.CAUSAL_SELF](width, heads, max_length=target_length),
                slots[Pattern.NONCAUSAL_CROSS](width, heads, max_length=target_length, max_length_key=length),
                hidden,
                dropout,
            )
            for _ in range(decoder_layers)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.read_out = nn.Linear(width, channels)

    def forward(
        self,
        inputs: Float[Tensor, "B L C"],
        input_calendar: Float[Tensor, "B L K"],
        target_calendar: Float[Tensor, "B Lt K"],
    ) -> Float[Tensor, "B H C"]:
        """The forecast. ``target_calendar`` covers the label and the horizon, Lt = label_length + horizon."""
        source = self.encoder_norm(self.encoder(self.dropout(self.source_embedding(inputs, input_calendar))))
        label = inputs[:, inputs.shape[1] - self.label_length :]
        placeholder = label.new_zeros(len(label), self.horizon, label.shape[-1])
        x = self.dropout(self.target_embedding(torch.cat((label, placeholder), dim=1), target_calendar))
        for block in self.decoder:
            x = block(x, source)
        return self.read_out(self.decoder_norm(x[:, self.label_length :]))
