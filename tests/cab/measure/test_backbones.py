"""The work of a training step: counted while it runs, equal to the formula of a small decoder."""

from __future__ import annotations

from cab.measure.backbones import step


def test_a_step_counts_every_product_forward_and_backward() -> None:
    found = step("lm", "tasks.lm.task.LanguageModelling", {"size": "tiny", "pattern": "causal_self"})
    length, width, hidden, layers, tokens = 64, 64, 128, 2, 256
    weights = layers * (4 * width**2 + 2 * width * hidden) + width * tokens
    attention = layers * 4 * length**2 * width
    # Each product with weights has two in its backward, each pair of attention's products five.
    assert found["step_flops"] == 3 * 2 * length * weights + 7 * attention // 2
    biases = layers * (4 * width + hidden + width + 4 * width) + 2 * width + tokens
    assert found["parameters"] == weights + biases + (tokens + length) * width
    assert (found["length_q"], found["length_kv"]) == (length, length)
    assert found["step_peak_extra_bytes"] > 0
