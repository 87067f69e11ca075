"""FLOPs: the mechanisms' formulas against torch's count on the meta device."""

from __future__ import annotations

import pytest

from attention_zoo.contract import Pattern
from cab.measure.flops import analytic_flops, counted_flops, parameter_count
from cab.settings import Setting

SOFTMAX = Setting("softmax", "attention_zoo.softmax.SoftmaxAttention")
SDPA = Setting("sdpa", "attention_zoo.sdpa.SDPAAttention")
LINEAR = Setting("linear", "attention_zoo.linear.LinearAttention")
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


@pytest.mark.parametrize("level", ["op", "layer"])
@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("setting", [SOFTMAX, SDPA], ids=lambda s: s.name)
def test_exact_attention_counts_what_it_says(setting: Setting, pattern: Pattern, level: str) -> None:
    analytic, counted = figures(setting, pattern, level)
    assert counted > 0
    if setting is SDPA and pattern is Pattern.CAUSAL_SELF:
        # The fused kernel skips the upper triangle; the count gives no credit for it: L (L + 1) / 2 pairs of L^2.
        skipped = 4 * BATCH * 4 * 16 * (LENGTH_Q**2 - LENGTH_Q * (LENGTH_Q + 1) // 2)
        assert analytic == counted - skipped
    else:
        assert analytic == counted


@pytest.mark.parametrize("level", ["op", "layer"])
def test_linear_attention_counts_what_it_says(level: str) -> None:
    analytic, counted = figures(LINEAR, Pattern.NONCAUSAL_SELF, level)
    assert analytic is not None
    # The normaliser is a product with a vector, which a mechanism may do by other means: 1/D of the work.
    assert analytic == pytest.approx(counted, rel=1 / 16)


def test_parameters_of_four_projections() -> None:
    assert parameter_count(SOFTMAX.build(64, 4, "noncausal_self", max_length=8)) == 4 * (64 * 64 + 64)
