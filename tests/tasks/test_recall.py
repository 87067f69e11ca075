"""Recall: an oracle that reads the pairs is right, patterns share problems, the floors are what they say."""

from __future__ import annotations

import math
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from recording_slots import slots

from attention_zoo.contract import Pattern
from tasks.recall import data
from tasks.recall.task import Recall


def oracle(problems: data.Problems, tokens: str) -> np.ndarray:
    """Answers by looking each key up among the pairs, in plain Python."""
    answers = np.full(problems.answers.shape, data.IGNORE)
    shift = data.TOKENS[tokens] - 1
    for row, (keys, values, asked) in enumerate(
        zip(problems.source_keys, problems.source_values, problems.target_keys, strict=True)
    ):
        table = {int(key): int(values[i + shift]) for i, key in enumerate(keys) if key != data.BLANK}
        for i, key in enumerate(asked):
            if key != data.BLANK:
                answers[row, i] = table[int(key)] - 1
    return answers


@given(
    pairs=st.integers(1, 12),
    more_keys=st.integers(0, 9),
    more_length=st.integers(0, 9),
    tokens=st.sampled_from(list(data.TOKENS)),
    index=st.integers(0, 2**20),
)
def test_the_pairs_hold_the_answers(pairs: int, more_keys: int, more_length: int, tokens: str, index: int) -> None:
    half = data.TOKENS[tokens] * pairs + more_length
    vocabulary = max(2, pairs + more_keys)
    problems = data.problems(
        "train", pairs=pairs, vocabulary=vocabulary, half=half, tokens=tokens, count=3, seed=1, index=index
    )
    assert np.array_equal(oracle(problems, tokens), problems.answers)
    for keys, values, asked in zip(problems.source_keys, problems.source_values, problems.target_keys, strict=True):
        held = keys[keys != data.BLANK]
        assert len(held) == len(set(held)) == pairs
        assert sorted(held) == sorted(asked[asked != data.BLANK])
        assert (values != data.BLANK).sum() == pairs
    used = np.concatenate([problems.source_keys.ravel(), problems.source_values.ravel()])
    assert used.min() >= 0
    assert used.max() <= vocabulary


def test_all_patterns_get_the_same_problems() -> None:
    batches = [next(Recall(pattern=pattern).batches("train", 3)) for pattern in Pattern]
    for batch in batches[1:]:
        assert all(torch.equal(batch[name], batches[0][name]) for name in batches[0])


def test_batches_start_anywhere_and_differ_by_seed_and_split() -> None:
    task = Recall(pattern="causal_self")
    skipped = list(islice(task.batches("train", 5), 4))[3]
    started = next(task.batches("train", 5, start=3))
    assert all(torch.equal(skipped[name], started[name]) for name in skipped)
    others = [next(task.batches("train", 6)), next(task.batches("test", 5)), next(task.batches("validation", 5))]
    first = next(task.batches("train", 5))
    assert not any(torch.equal(first["answers"], other["answers"]) for other in others)
    held_out = [list(task.batches("test", seed)) for seed in (1, 2)]
    assert sum(len(batch["answers"]) for batch in held_out[0]) == task.setting.scored
    assert all(torch.equal(a["answers"], b["answers"]) for a, b in zip(*held_out, strict=True))
    assert torch.equal(next(task.batches("test", 0, start=2))["answers"], held_out[0][2]["answers"])


