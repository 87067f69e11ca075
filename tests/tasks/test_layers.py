"""The blocks: padding reaches the attention, and outputs have the order of dependence that the pattern promises."""

from __future__ import annotations

import pytest
import torch

from attention_zoo.contract import Pattern
from attention_zoo.registry import build
from tasks.layers import CrossAttentionBlock, DecoderBlock, LearnedPositions, SelfAttentionBlock, sinusoids


def layer(pattern: Pattern) -> object:
    return build("softmax", 16, 2, pattern, max_length=12, max_length_key=12)


def test_padding_of_one_sequence_is_invisible() -> None:
    block = SelfAttentionBlock(layer(Pattern.NONCAUSAL_SELF)).double()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    mask = torch.arange(9).expand(2, 9) >= 6
    # 1e-12: the same sums in float64, in another order
    torch.testing.assert_close(block(x, key_padding_mask=mask)[:, :6], block(x[:, :6]), atol=1e-12, rtol=0)


def test_padding_of_the_source_is_invisible() -> None:
    blocks = [
        CrossAttentionBlock(layer(Pattern.NONCAUSAL_CROSS)).double(),
        DecoderBlock(layer(Pattern.CAUSAL_SELF), layer(Pattern.CAUSAL_CROSS)).double(),
    ]
    x, source = torch.randn(2, 5, 16, dtype=torch.float64), torch.randn(2, 9, 16, dtype=torch.float64)
    mask = torch.arange(9).expand(2, 9) >= 6
    for block in blocks:
        padded = block(x, source, source_key_padding_mask=mask)
        # 1e-12: the same sums in float64, in another order
        torch.testing.assert_close(padded, block(x, source[:, :6]), atol=1e-12, rtol=0)
        assert not torch.allclose(padded, block(x, source))


def test_a_decoder_block_does_not_see_the_future() -> None:
    block = DecoderBlock(layer(Pattern.CAUSAL_SELF), layer(Pattern.CAUSAL_CROSS))
    x, source = torch.randn(1, 8, 16), torch.randn(1, 9, 16)
    changed = x.clone()
    changed[:, 5:] += 1.0
    before, after = block(x, source), block(changed, source)
    assert torch.equal(before[:, :5], after[:, :5])
    assert not torch.allclose(before[:, 5:], after[:, 5:])


def test_sinusoids_are_rotations() -> None:
    table = sinusoids(20, 16, longest=20).double()
    # Neighbours have the same inner product wherever they are; 1e-5: the table is float32.
    products = (table[1:] * table[:-1]).sum(-1)
    torch.testing.assert_close(products, products[:1].expand(19), atol=1e-5, rtol=0)
    torch.testing.assert_close(table.square().sum(-1), torch.full((20,), 8.0).double(), atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="not even"):
        sinusoids(4, 5)


def test_positions_end_with_an_error_that_names_both_lengths() -> None:
    with pytest.raises(ValueError, match=r"length 9 .* 8 positions"):
        LearnedPositions(8, 4)(torch.zeros(1, 9, 4))
