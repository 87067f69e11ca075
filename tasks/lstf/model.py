"""Informer, with a slot for every attention. Knows nothing of data sets.

    source    last ``input_length`` known steps -> embedding -> encoder layers (NS), halved between layers if distilling
    target    last ``label_length`` known steps and ``horizon`` zeros -> embedding -> decoder layers (CS, NC)
    output    linear read-out at the ``horizon`` last positions: the whole forecast in one pass

Shape letters: B batch, L length, C channels, K calendar features, E width. After Zhou et al., "Informer" (AAAI 2021,
arXiv:2012.07436), sections 3.2, 3.3 and appendix B, and the settings of its released code (post-norm layers, circular
convolutions, batch normalisation when distilling, GELU). Which attention fills the slots is not decided here:
ProbSparse is Informer's own choice for NS and CS.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo.contract import Attention, Pattern
from tasks.contract import Slots
from tasks.layers import FeedForward, SinusoidalPositions


class SeriesEmbedding(nn.Module):
    """``Conv1d_3(x) + W calendar + position`` (Informer, appendix B): values, time stamps and order in one vector.

    The convolution wraps around at the ends; its weights start from He's normal distribution, as in the released code.
    """

    def __init__(self, channels: int, calendar_features: int, width: int, max_length: int, dropout: float) -> None:
        super().__init__()
        self.values = nn.Conv1d(channels, width, kernel_size=3, padding=1, padding_mode="circular")
        nn.init.kaiming_normal_(self.values.weight, nonlinearity="relu")
        self.calendar = nn.Linear(calendar_features, width)
        self.positions = SinusoidalPositions(max_length, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L C"], calendar: Float[Tensor, "B L K"]) -> Float[Tensor, "B L E"]:
        return self.dropout(self.positions(self.values(x.mT).mT + self.calendar(calendar)))


class Distilling(nn.Module):
    """``MaxPool(ELU(BatchNorm(Conv1d_3(x))))``, pool 3 with stride 2: half the length, rounded up.

    Informer, equation 5; the circular padding and the normalisation are the released code's.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.convolution = nn.Conv1d(width, width, kernel_size=3, padding=1, padding_mode="circular")
        self.norm = nn.BatchNorm1d(width)
        self.pool = nn.MaxPool1d(kernel_size=3, stride=2, padding=1)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B Lhalf E"]:
        return self.pool(nn.functional.elu(self.norm(self.convolution(x.mT)))).mT


def distilled(length: int, times: int) -> int:
    """The length that is left after :class:`Distilling` so many times: halved and rounded up each time."""
    for _ in range(times):
        length = (length + 1) // 2
    return length


class EncoderLayer(nn.Module):
    """``x <- Norm(x + Attention(x))``, ``x <- Norm(x + FeedForward(x))``: post-norm (Vaswani et al., section 3.1)."""

    def __init__(self, attention: Attention, hidden: int, dropout: float) -> None:
        super().__init__()
        width = attention.embed_dim
        self.attention = attention
        self.attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L E"]:
        x = self.attention_norm(x + self.dropout(self.attention(x)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Self attention over the target, cross attention to the source and a feed-forward layer, each post-norm."""

    def __init__(self, self_attention: Attention, cross_attention: Attention, hidden: int, dropout: float) -> None:
        super().__init__()
        width = self_attention.embed_dim
        self.self_attention = self_attention
        self.self_attention_norm = nn.LayerNorm(width)
        self.cross_attention = cross_attention
        self.cross_attention_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.feed_forward_norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L E"], source: Float[Tensor, "B Lk E"]) -> Float[Tensor, "B L E"]:
        x = self.self_attention_norm(x + self.dropout(self.self_attention(x)))
        x = self.cross_attention_norm(x + self.dropout(self.cross_attention(x, source, source)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class Informer(nn.Module):
    """The forecasting backbone.

    Args:
        slots: attention factories; asked for NS (encoder), CS (decoder over the target) and NC (target to source).
        channels: C, in and out.
        calendar_features: K.
        input_length, label_length, horizon: steps of the source, of its end that starts the target, of the forecast.
        width, heads, hidden: E, attention heads, inner width of the feed-forward layers.
        encoder_layers, decoder_layers: numbers of layers.
        distil: halve the source between encoder layers, so that the cross attention sees
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
        self.source_embedding = SeriesEmbedding(channels, calendar_features, width, input_length, dropout)
        self.target_embedding = SeriesEmbedding(channels, calendar_features, width, target_length, dropout)

        encoder: list[nn.Module] = []
        for layer in range(encoder_layers):
            if distil and layer:
                encoder.append(Distilling(width))
            length = distilled(input_length, layer if distil else 0)
            attention = slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=length)
            encoder.append(EncoderLayer(attention, hidden, dropout))
        self.encoder = nn.Sequential(*encoder, nn.LayerNorm(width))
        self.decoder = nn.ModuleList(
            DecoderLayer(
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
        source = self.encoder(self.source_embedding(inputs, input_calendar))
        label = inputs[:, inputs.shape[1] - self.label_length :]
        placeholder = label.new_zeros(len(label), self.horizon, label.shape[-1])
        x = self.target_embedding(torch.cat((label, placeholder), dim=1), target_calendar)
        for layer in self.decoder:
            x = layer(x, source)
        return self.read_out(self.decoder_norm(x[:, self.label_length :]))
