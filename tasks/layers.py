"""Transformer blocks that take an attention layer per slot. Nothing here knows mechanisms, data or tasks.

Pre-norm, as in GPT-2 and later models: ``x <- x + Attention(LayerNorm(x))``, ``x <- x + FeedForward(LayerNorm(x))``; a
stack of blocks ends with a LayerNorm of the model's own. Shape letters: B batch, L length of the sequence, Lk length of
the source, E width.

The same parameters for every mechanism: torch's global generator is seeded before a model is built, and the harness
gives each attention layer a generator of its own. A model that is built in a fixed order therefore has the same initial
values outside the mechanism, whichever mechanism it is given.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from attention_zoo.contract import Attention


class FeedForward(nn.Module):
    """``W_2 gelu(W_1 x + b_1) + b_2``, position by position (Vaswani et al., section 3.3, with GELU).

    Args:
        width: E, of input and output.
        hidden: of the inner layer; 4 E where None.
        dropout: probability, after the activation.
    """

    def __init__(self, width: int, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        self.expand = nn.Linear(width, hidden or 4 * width)
        self.contract = nn.Linear(hidden or 4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L E"]:
        return self.contract(self.dropout(nn.functional.gelu(self.expand(x))))


class SelfAttentionBlock(nn.Module):
    """Self attention and a feed-forward layer, pre-norm with residuals: an encoder block (NS) or a GPT block (CS).

    Args:
        attention: the layer of the slot; its ``embed_dim`` is the width E.
        hidden: of the feed-forward layer; 4 E where None.
        dropout: probability, after each of the two sub-layers and inside the feed-forward layer.
    """

    def __init__(self, attention: Attention, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        width = attention.embed_dim
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Float[Tensor, "B L E"], *, key_padding_mask: Bool[Tensor, "B L"] | None = None
    ) -> Float[Tensor, "B L E"]:
        """``key_padding_mask`` is True where a position is padding."""
        x = x + self.dropout(self.attention(self.attention_norm(x), key_padding_mask=key_padding_mask))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class CrossAttentionBlock(nn.Module):
    """Cross attention to a source and a feed-forward layer, pre-norm with residuals; the source comes normalised.

    Arguments as for :class:`SelfAttentionBlock`.
    """

    def __init__(self, attention: Attention, hidden: int | None = None, dropout: float = 0.0) -> None:
        super().__init__()
        width = attention.embed_dim
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B L E"],
        source: Float[Tensor, "B Lk E"],
        *,
        source_key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B L E"]:
        """``source_key_padding_mask`` is True where a position of the source is padding."""
        attended = self.attention(self.attention_norm(x), source, source, key_padding_mask=source_key_padding_mask)
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class DecoderBlock(nn.Module):
    """Self attention over the target, cross attention to the source, and a feed-forward layer (Vaswani et al., 3.1).

    Args:
        self_attention, cross_attention: the layers of the two slots, of one width E.
        hidden: of the feed-forward layer; 4 E where None.
        dropout: probability, after each sub-layer and inside the feed-forward layer.
    """

    def __init__(
        self,
        self_attention: Attention,
        cross_attention: Attention,
        hidden: int | None = None,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        width = self_attention.embed_dim
        self.self_attention_norm = nn.LayerNorm(width)
        self.self_attention = self_attention
        self.cross_attention_norm = nn.LayerNorm(width)
        self.cross_attention = cross_attention
        self.feed_forward_norm = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, hidden, dropout)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B L E"],
        source: Float[Tensor, "B Lk E"],
        *,
        key_padding_mask: Bool[Tensor, "B L"] | None = None,
        source_key_padding_mask: Bool[Tensor, "B Lk"] | None = None,
    ) -> Float[Tensor, "B L E"]:
        """The masks are True where a position of the target, or of the source, is padding."""
        x = x + self.dropout(self.self_attention(self.self_attention_norm(x), key_padding_mask=key_padding_mask))
        attended = self.cross_attention(
            self.cross_attention_norm(x), source, source, key_padding_mask=source_key_padding_mask
        )
        x = x + self.dropout(attended)
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class LearnedPositions(nn.Module):
    """Adds a learned vector per position, drawn from N(0, std^2) or starting at ``initial``.

    Args:
        max_length: the number of positions; a longer input is a ``ValueError``.
        width: E.
        std: of the initial values, where they are drawn.
        initial: ``[max_length, E]``, such as :func:`sinusoids`.
    """

    def __init__(self, max_length: int, width: int, std: float = 0.02, initial: Tensor | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(max_length, width))
        if initial is None:
            nn.init.normal_(self.weight, std=std)
        else:
            self.weight.data.copy_(initial)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L E"]:
        if x.shape[1] > len(self.weight):
            raise ValueError(f"length {x.shape[1]} is over the model's {len(self.weight)} positions")
        return x + self.weight[: x.shape[1]]


def sinusoids(length: int, width: int, longest: float = 10_000.0) -> Float[Tensor, "L E"]:
    """``P[t, i] = sin(t w_i)``, ``P[t, E/2 + i] = cos(t w_i)``, ``w_i = longest^(-2 i / E)``, i < E/2.

    The positions of Vaswani et al., section 3.5, with the sines first; E is even. ``longest`` is 10000 there: with a
    value near the length, all waves tell positions of a short sequence apart.
    """
    if width % 2:
        raise ValueError(f"width={width} is not even, as sinusoidal positions need")
    frequencies = longest ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    angles = torch.arange(length, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), dim=-1).float()


class SinusoidalPositions(nn.Module):
    """Adds ``scale`` times the fixed :func:`sinusoids`; no parameters, and any length up to ``max_length``."""

    table: Tensor

    def __init__(self, max_length: int, width: int, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("table", scale * sinusoids(max_length, width), persistent=False)

    def forward(self, x: Float[Tensor, "B L E"]) -> Float[Tensor, "B L E"]:
        if x.shape[1] > len(self.table):
            raise ValueError(f"length {x.shape[1]} is over the model's {len(self.table)} positions")
        return x + self.table[: x.shape[1]]
