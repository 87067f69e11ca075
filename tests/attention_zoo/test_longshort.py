"""Long-short attention: its collapse to softmax, who is seen, and what its state holds."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build
from attention_zoo.contract import Pattern, Unsupported
from attention_zoo.reference import longshort as oracle

SELF = ["noncausal_self", "causal_self"]
SMALL = {"window": 4, "num_landmarks": 3, "chunk_size": 5}
# float64 sums of at most a few hundred terms of unit scale in another order: rounding stays near 1e-14.
ROUNDING = 1e-11


def _layer(pattern: str, **options: Any) -> Any:
    return build("longshort", 12, 3, pattern, max_length=300, **{**SMALL, **options}).double().eval()


def _inputs(pattern: str, length_q: int, length_k: int) -> list[Tensor]:
    query = torch.randn(2, length_q, 12, dtype=torch.float64)
    if not Pattern(pattern).is_cross:
        return [query]
    return [query, *torch.randn(2, 2, length_k, 12, dtype=torch.float64)]


@pytest.mark.parametrize("pattern", SELF)
def test_a_window_of_everything_and_no_landmarks_is_softmax_attention(pattern: str) -> None:
    layer = _layer(pattern, window=23, num_landmarks=0, dual_norm=False)
    exact = build("softmax", 12, 3, pattern, max_length=300).double()
    exact.load_state_dict(layer.state_dict())
    x = torch.randn(3, 23, 12, dtype=torch.float64)
    mask = torch.arange(23) >= torch.tensor([23, 11, 0])[:, None]
    out, expected = layer(x, key_padding_mask=mask), exact(x, key_padding_mask=mask)
    torch.testing.assert_close(out[~mask], expected[~mask], rtol=ROUNDING, atol=ROUNDING)


@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_any_length_mask_and_options_agree_with_the_oracle(data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(list(Pattern)))
    options = {
        "window": data.draw(st.integers(1, 25)),
        "num_landmarks": data.draw(st.integers(int(pattern.is_cross), 3)),
        "chunk_size": data.draw(st.integers(1, 9)),
        "dual_norm": data.draw(st.booleans()),
    }
    layer = _layer(pattern, **options)
    inputs = _inputs(pattern, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)))
    mask = torch.tensor([[data.draw(st.booleans()) for _ in range(inputs[-1].shape[1])] for _ in range(2)])
    out = layer(*inputs, key_padding_mask=mask)
    expected = oracle.dense_layer(layer, *inputs, key_padding_mask=mask)
    torch.testing.assert_close(out, expected, rtol=ROUNDING, atol=ROUNDING)


def _seen(layer: Any, length: int) -> Tensor:
    """[L, L]: whether token j moves output i."""
    x = torch.randn(1, length, 12, dtype=torch.float64)
    out, rows = layer(x), []
    for j in range(length):
        changed = x.clone()
        changed[:, j] += 1
        rows.append((layer(changed) != out).any(-1)[0])
    return torch.stack(rows, dim=1)


def test_a_causal_query_sees_complete_chunks_before_its_own_and_its_window() -> None:
    i, j = torch.arange(23)[:, None], torch.arange(23)
    seen = _seen(_layer("causal_self", window=2, chunk_size=5), 23)
    assert torch.equal(seen, (j // 5 < i // 5) | ((j <= i) & (j > i - 2)))


def test_a_noncausal_window_is_the_segment_and_half_of_one_on_both_sides() -> None:
    i, j = torch.arange(23)[:, None], torch.arange(23)
    seen = _seen(_layer("noncausal_self", num_landmarks=0, window=4), 23)
    assert torch.equal(seen, (j >= i // 4 * 4 - 2) & (j < i // 4 * 4 + 4 + 2))
    assert bool((seen.sum(1)[4:20] == 2 * 4).all())


def test_summaries_and_tokens_share_one_softmax() -> None:
    """Equal keys everywhere: each of the r summaries and each token of the window weighs the same."""
    layer = build("longshort", 6, 1, "noncausal_self", max_length=64, window=64, num_landmarks=5, dual_norm=False)
    layer = layer.double()
    with torch.no_grad():
        layer.get_parameter("key_projection.weight").zero_()
        layer.get_parameter("dynamic_projection.weight").zero_()
        layer.get_parameter("output_projection.weight").copy_(torch.eye(6))
    x = torch.randn(1, 20, 6, dtype=torch.float64)
    v = torch.nn.functional.linear(x, layer.get_parameter("value_projection.weight"))
    # With equal logits of P too, a summary is the mean, and so is the mean over summaries and tokens.
    torch.testing.assert_close(layer(x), v.mean(1, keepdim=True).expand_as(v), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("pattern", SELF)
def test_dual_norm_takes_the_scale_from_tokens_and_summaries(pattern: str) -> None:
    """LN(c K) = LN(K) up to its epsilon, so the scale of W_K and W_V does not matter."""
    layer = _layer(pattern)
    x = torch.randn(2, 40, 12, dtype=torch.float64)
    with torch.no_grad():
        before = layer(x)
        layer.key_projection.weight.mul_(8.0)
        layer.value_projection.weight.mul_(8.0)
        # Variances are some 0.1 (of summaries, less) against an epsilon of 1e-5.
        torch.testing.assert_close(layer(x), before, rtol=0, atol=2e-2)


def test_the_state_grows_by_summaries_alone() -> None:
    layer = _layer("causal_self")
    sizes = [layer.prefill(torch.randn(2, n, 12, dtype=torch.float64))[1].nbytes for n in (10, 15, 20, 100)]
    assert sizes == [layer.state_bytes(2, n, 8) for n in (10, 15, 20, 100)]
    per_chunk = 2 * 3 * 12 * 2 * 8  # k and v, r, E, batch, bytes
    assert [b - a for a, b in itertools.pairwise(sizes)] == [per_chunk, per_chunk, 16 * per_chunk]


@pytest.mark.parametrize("options", [{}, {"num_landmarks": 0}, {"window": 1, "chunk_size": 1}])
def test_steps_from_a_padded_prefix_equal_the_whole(options: dict[str, int]) -> None:
    layer = _layer("causal_self", **options)
    x = torch.randn(3, 30, 12, dtype=torch.float64)
    mask = torch.zeros(3, 30, dtype=torch.bool)
    mask[0, :7], mask[1, 3:6], mask[2, :12] = True, True, True
    expected = layer(x, key_padding_mask=mask)
    _, state = layer.prefill(x[:, :12], key_padding_mask=mask[:, :12])
    for t in range(12, 30):
        out, state = layer.step(x[:, t], state)
        torch.testing.assert_close(out, expected[:, t], rtol=ROUNDING, atol=ROUNDING)


def test_parameters_are_those_of_cab() -> None:
    """Facts, 0.5: 1,118,336 with a bias of 8 x 16 in the dynamic projection, which cancels and is left out."""
    layer = build("longshort", 512, 8, "noncausal_self", max_length=16, window=15, num_landmarks=16)
    assert sum(p.numel() for p in layer.parameters()) == 1_118_336 - 8 * 16


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("length", [50, 200])
def test_flops_are_those_that_are_counted(pattern: str, length: int) -> None:
    layer = build("longshort", 12, 3, pattern, max_length=300, **SMALL).to("meta")
    inputs = [x.to("meta", torch.float32) for x in _inputs(pattern, length, 40)]
    with FlopCounterMode(display=False) as counter:
        layer(*inputs)
    assert counter.get_total_flops() == layer.flops(2, length, inputs[-1].shape[1])


@pytest.mark.parametrize(("option", "value"), [("window", 0), ("num_landmarks", -1), ("chunk_size", 0)])
def test_wrong_options_are_refused(option: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{option}={value} is too small"):
        _layer("causal_self", **{option: value})


@pytest.mark.parametrize("pattern", ["noncausal_cross", "causal_cross"])
def test_without_landmarks_there_is_no_cross_form(pattern: str) -> None:
    with pytest.raises(Unsupported, match="sees nothing of the source"):
        _layer(pattern, num_landmarks=0)
