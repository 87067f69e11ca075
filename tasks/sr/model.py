"""The denoising U-Net of SR3, with a slot at every attention. Knows nothing of data sets, and nothing of schedules.

    input     the noisy picture beside the condition (the upsampled low-resolution picture): 2 C channels
    down      per level: residual blocks, attention after each where the level's side is asked for, then half the side
    middle    residual block, attention, residual block
    up        per level: residual blocks over the output of the way down beside it, attention, then twice the side
    output    the estimate of the noise, C channels

Shape letters: B batch, C colours, F features, S side of a square picture, K width of the embedding of the noise level.
After Saharia et al., "Image Super-Resolution via Iterative Refinement" (arXiv:2104.07636), section 2.4, with the
residual blocks and the order of layers of Ho et al., "Denoising Diffusion Probabilistic Models" (arXiv:2006.11239),
appendix B, as the public PyTorch implementation has them on which CAB ran.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo.contract import Attention, Pattern
from tasks.contract import Slots

LEVEL_SCALE = 100.0


class NoiseLevel(nn.Module):
    """``MLP([sin(s g w_k), cos(s g w_k)])``, ``w_k = 10000^(-2 k / K)``: the embedding of a noise level g in [0, 1].

    The level is continuous, as in WaveGrad (Chen et al., arXiv:2009.00713, section 3.2), so that any schedule can be
    chosen after training. ``scale`` is s.
    """

    frequencies: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        half = torch.arange(width // 2, dtype=torch.float32)
        self.register_buffer("frequencies", scale * torch.exp(-math.log(1e4) * half / (width // 2)), persistent=False)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, level: Float[Tensor, " B"]) -> Float[Tensor, "B K"]:
        angles = level[:, None] * self.frequencies
        waves = torch.cat((angles.sin(), angles.cos()), dim=-1)
        return self.contract(nn.functional.silu(self.expand(waves)))


class ResidualBlock(nn.Module):
    """``skip(x) + Conv(dropout(silu(norm(h))))`` with ``h = Conv(silu(norm(x))) + W e``, e the noise level's embedding.

    Args:
        features, features_out: F of input and output; the skip is a 1x1 convolution where they differ.
        embedding: K.
        groups: of the group normalisations; divides both F.
        dropout: probability, before the second convolution.
    """

    def __init__(self, features: int, features_out: int, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.level = nn.Linear(embedding, features_out)
        self.norm_in = nn.GroupNorm(groups, features)
        self.convolution_in = nn.Conv2d(features, features_out, kernel_size=3, padding=1)
        self.norm_out = nn.GroupNorm(groups, features_out)
        self.dropout = nn.Dropout(dropout)
        self.convolution_out = nn.Conv2d(features_out, features_out, kernel_size=3, padding=1)
        self.skip = nn.Conv2d(features, features_out, kernel_size=1) if features != features_out else nn.Identity()
        # A block starts as its skip: a deep stack of them passes signals and gradients on from the first step.
        nn.init.zeros_(self.convolution_out.weight)

    def forward(self, x: Float[Tensor, "B F S S"], embedding: Float[Tensor, "B K"]) -> Float[Tensor, "B G S S"]:
        hidden = self.convolution_in(nn.functional.silu(self.norm_in(x)))
        hidden = hidden + self.level(embedding)[:, :, None, None]
        hidden = self.dropout(nn.functional.silu(self.norm_out(hidden)))
        return self.skip(x) + self.convolution_out(hidden)


class PixelAttention(nn.Module):
    """``x + Attention(norm(x))`` over the S^2 pixels, row after row, as one sequence."""

    def __init__(self, attention: Attention, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, attention.embed_dim)
        self.attention = attention

    def forward(self, x: Float[Tensor, "B F S S"]) -> Float[Tensor, "B F S S"]:
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        return x + self.attention(pixels).transpose(1, 2).reshape(x.shape)


class Stage(nn.Module):
    """A residual block, and attention where there is one."""

    def __init__(self, block: ResidualBlock, attention: PixelAttention | None) -> None:
        super().__init__()
        self.block = block
        self.attention = nn.Identity() if attention is None else attention

    def forward(self, x: Float[Tensor, "B F S S"], embedding: Float[Tensor, "B K"]) -> Float[Tensor, "B G S S"]:
        return self.attention(self.block(x, embedding))


class UNet(nn.Module):
    """``f(condition, y, g)``: an estimate of the noise in ``y = g x + sqrt(1 - g^2) noise``.

    Args:
        slots: attention factories; asked for NS only.
        side: S of the pictures; halved between levels.
        colours: C.
        features: of the first level, and K.
        multipliers: of ``features``, per level.
        attention_sides: the sides at which a level attends; the middle always does.
        blocks: residual blocks per level on the way down; one more on the way up.
        heads, groups: of attention and of group normalisation.
        dropout: probability.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        side: int,
        colours: int,
        features: int,
        multipliers: Sequence[int],
        attention_sides: Sequence[int],
        blocks: int,
        heads: int,
        groups: int,
        dropout: float,
    ) -> None:
        super().__init__()

        def stage(width: int, width_out: int, side: int, attends: bool) -> Stage:
            block = ResidualBlock(width, width_out, features, groups, dropout)
            if not attends:
                return Stage(block, None)
            layer = slots[Pattern.NONCAUSAL_SELF](width_out, heads, max_length=side * side)
            return Stage(block, PixelAttention(layer, groups))

        self.level = NoiseLevel(features, LEVEL_SCALE)
        self.entry = nn.Conv2d(2 * colours, features, kernel_size=3, padding=1)
        self.down = nn.ModuleList()
        width, widths = features, [features]
        for number, multiplier in enumerate(multipliers):
            if number:
                self.down.append(nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1))
                side //= 2
                widths.append(width)
            for _ in range(blocks):
                self.down.append(stage(width, features * multiplier, side, side in attention_sides))
                width = features * multiplier
                widths.append(width)
        self.middle = nn.ModuleList((stage(width, width, side, True), stage(width, width, side, False)))
        self.up = nn.ModuleList()
        for number, multiplier in enumerate(reversed(multipliers)):
            if number:
                self.up.append(
                    nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(width, width, kernel_size=3, padding=1))
                )
                side *= 2
            for _ in range(blocks + 1):
                self.up.append(stage(width + widths.pop(), features * multiplier, side, side in attention_sides))
                width = features * multiplier
        self.exit_norm = nn.GroupNorm(groups, width)
        self.exit = nn.Conv2d(width, colours, kernel_size=3, padding=1)

    def forward(
        self, condition: Float[Tensor, "B C S S"], noisy: Float[Tensor, "B C S S"], level: Float[Tensor, " B"]
    ) -> Float[Tensor, "B C S S"]:
        """The noise in ``noisy``; ``level`` is g, the factor of the picture in it, in [0, 1]."""
        embedding = self.level(level)
        x = self.entry(torch.cat((condition, noisy), dim=1))
        passed = [x]
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, Stage) else layer(x)
            passed.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = layer(torch.cat((x, passed.pop()), dim=1), embedding) if isinstance(layer, Stage) else layer(x)
        return self.exit(nn.functional.silu(self.exit_norm(x)))
