"""A small vision transformer: patches as tokens, pre-norm blocks of self attention, the mean of all positions.

    x_i = W p_i + b + position_i;  logits = W_c LN(mean_i blocks(x)_i) + b_c

p_i is patch i with half a patch around it, so that neighbours overlap as in Yuan et al., T2T-ViT, ICCV 2021,
arXiv:2101.11986: a stroke that a border would cut is whole in one of them, and fewer pictures are enough to learn from.
Otherwise after Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021, arXiv:2010.11929, with mean pooling for
the class token (their appendix D.3).
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Slots
from tasks.layers import LearnedPositions, SelfAttentionBlock, sinusoids


def grid_positions(side: int, width: int) -> Float[Tensor, "L E"]:
    """Sinusoids of the row in the first half of the width and of the column in the second, row by row."""
    along = sinusoids(side, width // 2, longest=side)
    return torch.cat((along.repeat_interleave(side, 0), along.repeat(side, 1)), dim=1)


class PatchClassifier(nn.Module):
    """Pictures ``[B, S, S]`` to logits ``[B, C]``.

    Args:
        slots: asked for NS.
        side: S.
        patch: side of a patch, a divisor of S.
        classes: C.
        width, heads, hidden, layers, dropout: of the blocks; the width is a multiple of 4.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        side: int,
        patch: int,
        classes: int,
        width: int,
        heads: int,
        hidden: int,
        layers: int,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.patch, self.margin = patch, (patch + 1) // 2
        self.window = patch + 2 * self.margin
        across = side // patch
        self.embedding = nn.Linear(self.window**2, width)
        self.positions = LearnedPositions(across**2, width, initial=grid_positions(across, width))
        self.blocks = nn.ModuleList(
            SelfAttentionBlock(slots[Pattern.NONCAUSAL_SELF](width, heads, max_length=across**2), hidden, dropout)
            for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, classes)

    def forward(self, pictures: Float[Tensor, "B S S"]) -> Float[Tensor, "B C"]:
        padded = nn.functional.pad(pictures, [self.margin] * 4)
        patches = padded.unfold(1, self.window, self.patch).unfold(2, self.window, self.patch)
        x = self.positions(self.embedding(patches.flatten(3).flatten(1, 2)))
        for block in self.blocks:
            x = block(x)
        return self.output(self.norm(x.mean(1)))
