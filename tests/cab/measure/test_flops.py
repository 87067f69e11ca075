"""FLOPs: the mechanisms' formulas against torch's count on the meta device."""

from __future__ import annotations

from typing import Any

import pytest

from attention_zoo.contract import Pattern
from cab.compose import Composer
from cab.measure.flops import analytic_flops, counted_flops, parameter_count
from cab.settings import Setting

SOFTMAX = Setting("softmax", "attention_zoo.softmax.SoftmaxAttention")
SDPA = Setting("sdpa", "attention_zoo.sdpa.SDPAAttention")
FUSED = {"sdpa", "optimised", "efficient", "super"}  # whose causal self attention is the fused kernel's
BATCH, LENGTH_Q, LENGTH_K = 2, 96, 160


def figures(setting: Setting, pattern: Pattern, level: str) -> tuple[int | None, int]:
    length_k = LENGTH_K if pattern.is_cross else LENGTH_Q
    lengths = {"max_length": LENGTH_Q, "max_length_key": length_k}

    def build():  # type: ignore[no-untyped-def]
        return (
            setting.build_core(4, 16, pattern, **lengths) if level == "op" else setting.build(64, 4, pattern, **lengths)
        )

    return (
        analytic_flops(build(), BATCH, LENGTH_Q, length_k),
        counted_flops(build(), BATCH, LENGTH_Q, length_k),
    )


def claimed() -> list[Any]:
    """Every setting that comes with the zoo, in every pattern that it supports."""
    with Composer() as composer:
        settings = composer.settings(["all"])
    # The plain kernel too; torch's count knows the flash kernel by the operator of auto alone.
    settings += [setting.implemented("math") for setting in settings if "math" in setting.kind.implementations()]
    return [
        pytest.param(setting, pattern, id=f"{setting.name}-{pattern.short}")
        for setting in settings
        for pattern in setting.card.supports
    ]


@pytest.mark.parametrize(("setting", "pattern"), claimed())
def test_the_formula_of_every_setting_is_what_torch_counts(setting: Setting, pattern: Pattern) -> None:
    analytic, counted = figures(setting, pattern, "layer")
    assert counted > 0
    skipped = 0
    if setting.card.name in FUSED and setting.impl != "math" and pattern is Pattern.CAUSAL_SELF:
        # The fused kernel skips the upper triangle; the count gives no credit for it: L (L + 1) / 2 pairs of L^2.
        skipped = 4 * BATCH * 4 * 16 * (LENGTH_Q**2 - LENGTH_Q * (LENGTH_Q + 1) // 2)
    assert analytic == counted - skipped


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("setting", [SOFTMAX, SDPA], ids=lambda s: s.name)
def test_the_core_of_exact_attention_is_two_products(setting: Setting, pattern: Pattern) -> None:
    length_k = LENGTH_K if pattern.is_cross else LENGTH_Q
    assert figures(setting, pattern, "op")[1] == 4 * BATCH * 4 * 16 * LENGTH_Q * length_k


def test_parameters_of_four_projections() -> None:
    assert parameter_count(SOFTMAX.build(64, 4, "noncausal_self", max_length=8)) == 4 * (64 * 64 + 64)