def test_floors_match_a_direct_computation() -> None:
    task = Recall(pattern="noncausal_cross", pairs=5, vocabulary=7, length=20)
    floors = task.floors("validation")
    accuracy, nll = [], []
    for batch in task.batches("validation", 0):
        for values, answers in zip(batch["source_values"].tolist(), batch["answers"].tolist(), strict=True):
            held = [value - 1 for value in values if value != data.BLANK]
            counts = {value: held.count(value) for value in held}
            modes = [value for value, count in counts.items() if count == max(counts.values())]
            asked = [answer for answer in answers if answer != data.IGNORE]
            accuracy.append(sum((answer in modes) / len(modes) for answer in asked) / 5)
            nll.append(-sum(math.log(counts[answer] / 5) for answer in asked) / 5)
    np.testing.assert_allclose(floors["context"].values["accuracy"], accuracy, atol=1e-12)  # float64 rounding
    np.testing.assert_allclose(floors["context"].values["nll"], nll, atol=1e-12)
    np.testing.assert_allclose(floors["uniform"].values["accuracy"], 1 / 7, atol=1e-12)
    np.testing.assert_allclose(floors["uniform"].values["nll"], math.log(7), atol=1e-12)


class Looker(torch.nn.Module):
    """Answers like the oracle, as logits."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.unused = torch.nn.Parameter(torch.zeros(()))

    def forward(self, keys: torch.Tensor, values: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        match = (asked[:, :, None] == keys[:, None, :]) & (asked != data.BLANK)[:, :, None]
        value = (match * values[:, None, :]).sum(-1) - 1
        return 50.0 * torch.nn.functional.one_hot(value.clamp(min=0), self.vocabulary)


def test_evaluation_gives_the_oracle_full_marks() -> None:
    task = Recall(pattern="causal_cross")
    scores = task.evaluate(Looker(task.vocabulary), "test")
    assert task.card.primary_metric.value(scores) == 1.0
    assert len(scores.units) == task.setting.scored
    assert scores.values["nll"].max() < 1e-6  # log(1 + 31 e^-50)


@pytest.mark.parametrize("pattern", list(Pattern))
@pytest.mark.parametrize("tokens", list(data.TOKENS))
def test_one_step_is_finite_in_every_pattern(pattern: Pattern, tokens: str) -> None:
    task = Recall(pattern=pattern, tokens=tokens)
    model = task.build_model(slots("softmax"))
    batch = next(task.batches("train", 1))
    loss = task.loss(model, batch)
    loss.backward()
    assert torch.isfinite(loss)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and torch.isfinite(gradient).all() for gradient in gradients)
    lengths = (32, 32) if pattern.is_cross else (64, None)
    assert task.lengths == lengths
    assert task.tokens(batch) == len(batch["answers"]) * lengths[0]


@pytest.mark.parametrize("pattern", [Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS])
def test_no_output_depends_on_later_queries(pattern: Pattern) -> None:
    task = Recall(pattern=pattern)
    model = task.build_model(slots("softmax")).eval()
    batch = next(task.batches("train", 1))
    changed = batch["target_keys"].clone()
    changed[:, 20:] = 1
    before = model(batch["source_keys"], batch["source_values"], batch["target_keys"])
    after = model(batch["source_keys"], batch["source_values"], changed)
    assert torch.equal(before[:, :20], after[:, :20])


@pytest.mark.parametrize("pattern", list(Pattern))
def test_softmax_learns_small_problems(pattern: Pattern) -> None:
    task = Recall(pattern=pattern, pairs=4, vocabulary=8, length=16)
    torch.manual_seed(1)
    model = task.build_model(slots("softmax"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-3)
    for batch in islice(task.batches("train", 1), 60):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    accuracy = task.card.primary_metric.value(task.evaluate(model.eval(), "test"))
    context = task.card.primary_metric.value(task.floors("test")["context"])
    assert accuracy > 2 * context  # the floor is near 0.4; a model that looks keys up comes near 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "causal"}, "did you mean 'causal_self'"),
        ({"tokens": "three"}, "allowed: one, two"),
        ({"pairs": 33}, "from 1 to 32"),
        ({"pairs": 0}, "from 1 to 32"),
        ({"vocabulary": 1}, "at least 2"),
        ({"length": 30}, "at least 32"),
        ({"length": 62, "tokens": "two"}, "at least 64"),
        ({"length": 65}, "try 66"),
        ({"length": 64.0}, "whole number"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Recall(**{"pattern": "causal_self", **options})
    assert "\n" not in str(caught.value)
