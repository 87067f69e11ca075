import math
from importlib import import_module

import pytest
import torch
from torch import nn

from attention_zoo import build, build_core
from attention_zoo.contract import AttentionCore, Pattern
from attention_zoo.convert import convert
from attention_zoo.fidelity import Fidelity, dense_weights, fidelity, implied_weights, of_layers, record, singular_decay
from attention_zoo.reference import smyrf, softmax

LENGTH = 24


def heads(length: int = LENGTH) -> torch.Tensor:
    return torch.randn(2, 3, length, 8, dtype=torch.float64)


def core_of(name: str, pattern: str = "noncausal_self", **options) -> AttentionCore:
    return build_core(name, 3, 8, pattern, max_length=LENGTH, **options).double().eval()


def padding() -> torch.Tensor:
    return torch.arange(LENGTH) >= torch.tensor([[LENGTH], [10]])


@pytest.mark.parametrize("pattern", Pattern)
@pytest.mark.parametrize(("name", "options"), [("softmax", {}), ("sdpa", {}), ("smyrf", {"cluster_size": LENGTH})])
def test_dense_attention_has_no_error_and_captures_all(name, options, pattern):
    found = fidelity(core_of(name, pattern, **options), heads(), heads(), heads(), key_padding_mask=padding())
    # Float64 sums of some dozens of terms; the weights under which sdpa hides a key are 1e-100 and less.
    assert found.relative_error < 1e-12
    assert found.captured_mass == pytest.approx(1, abs=1e-12)
    assert found.divergence == pytest.approx(0, abs=1e-12)
    assert found.reverse_divergence == pytest.approx(0, abs=1e-12)


def test_the_divergence_from_uniform_weights_is_what_entropy_lacks():
    q, k, v = heads(), heads(), heads()
    found = fidelity(core_of("uniform"), q, k, v, key_padding_mask=padding())
    lacks = []
    for sample, length in enumerate((LENGTH, 10)):
        p = torch.softmax(q[sample, :, :length] @ k[sample, :, :length].mT / 8**0.5, -1)
        lacks.append(math.log(length) + torch.xlogy(p, p).sum(-1).flatten())
    assert found.divergence == pytest.approx(float(torch.cat(lacks).mean()), rel=1e-10)
    assert found.captured_mass == pytest.approx(1)


def test_one_round_of_smyrf_is_dense_attention_cut_to_its_clusters():
    q, k, v = heads(), heads(), heads()
    core = core_of("smyrf", rounds=1, cluster_size=6)
    met = smyrf.weights(core, q, k) > 0
    dense = softmax.weights(core, q, k)
    mass = (dense * met).sum(-1)
    found = fidelity(core, q, k, v)
    assert 0.25 < mass.mean() < 0.9
    assert found.captured_mass == pytest.approx(float(mass.mean()), rel=1e-10)
    assert found.reverse_divergence == pytest.approx(float(-mass.log().mean()), rel=1e-10)
    assert found.divergence == math.inf
    expected = (core(q, k, v) - dense @ v).norm() / (dense @ v).norm()
    assert found.relative_error == pytest.approx(float(expected), rel=1e-10)


def test_identity_captures_the_diagonal():
    q, k, v = heads(), heads(), heads()
    found = fidelity(core_of("identity"), q, k, v)
    diagonal = dense_weights(q, k, Pattern.NONCAUSAL_SELF).diagonal(dim1=-2, dim2=-1)
    assert found.captured_mass == pytest.approx(float(diagonal.mean()), rel=1e-10)


def test_padding_and_rows_that_see_nothing_do_not_enter():
    q, k, v = heads(), heads(), heads()
    mask = padding().flip(1)  # in front: the first rows of a causal pattern see nothing
    core = core_of("smyrf", "causal_self", cluster_size=4)
    whole = fidelity(core, q[1:], k[1:], v[1:], key_padding_mask=mask[1:])
    x, y, z = (a.clone() for a in (q, k, v))
    for each in (x, y, z):
        each[1, :, :14] = 50.0
    assert fidelity(core, x[1:], y[1:], z[1:], key_padding_mask=mask[1:]) == whole
    assert math.isfinite(whole.relative_error)


