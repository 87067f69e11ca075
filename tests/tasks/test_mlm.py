"""Masked language modelling: the corruption has its published shares, and the floors are what they say."""

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

from tasks import bible
from tasks.mlm import data
from tasks.mlm.task import MaskedLanguageModelling
from tasks.text import Text


@given(length=st.integers(1, 40), padded=st.integers(0, 39), seed=st.integers(0, 2**32 - 1))
def test_the_selected_share_is_exact_and_spares_the_padding(length: int, padded: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    text = generator.integers(97, 123, size=(3, length))
    padding = np.arange(length)[None].repeat(3, 0) >= max(1, length - padded)
    masked = data.corrupt(text, padding, np.full(256, 1 / 256), generator)
    real = int((~padding[0]).sum())
    assert (masked.selected.sum(1) == max(1, round(0.15 * real))).all()
    assert not (masked.selected & padding).any()
    assert (masked.inputs == text)[~masked.selected].all()
    assert (masked.targets == text).all()


def test_the_corruption_has_its_published_shares() -> None:
    frequencies = np.zeros(256)
    frequencies[ord("x")] = 1.0
    text = np.full((2000, 100), ord("a"))
    masked = data.corrupt(text, np.zeros(text.shape, dtype=bool), frequencies, np.random.default_rng(0))
    chosen = masked.inputs[masked.selected]
    assert len(chosen) == 30_000
    # 0.01: over 4 standard deviations of a share among 30,000 draws
    assert (chosen == 256).mean() == pytest.approx(0.8, abs=0.01)
    assert (chosen == ord("x")).mean() == pytest.approx(0.1, abs=0.01)
    assert (chosen == ord("a")).mean() == pytest.approx(0.1, abs=0.01)


def test_batches_start_anywhere_on_both_sides_of_the_short_steps() -> None:
    task = MaskedLanguageModelling()
    short = task.setting.short_steps
    for index in (0, 3, short - 1, short, short + 4):
        if index < 5:
            skipped = list(islice(task.batches("train", 5), index + 1))[index]
        else:
            skipped = list(islice(task.batches("train", 5, start=short - 2), index - short + 3))[-1]
        started = next(task.batches("train", 5, start=index))
        assert all(torch.equal(skipped[name], started[name]) for name in skipped)
        assert started["inputs"].shape[1] == task.training_length(index)
        assert task.tokens(started) == 1024
    assert task.training_length(short) == task.length
    other = next(task.batches("train", 6))
    assert not torch.equal(other["targets"], next(task.batches("train", 5))["targets"])


def test_the_held_out_masking_is_fixed_and_of_held_out_text() -> None:
    task = MaskedLanguageModelling()
    one, two = (list(task.batches("test", seed)) for seed in (1, 2))
    assert all(torch.equal(a["inputs"], b["inputs"]) for a, b in zip(one, two, strict=True))
    text = b"\n\n".join(chapter.text for chapter in bible.chapters("world_english", "test"))
    stream = task.text.tokens("train").stream.tobytes()
    rows = [bytes(row.tolist()) for batch in one[:3] for row in batch["targets"]]
    assert all(row in text for row in rows)
    assert not any(row in stream for row in rows)
    train = next(task.batches("train", 1, start=task.setting.short_steps))["targets"]
    assert all(bytes(row.tolist()) in stream for row in train)


def test_a_chapter_shorter_than_a_window_is_padded() -> None:
    windows = data.held_out_windows(Text(bible.Bible("world_english")), "test", 8000, 2)
    chapters = bible.chapters("world_english", "test")
    for row, unit in enumerate(windows.unit_of):
        assert (~windows.masked.padding[row]).sum() == min(8000, len(chapters[unit].text))


def test_the_floor_without_context_is_the_posterior() -> None:
    """Bayes by counting: among selected places of independent bytes, what stood where the input shows b."""
    frequencies = np.zeros(256)
    frequencies[[97, 98, 99]] = 0.5, 0.3, 0.2
    generator = np.random.default_rng(0)
    text = generator.choice(256, size=(4000, 200), p=frequencies)
    masked = data.corrupt(text, np.zeros(text.shape, dtype=bool), frequencies, generator)
    inputs, targets = masked.inputs[masked.selected], masked.targets[masked.selected]
    for seen in (97, 98, 99, 256):
        counted = np.bincount(targets[inputs == seen], minlength=256) / (inputs == seen).sum()
        stated = data.without_context(np.full(256, seen), np.arange(256), frequencies)
        assert stated.sum() == pytest.approx(1)
        np.testing.assert_allclose(counted, stated, atol=0.03)  # 5 standard deviations among the rarest 4,800


def test_floors_match_a_direct_computation() -> None:
    task = MaskedLanguageModelling()
    floors = task.floors("validation")
    unigram = task.text.unigram
    losses = [
        -math.log(unigram[target])
        for batch in task.batches("validation", 0)
        for target in batch["targets"][batch["selected"]].tolist()
    ]
    spaces = [
        target == ord(" ")
        for batch in task.batches("validation", 0)
        for target in batch["targets"][batch["selected"]].tolist()
    ]
    perplexity, accuracy = task.card.metrics
    assert perplexity.value(floors["unigram"]) == pytest.approx(math.exp(np.mean(losses)))
    assert accuracy.value(floors["unigram"]) == pytest.approx(np.mean(spaces))
    assert perplexity.value(floors["uniform"]) == pytest.approx(256)
    assert accuracy.value(floors["uniform"]) == pytest.approx(1 / 256)
    assert perplexity.value(floors["no_context"]) < perplexity.value(floors["unigram"])


def test_evaluation_agrees_with_the_loss_of_the_same_windows() -> None:
    task = MaskedLanguageModelling()
    model = task.build_model(slots("softmax")).eval()
    scores = task.evaluate(model, "test")
    with torch.no_grad():
        losses = [(float(task.loss(model, b)), int(b["selected"].sum())) for b in task.batches("test", 0)]
    mean = sum(loss * count for loss, count in losses) / sum(count for _, count in losses)
    assert task.card.primary_metric.value(scores) == pytest.approx(math.exp(mean), rel=1e-5)  # float32 losses
    assert scores.units == task.floors("test")["unigram"].units


def test_every_prediction_sees_both_sides() -> None:
    task = MaskedLanguageModelling(length=24)
    model = task.build_model(slots("softmax")).eval()
    inputs = torch.full((1, 24), ord("a"))
    selected = torch.zeros(1, 24, dtype=torch.bool)
    selected[0, 12] = True
    before = model(inputs, selected)
    for place in (0, 11, 13, 23):
        changed = inputs.clone()
        changed[0, place] = ord("b")
        assert not torch.allclose(before, model(changed, selected))


def test_padding_is_invisible() -> None:
    task = MaskedLanguageModelling(length=24)
    model = task.build_model(slots("softmax")).eval().double()
    inputs, selected = torch.randint(97, 123, (2, 24)), torch.zeros(2, 24, dtype=torch.bool)
    selected[:, 3] = True
    padding = torch.arange(24).expand(2, 24) >= 20
    padded = model(inputs, selected, key_padding_mask=padding)
    # 1e-12: the same sums in float64, in another order
    torch.testing.assert_close(padded, model(inputs[:, :20], selected[:, :20]), atol=1e-12, rtol=0)


def test_a_step_is_finite_and_a_sample_shows_three_lines_a_window() -> None:
    task = MaskedLanguageModelling()
    model = task.build_model(slots("softmax"))
    loss = task.loss(model, next(task.batches("train", 1)))
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    lines = task.samples(model.eval())[0].content.split(b"\n")
    assert [len(line) for line in lines] == [64] * 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "causal_self"}, "did you mean 'noncausal_self'"),
        ({"length": 0}, "at least 2"),
        ({"translation": "king"}, "allowed: king_james, world_english"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        MaskedLanguageModelling(**options)
    assert "\n" not in str(caught.value)


def test_at_paper_size_the_encoder_is_roberta_base() -> None:
    task = MaskedLanguageModelling(size="paper", length=512)
    with torch.device("meta"):
        model = task.build_model(slots("softmax"))
    # The published checkpoint with its head holds 124,697,433: 50,265 tokens, 514 rows of positions (two are never
    # used) and a vector of the one token type, of width 768.
    published = 124_697_433
    assert sum(parameter.numel() for parameter in model.parameters()) == published - 2 * 768 - 768


def test_the_blank_batch_has_the_shapes_of_a_real_one() -> None:
    task = MaskedLanguageModelling()
    rows = task.setting.batch
    real, blank = next(task.batches("train", 1, start=task.setting.short_steps)), task.blank_batch(rows)
    assert {name: (x.shape, x.dtype) for name, x in real.items()} == {n: (x.shape, x.dtype) for n, x in blank.items()}
    assert torch.isfinite(task.loss(task.build_model(slots("softmax")), blank))
