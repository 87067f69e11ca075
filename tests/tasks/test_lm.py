"""Language modelling: windows without a leak, floors as counted by hand, a decoder that does not see ahead."""

from __future__ import annotations

import math
from collections import Counter
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from recording_slots import slots

from tasks import bible
from tasks.lm import data
from tasks.lm.task import LanguageModelling
from tasks.text import Text


def test_batches_start_anywhere_and_are_training_text() -> None:
    task = LanguageModelling()
    stream = LanguageModelling().text.tokens("train").stream.tobytes()
    skipped = list(islice(task.batches("train", 5), 4))[3]
    started = next(task.batches("train", 5, start=3))
    assert torch.equal(skipped["inputs"], started["inputs"])
    assert torch.equal(skipped["targets"], started["targets"])
    assert torch.equal(skipped["inputs"][:, 1:], skipped["targets"][:, :-1])
    assert all(bytes(row.tolist()) in stream for row in skipped["inputs"])
    assert not torch.equal(next(task.batches("train", 6, start=3))["inputs"], started["inputs"])


def test_batches_do_not_depend_on_the_global_generator() -> None:
    task = LanguageModelling()
    torch.manual_seed(1)
    first = next(task.batches("train", 5))
    torch.manual_seed(2)
    np.testing.assert_array_equal(first["inputs"], next(task.batches("train", 5))["inputs"])


def test_held_out_batches_are_the_windows_of_each_chapter_once() -> None:
    task = LanguageModelling()
    batches = list(task.batches("test", 0))
    texts = {chapter.name: chapter.text for chapter in bible.chapters("world_english", "test")}
    names = list(texts)
    inputs = torch.cat([batch["inputs"] for batch in batches])
    units = torch.cat([batch["unit"] for batch in batches])
    assert set(units.tolist()) == set(range(len(names)))
    for row, unit in zip(inputs.tolist(), units.tolist(), strict=True):
        assert bytes(row) in texts[names[unit]]
    assert max(Counter(units.tolist()).values()) == task.setting.windows_per_document
    assert torch.equal(next(task.batches("test", 9, start=2))["inputs"], batches[2]["inputs"])


def test_a_chapter_shorter_than_a_window_is_scored_without_its_filling() -> None:
    windows = data.held_out_windows(Text(bible.Bible("world_english")), "test", 8000, 2)
    chapters = bible.chapters("world_english", "test")
    scored = np.bincount(windows.unit_of, weights=(windows.targets != data.IGNORE).sum(1))
    for size, chapter in zip(scored, chapters, strict=True):
        if len(chapter.text) <= 8000:
            assert size == len(chapter.text) - 1  # every byte but the first, which nothing precedes
        else:
            assert size in (8000, 16000)


def test_floors_match_a_direct_computation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_BLOCK", 100_003)  # several blocks, the last one short
    task = LanguageModelling()
    floors = task.floors("validation")
    text = task.text.tokens("train").stream.tobytes()
    singles, total = Counter(text), len(text)
    doubles = Counter(pairwise(text))
    before = Counter(text[:-1])
    unigram, bigram = [], []
    for batch in task.batches("validation", 0):
        for row, targets, unit in zip(batch["inputs"], batch["targets"], batch["unit"], strict=True):
            if unit == 7:
                for a, b in zip(row.tolist(), targets.tolist(), strict=True):
                    p = (singles[b] + 1) / (total + 256)
                    unigram.append(-math.log(p))
                    bigram.append(-math.log((doubles[a, b] + p) / (before[a] + 1)))
    # 1e-9: sums of 512 numbers in float64
    assert floors["unigram"].values["perplexity"][7] == pytest.approx(np.mean(unigram), abs=1e-9)
    assert floors["bigram"].values["perplexity"][7] == pytest.approx(np.mean(bigram), abs=1e-9)
    metrics = {metric.name: metric for metric in task.card.metrics}
    assert metrics["perplexity"].value(floors["uniform"]) == pytest.approx(256)
    assert metrics["bits_per_byte"].value(floors["uniform"]) == pytest.approx(8)
    assert metrics["bits_per_byte"].value(floors["bigram"]) < metrics["bits_per_byte"].value(floors["unigram"])