def test_weights_that_are_no_distributions_have_no_divergence_and_say_so():
    found = fidelity(core_of("nystromformer", num_landmarks=4, conv_kernel=0), heads(), heads(), heads())
    assert (found.divergence, found.reverse_divergence) == (None, None)
    assert "negative" in found.reason
    gauss = fidelity(core_of("local", "noncausal_cross"), heads(), heads(), heads())
    assert gauss.divergence is None
    assert "sum to one" in gauss.reason


class _SquaredCore(AttentionCore):
    def forward(self, q, k, v, *, key_padding_mask=None):
        return v.square()


def test_an_output_that_is_not_linear_in_the_values_implies_no_weights():
    found = fidelity(_SquaredCore(3, 8, "noncausal_self", max_length=LENGTH), heads(), heads(), heads())
    assert found.captured_mass is None
    assert "not linear" in found.reason


@pytest.mark.parametrize("name", ["softmax", "smyrf", "uniform"])
def test_implied_weights_are_those_of_the_oracle(name):
    oracle = import_module(f"attention_zoo.reference.{name}")
    core, q, k = core_of(name).train(), heads(), heads()
    expected = oracle.weights(core, q, k, key_padding_mask=padding())
    rows = ~padding()[:, None].expand(-1, 3, -1)
    found = implied_weights(core, q, k, padding())
    torch.testing.assert_close(found[rows], expected[rows], rtol=0, atol=1e-12)
    assert core.training


def test_singular_values_of_known_matrices():
    rotated = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64))[0]
    known = rotated @ torch.diag(torch.tensor([4.0, 2.0, 1.0, 0.5, 0.0], dtype=torch.float64)) @ rotated.T
    wanted = torch.tensor([1, 0.5, 0.25, 0.125, 0], dtype=torch.float64)
    torch.testing.assert_close(singular_decay(known), wanted, rtol=0, atol=1e-12)
    uniform = torch.full((2, 7, 3), 1 / 3)
    torch.testing.assert_close(singular_decay(uniform)[0], torch.tensor([1.0, 0, 0]).double(), rtol=0, atol=1e-7)
    assert not singular_decay(torch.zeros(3, 3)).any()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = build("softmax", 24, 3, "noncausal_self", max_length=LENGTH)
        self.second = nn.MultiheadAttention(24, 3, batch_first=True)
        convert(self, "sdpa")

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.first(x, key_padding_mask=mask)
        return self.second(x, x, x, key_padding_mask=mask)[0]


def test_what_comes_to_the_cores_of_a_model_is_recorded_by_layer():
    model, x = Model(), torch.randn(2, LENGTH, 24)
    with record(model) as calls:
        model(x, padding())
    model(x, padding())
    build("softmax", 24, 3, "noncausal_self", max_length=LENGTH)(x)
    assert [(call.name, call.pattern) for call in calls] == [
        ("first", Pattern.NONCAUSAL_SELF),
        ("second", Pattern.NONCAUSAL_SELF),
    ]
    torch.testing.assert_close(calls[0].q, model.first._split(model.first.query_projection(x)))
    assert torch.equal(calls[1].key_padding_mask, padding())
    exact, floor = of_layers(calls, "softmax"), of_layers(calls, "uniform")
    # In float32, whose roundings are 6e-8, on sums of two dozen.
    assert all(layer.fidelity.relative_error < 1e-5 for layer in exact)
    assert all(layer.fidelity.relative_error > 1e-2 for layer in floor)
    assert [layer.name for layer in floor] == ["first", "second"]
    assert of_layers(calls, "smyrf", cluster_size=4) == of_layers(calls, "smyrf", cluster_size=4)


def test_a_pass_that_fails_leaves_the_recorder_in_order():
    model, x = Model(), torch.randn(2, LENGTH, 24)
    with record(model) as calls:
        with pytest.raises(ValueError):
            model(x, torch.zeros(2, 3, dtype=torch.bool))
        model(x, padding())
    assert [call.name for call in calls] == ["first", "second"]
    assert isinstance(of_layers(calls, "linear")[0].fidelity, Fidelity)
