"""Nystromformer against its dense oracle, and what the paper and our extensions promise."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.contract import AttentionCore, Pattern, Unsupported
from attention_zoo.nystromformer import convolve, newton_schulz_pinv
from attention_zoo.reference import nystromformer as oracle

PATTERNS = [Pattern.NONCAUSAL_SELF, Pattern.NONCAUSAL_CROSS]
ROUNDING = 1e-12  # float64 sums of at most a few hundred terms of unit scale, in another order


def _core(pattern: Pattern, **options: Any) -> AttentionCore:
    return build_core("nystromformer", 2, 4, pattern, max_length=256, **options).double().eval()


def _qkv(length_q: int, length_k: int, head_dim: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = (torch.randn(3, 2, length, head_dim, dtype=torch.float64) for length in (length_q, length_k, length_k))
    return q, k, v


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("options", [{}, {"num_landmarks": 5}, {"num_landmarks": 1, "pinv_iterations": 2}])
@pytest.mark.parametrize(("length_q", "length_k"), [(1, 3), (37, 29), (4, 70), (70, 4)])
@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients_are_those_of_the_oracle(
    assert_agreement: Any, pattern: Pattern, options: dict[str, int], length_q: int, length_k: int, padded: bool
) -> None:
    assert_agreement(_core(pattern, **options), oracle, length_q, length_k, padded=padded)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("landmarks", [40, 100])
def test_as_many_landmarks_as_tokens_are_softmax_with_the_exact_inverse_alone(pattern: Pattern, landmarks: int) -> None:
    """Ragged samples too: each has one landmark per token of its own."""
    q, k, v = _qkv(40, 40)
    mask = torch.arange(40) >= torch.tensor([40, 13, 0])[:, None]
    exact = build_core("softmax", 2, 4, pattern, max_length=64)(q, k, v, key_padding_mask=mask)
    rows = ~mask if not pattern.is_cross else torch.ones_like(mask)
    rows[2] = True  # the empty sample is zero in every row

    def error(iterations: int) -> float:
        core = _core(pattern, num_landmarks=landmarks, pinv_iterations=iterations, conv_kernel=0)
        out = core(q, k, v, key_padding_mask=mask)
        return float((out - exact).abs().amax(-1).masked_fill(~rows[:, None], 0.0).amax())

    # Roundings of 1e-16 times the condition number of softmax(s Q K^T), some 1e4 to 1e6.
    assert error(0) < 1e-9
    # Facts, section 0.3b: six iterations leave percents; many more converge.
    assert error(6) > 1e-3
    assert error(40) < 1e-6


def test_iterations_converge_to_the_pseudo_inverse_also_of_rectangular_and_padded_matrices() -> None:
    a = torch.softmax(2 * torch.randn(4, 7, 5, dtype=torch.float64), -1)
    a[1, 3:] = 0
    a[1, :, 2:] = 0
    errors = [
        float((newton_schulz_pinv(a, steps) - torch.linalg.pinv(a)).norm() / torch.linalg.pinv(a).norm())
        for steps in (2, 6, 30)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-9  # condition numbers below 1e3, squared by the products, times 1e-16
    assert not newton_schulz_pinv(a, 30)[1, 2:].any()
    assert not newton_schulz_pinv(torch.zeros(1, 3, 3), 6).any()


@pytest.mark.parametrize("length", [1, 5, 64, 65, 200])
@pytest.mark.parametrize("width", [1, 3, 33])
def test_the_residual_is_a_grouped_convolution_over_positions(length: int, width: int) -> None:
    v, kernel = torch.randn(2, 3, length, 4, dtype=torch.float64), torch.randn(3, width, dtype=torch.float64)
    expected = F.conv2d(v, kernel[:, None, :, None], padding=(width // 2, 0), groups=3)
    torch.testing.assert_close(convolve(v, kernel), expected, rtol=ROUNDING, atol=ROUNDING)


def test_the_residual_is_published_in_self_attention_and_refused_in_cross_attention() -> None:
    published = build("nystromformer", 16, 2, "noncausal_self", max_length=8)
    without = build("nystromformer", 16, 2, "noncausal_self", max_length=8, conv_kernel=0)

    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(published) - count(without) == 2 * 33
    assert count(build("nystromformer", 16, 2, "noncausal_cross", max_length=8)) == count(without)
    build("nystromformer", 16, 2, "noncausal_cross", max_length=8, conv_kernel=0)
    with pytest.raises(Unsupported, match="conv_kernel=33"):
        build("nystromformer", 16, 2, "noncausal_cross", max_length=8, conv_kernel=33)


def test_the_exact_inverse_has_finite_gradients_where_landmarks_are_missing() -> None:
    x = [y.requires_grad_() for y in _qkv(17, 17)]
    mask = torch.arange(17) >= torch.tensor([17, 3, 0])[:, None]
    out = _core(Pattern.NONCAUSAL_SELF, num_landmarks=8, pinv_iterations=0)(*x, key_padding_mask=mask)
    assert not out[2].any()
    for gradient in torch.autograd.grad(out.sum(), x):
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("length_q", "length_k"), [(128, 128), (37, 29), (3, 41), (41, 3)])
def test_flops_are_those_of_the_matrix_products(pattern: Pattern, length_q: int, length_k: int) -> None:
    length_k = length_k if pattern.is_cross else length_q
    core = build_core("nystromformer", 2, 4, pattern, max_length=128, num_landmarks=16).to("meta")
    x = [torch.empty(3, 2, length, 4, device="meta") for length in (length_q, length_k, length_k)]
    with FlopCounterMode(display=False) as counter:
        core(*x)
    assert counter.get_total_flops() == core.flops(3, length_q, length_k)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_landmarks": 0}, "num_landmarks=0"),
        ({"pinv_iterations": -1}, "pinv_iterations=-1"),
        ({"conv_kernel": 4}, "conv_kernel=4"),
        ({"conv_kernel": -1}, "conv_kernel=-1"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_core("nystromformer", 2, 4, "noncausal_self", max_length=8, **options)
