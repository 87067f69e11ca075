"""Linformer against its dense oracle, and what the paper promises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from attention_zoo import build, build_core
from attention_zoo.contract import LengthExceeded, Pattern
from attention_zoo.errors import UnknownName
from attention_zoo.reference import linformer as oracle

PATTERNS = [Pattern.NONCAUSAL_SELF, Pattern.NONCAUSAL_CROSS, Pattern.CAUSAL_CROSS]
ROUNDING = 1e-12  # float64 sums of at most a few dozen terms of unit scale, in another order


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("share", ["none", "headwise", "kv"])
@pytest.mark.parametrize(("length_q", "length_k"), [(1, 3), (29, 37), (37, 5)])
@pytest.mark.parametrize("padded", [False, True])
def test_outputs_and_gradients_are_those_of_the_oracle(
    assert_agreement: Any, pattern: Pattern, share: str, length_q: int, length_k: int, padded: bool
) -> None:
    core = build_core("linformer", 2, 4, pattern, max_length=40, max_length_key=41, rank=7, share=share)
    assert_agreement(core, oracle, length_q, length_k, padded=padded)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("share", ["none", "headwise", "kv"])
def test_full_rank_with_identities_is_softmax_attention(pattern: Pattern, share: str) -> None:
    core = build_core("linformer", 2, 4, pattern, max_length=23, rank=23, share=share).double()
    with torch.no_grad():
        for matrix in core.parameters():
            matrix.copy_(torch.eye(23).expand_as(matrix))
    q, k, v = (torch.randn(3, 2, 23, 4, dtype=torch.float64) for _ in range(3))
    exact = build_core("softmax", 2, 4, pattern, max_length=23)(q, k, v)
    torch.testing.assert_close(core(q, k, v), exact, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize(("share", "matrices"), [("none", 2 * 4), ("headwise", 2), ("kv", 1)])
def test_sharing_decides_how_many_matrices_there_are(share: str, matrices: int) -> None:
    """Section 4 of the paper counts 2 h, 2 and 1 per layer; those of the source where there is one."""
    layer = build("linformer", 16, 4, "noncausal_cross", max_length=9, max_length_key=30, rank=5, share=share)
    count = sum(parameter.numel() for name, parameter in layer.named_parameters() if name.startswith("core."))
    assert count == matrices * 5 * 30


def test_two_layers_have_matrices_of_their_own() -> None:
    """A public implementation keeps E on the class: one tensor for every model of the process (facts, 7.10)."""
    first, second = (build("linformer", 16, 2, "noncausal_self", max_length=9, rank=5) for _ in range(2))
    theirs = {parameter.data_ptr() for parameter in second.parameters()}
    assert not theirs & {parameter.data_ptr() for parameter in first.parameters()}
    assert not torch.equal(first.core.key_matrix, second.core.key_matrix)


def test_rows_begin_at_the_scale_of_keys_at_full_length() -> None:
    """Var (E K) = n Var E = n / (r + n), whatever r and n: 1 for n far above r."""
    core = build_core("linformer", 2, 64, "noncausal_self", max_length=2048, rank=128)
    k = torch.randn(4, 2, 2048, 64)
    # 128 x 512 numbers, each sum of 2048 terms: their variance is known to a percent or so.
    assert float(core.compressed(k, k, None).k.detach().var()) == pytest.approx(2048 / (2048 + 128), rel=0.05)


def test_decoding_reads_a_state_of_constant_size(assert_steps_match: Any) -> None:
    core = build_core("linformer", 2, 4, "causal_cross", max_length=16, rank=3)
    assert_steps_match(core)
    assert core.state_bytes(2, 10) == core.state_bytes(2, 10_000) == 2 * 2 * 2 * 3 * 4 * 4


@pytest.mark.parametrize("share", ["none", "kv"])
def test_flops_are_those_of_the_matrix_products(share: str) -> None:
    core = build_core("linformer", 2, 4, "noncausal_cross", max_length=64, rank=6, share=share).to("meta")
    x = [torch.empty(3, 2, length, 4, device="meta") for length in (37, 29, 29)]
    with FlopCounterMode(display=False) as counter:
        core(*x)
    assert counter.get_total_flops() == core.flops(3, 37, 29)


def test_what_the_matrices_do_not_cover_is_refused() -> None:
    core = build_core("linformer", 2, 4, "noncausal_self", max_length=8, rank=3)
    x = torch.randn(1, 2, 9, 4)
    with pytest.raises(LengthExceeded, match="9 is over the 8"):
        core(x, x, x)
    with pytest.raises(UnknownName, match="layerwise"):
        build_core("linformer", 2, 4, "noncausal_self", max_length=8, share="layerwise")
    with pytest.raises(ValueError, match="rank=0"):
        build_core("linformer", 2, 4, "noncausal_self", max_length=8, rank=0)
