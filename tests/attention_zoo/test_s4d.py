import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core, s4d
from attention_zoo.contract import Unsupported
from attention_zoo.reference import s4d as oracle

SELF = ["noncausal_self", "causal_self"]
# Float64 sums of a few hundred terms of unit scale in another order, and phases of up to 1e4 rounded to 1e-12.
ROUNDING = 1e-10


def _layer(pattern="causal_self", *, width=6, length=400, **options):
    return build("s4d", width, 2, pattern, max_length=length, **{"state_size": 8, **options}).double().eval()


def _convolve(layer, u):
    """y for inputs [B, L, E]."""
    y, _ = layer.convolve(u.permute(2, 0, 1), want_state=False)
    return y.permute(1, 2, 0)


@pytest.mark.parametrize("pattern", SELF)
@settings(max_examples=15, deadline=None)
@given(length=st.integers(1, 300), padded=st.booleans(), init=st.sampled_from(list(s4d.INITS)), seed=st.integers(0, 99))
def test_any_length_equals_the_dense_oracle(pattern, length, padded, init, seed):
    torch.manual_seed(seed)
    layer = _layer(pattern, init=init)
    x = torch.randn(2, length, 6, dtype=torch.float64)
    mask = torch.rand(2, length) < 0.3 if padded else None
    expected = oracle.dense_layer(layer, x, key_padding_mask=mask)
    torch.testing.assert_close(layer(x, key_padding_mask=mask), expected, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("init", s4d.INITS)
def test_the_convolution_equals_the_recurrence(init):
    layer = _layer(init=init)
    u = torch.randn(2, 150, 6, dtype=torch.float64)
    a = torch.complex(-layer.log_a_real.exp(), layer.a_imag)
    z = torch.exp(layer.log_dt.exp()[:, None] * a)
    b = (z - 1) / a
    c = torch.view_as_complex(layer.c[0])
    state, steps = torch.zeros(2, 6, 4, dtype=torch.complex128), []
    for t in range(150):
        state = z * state + b * u[:, t, :, None]
        steps.append(2 * (c * state).real.sum(-1) + layer.d * u[:, t])
    torch.testing.assert_close(_convolve(layer, u), torch.stack(steps, 1), rtol=ROUNDING, atol=ROUNDING)


def test_steps_after_a_prefix_equal_the_whole():
    layer = _layer()
    x = torch.randn(2, 140, 6, dtype=torch.float64)
    whole = layer(x)
    for prefix in (1, 63, 64, 65, 130):  # the edges of a chunk
        out, state = layer.prefill(x[:, :prefix])
        torch.testing.assert_close(out, whole[:, :prefix], rtol=ROUNDING, atol=ROUNDING)
        for t in range(prefix, prefix + 4):
            out, state = layer.step(x[:, t : t + 1], state)
            torch.testing.assert_close(out, whole[:, t : t + 1], rtol=ROUNDING, atol=ROUNDING)
        assert state.nbytes == layer.state_bytes(2, prefix + 4, 8) == 2 * 6 * 8 * 8


@pytest.mark.parametrize("pattern", SELF)
@pytest.mark.parametrize("at", [0, 70, 199])
def test_the_response_to_an_impulse_is_the_kernel(pattern, at):
    layer = _layer(pattern)
    impulse = torch.zeros(1, 200, 6, dtype=torch.float64)
    impulse[:, at] = 1.0
    response = _convolve(layer, impulse)[0].T
    kernel = oracle.kernel(layer, 0, 200, torch.float64)
    expected = torch.zeros(6, 200, dtype=torch.float64)
    expected[:, at:] = kernel[:, : 200 - at]
    expected[:, at] += layer.d
    if pattern == "noncausal_self":
        expected[:, :at] = oracle.kernel(layer, 1, 200, torch.float64)[:, :at].flip(-1)
    torch.testing.assert_close(response, expected, rtol=ROUNDING, atol=ROUNDING)


def test_the_noncausal_form_sees_both_sides():
    layer = _layer("noncausal_self")
    x = torch.randn(1, 200, 6, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(layer(x)[:, 100].sum(), x)
    near = gradient[0, 80:121].abs().amax(-1)
    assert near.min() > 1e-6
    (gradient,) = torch.autograd.grad(_layer("causal_self")(x)[:, 100].sum(), x)
    assert gradient[0, 80:101].abs().amax(-1).min() > 1e-6
    assert not gradient[0, 101:].any()


@pytest.mark.parametrize("pattern", SELF)
@pytest.mark.parametrize("shift", [1, 50, 64])
def test_a_shifted_input_gives_a_shifted_output(pattern, shift):
    layer = _layer(pattern)
    u = torch.zeros(1, 300, 6, dtype=torch.float64)
    u[:, 64:200] = torch.randn(1, 136, 6, dtype=torch.float64)
    before, after = _convolve(layer, u), _convolve(layer, u.roll(shift, 1))
    torch.testing.assert_close(after[:, shift:], before[:, :-shift], rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("pattern", SELF)
def test_padding_within_a_sequence_is_a_zero_input_in_its_place(pattern):
    layer = _layer(pattern)
    x = torch.randn(2, 90, 6, dtype=torch.float64)
    mask = torch.zeros(2, 90, dtype=torch.bool)
    mask[0, 20:31] = True
    zeroed = x.masked_fill(mask[..., None], 0.0)
    assert torch.equal(layer(x, key_padding_mask=mask), layer(zeroed))
    cut = torch.cat((x[:1, :20], x[:1, 31:]), dim=1)
    assert not torch.allclose(layer(zeroed[:1])[:, 31:], layer(cut)[:, 20:])


def test_the_initial_frequencies_are_those_of_the_paper():
    torch.testing.assert_close(s4d.INITS["lin"](6), torch.tensor([0, math.pi, 2 * math.pi], dtype=torch.float64))
    inverse = [4 / math.pi * (4 / 1 - 1), 4 / math.pi * (4 / 3 - 1)]
    torch.testing.assert_close(s4d.INITS["inv"](4), torch.tensor(inverse, dtype=torch.float64))
    # HiPPO-LegS plus its rank-one correction P P^T, P_n = (n + 1/2)^(1/2), is normal; these are its eigenvalues.
    n = torch.arange(16, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    hippo = -torch.where(n[:, None] > n, root[:, None] * root, torch.where(n[:, None] == n, n + 1, 0.0))
    normal = hippo + root[:, None] * root / 2
    eigenvalues = torch.linalg.eigvals(normal)
    torch.testing.assert_close(eigenvalues.real, torch.full((16,), -0.5, dtype=torch.float64))
    torch.testing.assert_close(s4d.INITS["legs"](16), eigenvalues.imag.sort().values[8:])


@pytest.mark.parametrize("pattern", SELF)
def test_it_starts_as_the_paper_says(pattern):
    layer = build("s4d", 64, 4, pattern, max_length=8, init="inv")
    assert (layer.log_a_real.exp() - 0.5).abs().max() < 1e-6
    assert layer.log_dt.exp().min() >= 0.999e-3
    assert layer.log_dt.exp().max() <= 0.1001
    torch.testing.assert_close(layer.a_imag, s4d.INITS["inv"](64).float().expand(64, -1))
    # The mean of 4096 numbers |C|^2 of mean and deviation 1 (or twice as many): five standard errors.
    assert abs(layer.c.square().sum(-1).mean() - 1) < 5 / 64


@pytest.mark.parametrize(("pattern", "kernels"), [("causal_self", 1), ("noncausal_self", 2)])
def test_parameters_are_as_many_as_stated(pattern, kernels):
    layer = build("s4d", 512, 8, pattern, max_length=8)
    n, d = 64, 512
    state_space = (n + kernels * n) * d + 2 * d  # A and each C, real and imaginary; dt and D
    assert sum(p.numel() for p in layer.parameters()) == state_space + 2 * d * d + 2 * d
    assert sum(p.numel() for p in layer.parameters()) < 4 * d * d


def test_heads_do_not_enter():
    outputs = []
    for heads in (1, 3):
        torch.manual_seed(1)
        layer = build("s4d", 6, heads, "causal_self", max_length=9)
        outputs.append(layer(torch.linspace(-1, 1, 54).view(1, 9, 6)))
    assert torch.equal(*outputs)


@pytest.mark.parametrize("pattern", SELF)
def test_single_precision_keeps_its_digits_over_thousands_of_steps(pattern):
    layer = _layer(pattern, length=4000, init="inv", state_size=16)
    x = torch.randn(1, 4000, 6, dtype=torch.float64)
    expected = layer(x)
    error = (layer.float()(x.float()) - expected).abs().max() / expected.abs().max()
    # A phase dt Im A l of up to 0.1 * 76 * 64 is rounded to 6e-8 of itself, 3e-5, once a chunk.
    assert error < 3e-5


@pytest.mark.parametrize("pattern", SELF)
def test_nothing_kept_for_the_backward_pass_is_as_large_as_the_kernels(pattern):
    layer = build("s4d", 8, 2, pattern, max_length=8192, state_size=16)
    kept = {}
    for length in (4096, 8192):
        sizes = {}

        def note(tensor, sizes=sizes):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            layer(torch.randn(1, length, 8, requires_grad=True))
        kept[length] = sum(sizes.values())
        assert max(sizes.values()) < 4 * 8 * 16 * length  # N L d numbers would be the Vandermonde matrix
    assert kept[8192] < 2.05 * kept[4096]  # linear: no L log L from the scan


@pytest.mark.parametrize("pattern", SELF)
@pytest.mark.parametrize("length", [1, 50, 64, 65, 300])
def test_flops_are_those_that_are_counted(pattern, length):
    layer = build("s4d", 8, 2, pattern, max_length=300, state_size=16).to("meta")
    with FlopCounterMode(display=False) as counter:
        layer(torch.empty(3, length, 8, device="meta"))
    assert counter.get_total_flops() == layer.flops(3, length, length)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"state_size": 7}, "state_size=7"),
        ({"state_size": 0}, "state_size=0"),
        ({"init": "lim"}, "unknown init 'lim': did you mean 'lin'"),
    ],
)
def test_wrong_options_are_refused(option, message):
    with pytest.raises(ValueError, match=message):
        _layer(**option)


@pytest.mark.parametrize("pattern", ["noncausal_cross", "causal_cross"])
def test_there_are_no_cross_forms(pattern):
    with pytest.raises(Unsupported, match="no queries"):
        _layer(pattern)
    with pytest.raises(Unsupported, match="no core"):
        build_core("s4d", 2, 4, pattern, max_length=4)
