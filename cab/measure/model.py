"""The ``model`` level: a stack of pre-norm transformer blocks with the mechanism in every attention slot.

A block is attention and a feed-forward layer of width 4 E, each with LayerNorm and residual; the cross patterns attend
to a source that comes from outside. Costs at this level say what is left of an attention's advantage once the rest of
a model is paid for too. No embedding and no output layer: those depend on the task.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from attention_zoo.contract import Attention
from tasks.layers import CrossAttentionBlock, SelfAttentionBlock

DEPTH = 2


class BlockStack(nn.Module):
    """``DEPTH`` blocks. ``forward`` takes x, or query, key and value as a layer does (key and value are one source)."""

    def __init__(self, attention: Callable[[], Attention]) -> None:
        super().__init__()
        layers = [attention() for _ in range(DEPTH)]
        self.pattern = layers[0].pattern
        self.embed_dim = layers[0].embed_dim
        block = CrossAttentionBlock if self.pattern.is_cross else SelfAttentionBlock
        self.blocks = nn.ModuleList(block(layer) for layer in layers)
        self._attention_flops = layers[0].flops

    def forward(self, x: Tensor, key: Tensor | None = None, value: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x) if key is None else block(x, key)
        return x

    def flops(self, batch: int, length_q: int, length_k: int) -> int:
        """Of attention layers and feed-forward layers, 2 per multiply-add."""
        feed_forward = 2 * 2 * batch * length_q * self.embed_dim * 4 * self.embed_dim
        return DEPTH * (feed_forward + self._attention_flops(batch, length_q, length_k))
