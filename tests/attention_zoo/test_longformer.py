import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.conformance import certify
from attention_zoo.contract import HeadwiseAttention, Pattern
from attention_zoo.longformer import LongformerAttention
from attention_zoo.reference import longformer as oracle

PATTERNS = [Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF]


@pytest.mark.parametrize("pattern", PATTERNS)
@settings(max_examples=15, deadline=None)
@given(
    length=st.integers(1, 80),
    window=st.integers(1, 30),
    num_global=st.integers(0, 9),
    padded=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_dense_oracle(assert_agreement, pattern, length, window, num_global, padded, seed):
    torch.manual_seed(seed)
    core = build_core("longformer", 2, 4, pattern, max_length=80, window=window, num_global=num_global)
    assert_agreement(core, oracle, length, length, padded=padded)


def test_a_small_window_is_certified_too():
    """The paper's window is as long as most of the certificate's sequences; here there are many windows in them."""
    certificate = certify(LongformerAttention, options={"window": 3, "num_global": 2}, patterns=PATTERNS)
    assert certificate.passed, str(certificate)


def test_global_rows_have_projections_of_their_own():
    layer = build("longformer", 12, 3, "noncausal_self", max_length=40, window=4, num_global=2).double()
    x = torch.randn(2, 40, 12, dtype=torch.float64)
    # They start as copies: the layer is then the core inside one set of projections, up to rounding.
    torch.testing.assert_close(layer(x), HeadwiseAttention.forward(layer, x), rtol=1e-12, atol=1e-12)
    before = layer(x)
    with torch.no_grad():
        for name in ("query", "key", "value"):
            getattr(layer, f"global_{name}_projection").weight.add_(torch.randn(12, 12))
    after = layer(x)
    assert torch.equal(before[:, 2:], after[:, 2:])
    assert ((before - after)[:, :2].abs().amax(-1) > 1e-3).all()


def test_a_local_row_reads_global_keys_through_the_local_projections():
    layer = build("longformer", 12, 3, "noncausal_self", max_length=40, window=4, num_global=2)
    x = torch.randn(1, 40, 12)
    layer(x)[:, 30].sum().backward()
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    assert not any(
        gradients[name].any() for name in gradients if name.startswith("global_") and gradients[name] is not None
    )
    assert gradients["key_projection.weight"].any()


@pytest.mark.parametrize(("pattern", "num_global"), [("causal_self", 3), ("noncausal_self", 0)])
def test_without_global_rows_there_is_one_set_of_projections(pattern, num_global):
    layer = build("longformer", 12, 3, pattern, max_length=40, num_global=num_global)
    assert sum(p.numel() for p in layer.parameters()) == 4 * (12 * 12 + 12)


@pytest.mark.parametrize(("window", "num_global"), [(1, 0), (2, 3), (3, 6), (30, 1)])
def test_steps_equal_the_whole(assert_steps_match, window, num_global):
    core = build_core("longformer", 2, 4, "causal_self", max_length=9, window=window, num_global=num_global)
    assert_steps_match(core)


def test_the_state_holds_the_global_tokens_and_the_window():
    core = build_core("longformer", 2, 4, "causal_self", max_length=64, window=6, num_global=2)
    _, state = core.prefill(*(x := torch.randn(3, 3, 2, 64, 4)))
    assert torch.equal(state.k, torch.cat([x[1][:, :, :2], x[1][:, :, 58:]], dim=2))
    assert state.nbytes == core.state_bytes(3, 64) == core.state_bytes(3, 8)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("length", [2, 9, 300])
def test_flops_are_those_that_are_counted(pattern, length):
    layer = build("longformer", 8, 2, pattern, max_length=300, window=20, num_global=3).to("meta")
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(3, length, 8, device="meta"))
    assert counter.get_total_flops() == layer.flops(3, length, length)


def test_no_projection_of_all_tokens_is_made_for_the_global_rows():
    """The keys and values of the global rows would cost 4 L E^2; moved to the queries they cost 4 g H L E."""
    few, none = (
        build("longformer", 512, 8, "noncausal_self", max_length=4096, num_global=g).flops(1, 4096, 4096)
        for g in (1, 0)
    )
    assert few - none < 0.1 * 4 * 4096 * 512**2


@pytest.mark.parametrize("option", ["window", "num_global"])
def test_a_negative_option_is_refused(option):
    with pytest.raises(ValueError, match=f"{option}=-1 is not allowed"):
        build("longformer", 8, 2, "causal_self", max_length=4, **{option: -1})
