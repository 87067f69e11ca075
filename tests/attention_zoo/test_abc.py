"""ABC: what the paper promises, what the public causal form gets wrong, and the levels of the causal form."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build
from attention_zoo.contract import Pattern
from attention_zoo.reference import abc as oracle

mechanism = importlib.import_module("attention_zoo.abc")

# float64 sums of at most a few hundred terms of unit scale in another order: rounding stays near 1e-14.
ROUNDING = 1e-11
CONTROLS = ["input", "projected"]


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mechanism, "CHUNK", 4)


def _layer(pattern: str, **options: Any) -> Any:
    options = {"num_slots": 3, **options}
    return build("abc", 12, 3, pattern, max_length=256, **options).double().eval()


def _inputs(pattern: str, length_q: int, length_k: int, width: int = 12) -> list[Tensor]:
    query = torch.randn(2, length_q, width, dtype=torch.float64)
    if not Pattern(pattern).is_cross:
        return [query]
    return [query, *torch.randn(2, 2, length_k, width, dtype=torch.float64)]


@pytest.mark.parametrize("control", CONTROLS)
def test_an_output_mixes_the_past_and_is_not_its_own_value(control: str) -> None:
    """The public causal form never accumulates the numerator: out_t is v_t times a number there, and forgets."""
    layer = build("abc", 16, 1, "causal_self", max_length=64, num_slots=16, control=control).double()
    with torch.no_grad():
        layer.output_projection.weight.copy_(torch.eye(16))
        x = torch.randn(1, 64, 16, dtype=torch.float64)
        out, v = layer(x), layer.value_projection(x)
        aligned = torch.cosine_similarity(out, v, dim=-1).abs()[:, 1:]
        torch.testing.assert_close(out[:, 0], v[:, 0])
        assert aligned.median() < 0.7  # random directions in 16 dimensions: 1 / 4
        other = torch.cat([torch.randn_like(x[:, :63]), x[:, 63:]], dim=1)
        moved = (layer(other)[:, 63] - out[:, 63]).norm() / out[:, 63].norm()
    assert moved > 0.5


@pytest.mark.parametrize("pattern", ["noncausal_self", "noncausal_cross", "causal_cross"])
def test_with_a_slot_for_each_token_it_is_softmax_attention(pattern: str) -> None:
    length = 8
    layer = build("abc", 12, 1, pattern, max_length=16, num_slots=length).double()
    exact = build("softmax", 12, 1, pattern, max_length=16).double()
    exact.load_state_dict({name: p for name, p in layer.state_dict().items() if "slot" not in name})
    query, *sources = _inputs(pattern, 5 if Pattern(pattern).is_cross else length, length)
    query, sources = query[:1], [source[:1] for source in sources]
    written = (sources or [query])[0][0]
    with torch.no_grad():
        # W_phi x_i = 1000 e_i: token i alone is in slot i, as e^-1000 is 0.
        layer.slot_projections[0].weight.copy_(1000 * torch.linalg.pinv(written).T)
    torch.testing.assert_close(layer(query, *sources), exact(query, *sources), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("control", CONTROLS)
def test_without_preference_the_memory_is_the_mean_of_the_prefix(control: str) -> None:
    layer = build("abc", 8, 1, "causal_self", max_length=200, num_slots=2, control=control).double()
    with torch.no_grad():
        for projection in layer.slot_projections:
            projection.weight.zero_()
        layer.output_projection.weight.copy_(torch.eye(8))
        x = torch.randn(1, 150, 8, dtype=torch.float64)
        mean = layer.value_projection(x).cumsum(1) / torch.arange(1, 151)[:, None]
        torch.testing.assert_close(layer(x), mean, rtol=ROUNDING, atol=ROUNDING)


@settings(deadline=None, max_examples=40)
@given(data=st.data())
def test_any_length_mask_and_chunk_agree_with_the_oracle(data: st.DataObject) -> None:
    pattern = data.draw(st.sampled_from(list(Pattern)))
    layer = _layer(pattern, control=data.draw(st.sampled_from(CONTROLS)))
    inputs = _inputs(pattern, data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20)))
    mask = torch.tensor([[data.draw(st.booleans()) for _ in range(inputs[-1].shape[1])] for _ in range(2)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mechanism, "CHUNK", data.draw(st.integers(1, 9)))
        out = layer(*inputs, key_padding_mask=mask)
    expected = oracle.dense_layer(layer, *inputs, key_padding_mask=mask)
    torch.testing.assert_close(out, expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("scale", [10.0, 100.0, 10000.0])
@pytest.mark.parametrize("padded", [False, True])
def test_steep_logits_agree_with_the_oracle(control: str, scale: float, padded: bool) -> None:
    """Logits that rise by many levels inside a chunk, and between chunks; outputs and gradients."""
    layer = _layer("causal_self", control=control)
    with torch.no_grad():
        for projection in layer.slot_projections:
            projection.weight.mul_(scale)
    (x,) = _inputs("causal_self", 150, 150)
    x.requires_grad_()
    mask = None
    if padded:
        mask = torch.rand(2, 150) < 0.3
        mask[0, :70] = True
    out = layer(x, key_padding_mask=mask)
    expected = oracle.dense_layer(layer, x, key_padding_mask=mask)
    # Exponents of logits of this scale carry this many times the rounding.
    bound = ROUNDING * scale
    torch.testing.assert_close(out, expected, rtol=bound, atol=bound)
    weight = torch.randn_like(out)
    parameters = [x, *layer.parameters()]
    ours = torch.autograd.grad((out * weight).sum(), parameters)
    theirs = torch.autograd.grad((expected * weight).sum(), parameters)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=bound, atol=bound * scale)


@pytest.mark.parametrize("control", CONTROLS)
def test_a_spike_in_the_future_does_not_change_one_bit_of_the_past(control: str) -> None:
    """It brings further levels into its own chunk, whose earlier rows are still computed as before."""
    layer = _layer("causal_self", control=control)
    (x,) = _inputs("causal_self", 150, 150)
    before = layer(x)
    for t in (0, 30, 62, 63, 64, 100):
        changed = torch.cat([x[:, : t + 1], 1e3 * torch.randn_like(x[:, t + 1 :])], dim=1)
        after = layer(changed)
        assert torch.equal(before[:, : t + 1], after[:, : t + 1])
        assert not torch.equal(before, after)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("control", CONTROLS)
def test_single_precision_stays_exact_on_steep_logits(control: str) -> None:
    layer = _layer("causal_self", control=control)
    with torch.no_grad():
        for projection in layer.slot_projections:
            projection.weight.mul_(1e4)
    (x,) = _inputs("causal_self", 90, 90)
    x = x.float()
    out = layer.float()(x).double()
    # A logit of 1e4 is off by 1e4 2^-24 = 6e-4 in float32, and so, relatively, is its exponential.
    expected = oracle.dense_layer(layer.double(), x.double())
    assert (out - expected).abs().median() < 1e-4


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("pattern", ["causal_self", "causal_cross"])
def test_the_state_is_of_constant_size(pattern: str, control: str) -> None:
    layer = _layer(pattern, control=control)
    sizes = set()
    for length in (1, 9, 100):
        query, *sources = _inputs(pattern, 5 if Pattern(pattern).is_cross else length, length)
        _, state = layer.prefill(query, source=sources[0] if sources else None)
        sizes.add(state.nbytes)
    assert sizes == {layer.state_bytes(2, 1, 8)} == {layer.state_bytes(2, 100, 8)}


def test_steps_leave_a_padded_prefix_without_a_trace() -> None:
    """A prefix of padding alone, then tokens: as if they were the whole sequence."""
    layer = _layer("causal_self")
    (x,) = _inputs("causal_self", 6, 6)
    _, state = layer.prefill(torch.randn(2, 5, 12, dtype=torch.float64), key_padding_mask=torch.ones(2, 5).bool())
    expected = layer(x)
    for t in range(6):
        out, state = layer.step(x[:, t], state)
        torch.testing.assert_close(out, expected[:, t], rtol=ROUNDING, atol=ROUNDING)


def test_parameters_are_those_of_cab() -> None:
    """Facts, 0.5: two (64 x 16) matrices beside the projections."""
    layer = build("abc", 512, 8, "noncausal_self", max_length=16, num_slots=16, control="projected")
    assert sum(p.numel() for p in layer.parameters()) == 1_052_672


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("length", [50, 200])
def test_flops_are_those_that_are_counted(pattern: str, control: str, length: int) -> None:
    layer = build("abc", 12, 3, pattern, max_length=300, num_slots=5, control=control).to("meta")
    inputs = [x.to("meta", torch.float32) for x in _inputs(pattern, length, 40)]
    with FlopCounterMode(display=False) as counter:
        layer(*inputs)
    assert counter.get_total_flops() == layer.flops(2, length, inputs[-1].shape[1])


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown control 'inputs': did you mean 'input'"):
        _layer("causal_self", control="inputs")
    with pytest.raises(ValueError, match="num_slots=0 is not positive"):
        _layer("causal_self", num_slots=0)