def test_evaluation_agrees_with_the_loss_of_the_same_windows() -> None:
    task = LanguageModelling()
    model = task.build_model(slots("softmax")).eval()
    scores = task.evaluate(model, "test")
    with torch.no_grad():
        losses = [(float(task.loss(model, batch)), len(batch["inputs"])) for batch in task.batches("test", 0)]
    mean = sum(loss * rows for loss, rows in losses) / sum(rows for _, rows in losses)
    assert task.card.primary_metric.value(scores) == pytest.approx(math.exp(mean), rel=1e-5)  # float32 losses
    assert scores.units == task.floors("test")["unigram"].units


def test_no_output_depends_on_later_bytes() -> None:
    task = LanguageModelling(length=24)
    model = task.build_model(slots("softmax")).eval()
    inputs = next(task.batches("train", 1))["inputs"]
    changed = inputs.clone()
    changed[:, 11:] = ord("x")
    before, after = model(inputs), model(changed)
    assert torch.equal(before[:, :11], after[:, :11])
    assert not torch.allclose(before[:, 11:], after[:, 11:])


def test_a_step_is_finite_and_a_sample_goes_on_from_its_prompt() -> None:
    task = LanguageModelling(length=16)
    model = task.build_model(slots("softmax"))
    batch = next(task.batches("train", 1))
    assert task.tokens(batch) == 16 * task.setting.batch
    loss = task.loss(model, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)
    prompt, _, continuation = task.samples(model.eval())[0].content.partition(b" >>> ")
    assert len(prompt) == len(continuation) == 8
    assert task.samples(model)[0].content.endswith(continuation)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "noncausal_self"}, "allowed: causal_self"),
        ({"length": 1}, "at least 2"),
        ({"translation": "king"}, "allowed: king_james, world_english"),
        ({"data": "orignal"}, "did you mean 'original'"),
        ({"data_root": "books"}, "read with data=original only"),
        ({"evaluation_lengths": [64, 1]}, "evaluation_lengths=1 is not allowed"),
    ],
)
def test_wrong_options_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        LanguageModelling(**options)
    assert "\n" not in str(caught.value)


def test_perplexity_by_length_is_that_of_a_task_of_that_length() -> None:
    task = LanguageModelling(length=32, evaluation_lengths=[16, 48])
    model = task.build_model(slots("softmax")).eval()
    scores = task.evaluate(model, "validation")
    metrics = {metric.name: metric for metric in task.card.metrics}
    assert list(metrics) == ["perplexity", "bits_per_byte", "perplexity_at_16", "perplexity_at_48"]
    windows = task._windows("validation", 48)
    assert windows.inputs.shape[1] == 48
    with torch.no_grad():
        logits = model(torch.from_numpy(windows.inputs))
        expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), torch.from_numpy(windows.targets).flatten())
    assert metrics["perplexity_at_48"].value(scores) == pytest.approx(math.exp(float(expected)), rel=1e-5)  # float32


def test_at_paper_size_the_decoder_is_gpt2_small() -> None:
    task = LanguageModelling(size="paper", length=1024)
    with torch.device("meta"):
        model = task.build_model(slots("softmax"))
    # The published model of 12 layers, width 768, 50,257 tokens and 1,024 positions, as its checkpoint holds it.
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808


@pytest.mark.parametrize("name", ["softmax", "linear", "smyrf"])
def test_a_decoder_in_steps_is_the_decoder(name: str) -> None:
    model = LanguageModelling(length=24).build_model(slots(name)).eval().double()
    tokens = torch.randint(256, (2, 20))
    if not model.incremental:
        assert name == "smyrf"
        return
    logits, states = model.prefill(tokens[:, :11])
    # 1e-9: the same sums in float64, in another order
    torch.testing.assert_close(logits, model(tokens[:, :11])[:, -1], rtol=0, atol=1e-9)
    for index in range(11, 20):
        logits, states = model.step(tokens[:, index], index, states)
        torch.testing.assert_close(logits, model(tokens[:, : index + 1])[:, -1], rtol=0, atol=1e-9)


def test_the_blank_batch_has_the_shapes_of_a_real_one() -> None:
    task = LanguageModelling()
    real, blank = next(task.batches("train", 1)), task.blank_batch(task.setting.batch)
    assert {name: (x.shape, x.dtype) for name, x in real.items()} == {n: (x.shape, x.dtype) for n, x in blank.items()}
    assert torch.isfinite(task.loss(task.build_model(slots("softmax")), blank))
