"""The summarisation task on made-up articles: batches, causality of the whole model, padding, scores and floors."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from attention_zoo import build
from attention_zoo.contract import Attention, Pattern
from tasks.summarization import data
from tasks.summarization.model import EncoderDecoder
from tasks.summarization.task import SIZES, Summarization

WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("an", "el", "ix", "or", "ub")]


class Slot:
    """Exact attention for one slot; remembers the lengths it was asked for."""

    def __init__(self, pattern: Pattern) -> None:
        self.pattern = pattern
        self.lengths: list[tuple[int, int | None]] = []

    def __call__(
        self, embed_dim: int, num_heads: int, *, max_length: int, max_length_key: int | None = None
    ) -> Attention:
        self.lengths.append((max_length, max_length_key))
        return build(
            "softmax", embed_dim, num_heads, self.pattern, max_length=max_length, max_length_key=max_length_key
        )


def slots() -> dict[Pattern, Slot]:
    return {pattern: Slot(pattern) for pattern in Pattern}


def made_up() -> data.Corpus:
    """403 articles of one frequent word each; the head is that word, twice or more."""
    documents = []
    for index in range(403):
        rng = random.Random(index)
        topic = rng.choice(WORDS)
        text = rng.choices(WORDS, k=rng.randint(20, 120))
        text[::3] = [topic] * len(text[::3])
        head = [topic] * rng.randint(2, 30)
        documents.append(data.Document(f"{index:016x}" + "0" * 48, text, head, lead=min(20, len(text))))
    return data.Corpus.of(documents)


@pytest.fixture
def task(monkeypatch):
    corpus = made_up()
    monkeypatch.setattr(data, "load", lambda: corpus)
    return Summarization(pattern=Pattern.CAUSAL_CROSS)


def small_model(dtype: torch.dtype = torch.float64) -> EncoderDecoder:
    torch.manual_seed(0)
    model = EncoderDecoder(
        slots(),
        output_bias=torch.zeros(11),
        pad=data.PAD,
        source_length=9,
        target_length=7,
        width=8,
        heads=2,
        hidden=12,
        encoder_layers=2,
        decoder_layers=2,
        dropout=0.0,
    )
    return model.to(dtype).eval()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_batches_are_a_function_of_seed_and_index(task):
    count, size = len(task.corpus.splits["train"]), SIZES["tiny"].batch
    assert count % size  # so that a batch straddles two passes
    batches = list(itertools.islice(task.batches("train", seed=1), 2 * count // size + 2))
    for start in (1, count // size, len(batches) - 1):
        assert equal(next(task.batches("train", seed=1, start=start)), batches[start])
    assert not equal(batches[0], next(task.batches("train", seed=2)))
    held_out = list(task.batches("test", seed=1))
    assert equal(next(task.batches("test", seed=9, start=len(held_out) - 1)), held_out[-1])
    assert sum(len(batch["source"]) for batch in held_out) == len(task.corpus.splits["test"])


def test_a_pass_visits_each_document_once(task):
    count = len(task.corpus.splits["train"])
    rows: list[tuple[int, ...]] = []
    for batch in task.batches("train", seed=3):
        rows += [tuple(row) for row in torch.cat((batch["source"], batch["target"]), dim=1).tolist()]
        if len(rows) >= 2 * count:
            break
    pairs = task.pairs("train")
    expected = sorted(map(tuple, np.concatenate((pairs.source, pairs.target), axis=1).tolist()))
    assert sorted(rows[:count]) == expected
    assert sorted(rows[count : 2 * count]) == expected


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.data())
def test_output_does_not_depend_on_later_targets(target_length, source_length, draw):
    model = small_model()
    generator = torch.Generator().manual_seed(draw.draw(st.integers(0, 10**6)))
    source = torch.randint(1, 11, (2, source_length), generator=generator)
    inputs = torch.randint(1, 11, (2, target_length), generator=generator)
    position = draw.draw(st.integers(0, target_length - 1))
    changed = inputs.clone()
    changed[:, position + 1 :] = torch.randint(0, 11, changed[:, position + 1 :].shape, generator=generator)
    # Passes of the same shape: what comes later is masked, so equal bits.
    before, after = model(source, inputs), model(source, changed)
    assert torch.equal(before[:, : position + 1], after[:, : position + 1])


def test_output_depends_on_the_past_and_on_the_whole_source():
    model = small_model()
    source, inputs = torch.arange(1, 10)[None], torch.arange(1, 8)[None]
    before = model(source, inputs)
    for position in range(7):
        changed = inputs.clone()
        changed[:, position] = 10
        assert (model(source, changed) != before).any(dim=-1)[0, position:].all()
    for position in range(9):
        changed = source.clone()
        changed[:, position] = 10
        assert (model(changed, inputs) != before).any(dim=-1).all()


def test_padding_of_the_source_equals_cutting_it():
    model = small_model()
    source, inputs = torch.randint(1, 11, (3, 5)), torch.randint(1, 11, (3, 7))
    padded = torch.cat((source, torch.full((3, 4), data.PAD)), dim=1)
    # float64: sums of at most 9 terms of unit scale in another order.
    torch.testing.assert_close(model(padded, inputs), model(source, inputs), atol=1e-12, rtol=0)


def test_kept_logits_are_the_logits_at_the_kept_positions():
    model = small_model()
    source, inputs = torch.randint(1, 11, (3, 9)), torch.randint(1, 11, (3, 7))
    keep = torch.rand(3, 7) < 0.5
    torch.testing.assert_close(model(source, inputs, keep), model(source, inputs)[keep], atol=1e-12, rtol=0)  # float64


def test_training_step_is_finite_and_reaches_every_parameter(task):
    torch.manual_seed(0)
    model = task.build_model(slots())
    batch = next(task.batches("train", seed=0))
    assert task.tokens(batch) == int((batch["target"] != 0).sum())
    task.loss(model, batch).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_few_steps_beat_the_floor_on_topical_articles(task):
    torch.manual_seed(0)
    model = task.build_model(slots())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for batch in itertools.islice(task.batches("train", seed=0), 40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    model.eval()
    metric = task.card.primary_metric
    assert metric.value(task.evaluate(model, "test")) < 0.5 * metric.value(task.floors("test")["unigram"])


class Constant(nn.Module):
    """Logits of fixed probabilities, wherever asked."""

    def __init__(self, probability: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.from_numpy(np.log(np.maximum(probability, 1e-300))))

    def forward(self, source, inputs, keep):
        return self.logits.expand(int(keep.sum()), -1)


def test_floors_are_what_their_distributions_score(task):
    size = len(task.vocabulary.words)
    uniform = np.full(size, 1 / (size - 2))
    uniform[[data.PAD, data.BEGIN]] = 0
    floors = task.floors("test")
    assert set(floors) == set(task.card.floors)
    assert task.card.floor in floors
    for name, probability in (("uniform", uniform), ("unigram", task.unigram)):
        scores = task.evaluate(Constant(probability), "test")
        assert scores.units == floors[name].units
        np.testing.assert_array_equal(scores.weights["perplexity"], floors[name].weights["perplexity"])
        # Logits are float32 when the loss is taken.
        np.testing.assert_allclose(scores.values["perplexity"], floors[name].values["perplexity"], rtol=1e-5)
    metric = task.card.primary_metric
    assert metric.value(floors["uniform"]) == pytest.approx(size - 2)
    assert metric.value(floors["lead_1"]) < metric.value(floors["unigram"])


def test_perplexity_weighs_every_token_alike(task):
    target = task.pairs("test").target
    total = -np.log(task.unigram[target[target != data.PAD]]).mean()
    assert task.card.primary_metric.value(task.floors("test")["unigram"]) == pytest.approx(math.exp(total))


def test_training_part_can_be_scored_too(task):
    assert len(task.evaluate(Constant(task.unigram), "train").units) == len(task.corpus.splits["train"])


def test_slots_are_asked_for_the_lengths_of_the_card(task):
    asked = slots()
    task.build_model(asked)
    target, source = task.card.lengths["tiny"]
    assert asked[Pattern.CAUSAL_CROSS].lengths == [(target, source)] * SIZES["tiny"].decoder_layers
    assert asked[Pattern.CAUSAL_SELF].lengths == [(target, None)] * SIZES["tiny"].decoder_layers
    assert asked[Pattern.NONCAUSAL_SELF].lengths == [(source, None)] * SIZES["tiny"].encoder_layers
    assert task.lengths == (target, source)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "noncausal_cross"}, "pattern of task summarization 'noncausal_cross'.*causal_cross"),
        ({"source_length": 5}, "source_length=5.*20"),
        ({"target_length": 0}, "target_length=0"),
        ({"vocabulary": 5}, "vocabulary=5.*6"),
    ],
)
def test_wrong_option_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Summarization(**{"pattern": "causal_cross", **options})
    assert "\n" not in str(error.value)


def test_empty_part_is_one_line(monkeypatch):
    only = data.Corpus.of([data.Document("0" * 64, ["word"] * 20, ["head"], 20)])
    monkeypatch.setattr(data, "load", lambda: only)
    with pytest.raises(ValueError, match="no document in the test part of 1"):
        Summarization(pattern="causal_cross").pairs("test")
