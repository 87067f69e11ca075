"""The summarisation task on made-up articles: batches, causality of the whole model, padding, generation, scores,
floors, and the backbone's parameters at the size of the paper."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_slots import slots
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import SlotFactory
from tasks.decoding import Limits, continue_prompts
from tasks.summarization import data
from tasks.summarization.metrics import ROUGE
from tasks.summarization.model import EncoderDecoder, Shape
from tasks.summarization.task import SIZES, Summarization, as_numbers
from tasks.summarization.tokens import BEGIN, END, PAD, UNKNOWN

NS, CS, NC, CC = Pattern
WORDS = [f"{first}{second}" for first in "bdfgklmnprst" for second in ("an", "el", "ix", "or", "ub")]
SMALL = Shape(
    vocabulary=11,
    width=8,
    heads=2,
    hidden=12,
    encoder_layers=2,
    decoder_layers=2,
    source_length=9,
    target_length=7,
    source_positions=9,
    target_positions=8,
)
PARAGEN = replace(SMALL, paragen=True)


def made_up() -> list[data.Article]:
    """403 articles of one frequent word each; the summary is that word, twice or more, often on two lines."""
    articles = []
    for index in range(403):
        rng = random.Random(index)
        topic = rng.choice(WORDS)
        text = rng.choices(WORDS, k=rng.randint(20, 120))
        text[::3] = [topic] * len(text[::3])
        text[7:8] = [text[7] + ".", text[8].title()]  # the end of a first sentence
        summary = " ".join([topic] * rng.randint(2, 30)) + f"\n{topic}" * (index % 2)
        articles.append(data.Article(f"{index:016x}" + "0" * 48, " ".join(text), summary))
    return articles


@pytest.fixture
def task(monkeypatch):
    articles = made_up()
    monkeypatch.setattr(data, "load", lambda: articles)
    return Summarization(pattern=Pattern.CAUSAL_CROSS)


def small_model(shape: Shape = SMALL, factories: Mapping[Pattern, SlotFactory] | None = None) -> EncoderDecoder:
    torch.manual_seed(0)
    bias = None if shape.paragen else torch.zeros(shape.vocabulary)
    model = EncoderDecoder(factories or slots(), shape, pad=PAD, output_bias=bias).double().eval()
    for parameter in model.parameters():  # away from the start, where biases are zero and scales one
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def assert_future_targets_do_not_matter(
    factories: Mapping[Pattern, SlotFactory], shape: Shape = SMALL, *, tolerance: float = 0.0
) -> None:
    """Through the whole model in float64: logits up to a position are those with any later targets."""
    model = small_model(shape, factories)
    generator = torch.Generator().manual_seed(1)
    source = torch.randint(1, shape.vocabulary, (2, shape.source_length), generator=generator)
    source[1, shape.source_length // 2 :] = PAD
    inputs = torch.randint(1, shape.vocabulary, (2, shape.target_length), generator=generator)
    before = model(source, inputs)
    for position in range(shape.target_length - 1):
        changed = inputs.clone()
        later = changed[:, position + 1 :]
        later.copy_(torch.randint(1, shape.vocabulary, later.shape, generator=generator))
        after = model(source, changed)
        torch.testing.assert_close(after[:, : position + 1], before[:, : position + 1], atol=tolerance, rtol=0)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_batches_are_a_function_of_seed_and_index(task):
    count, size = len(task.articles["train"]), SIZES["tiny"].batch
    assert count % size  # so that a batch straddles two passes
    batches = list(itertools.islice(task.batches("train", seed=1), 2 * count // size + 2))
    for start in (1, count // size, len(batches) - 1):
        assert equal(next(task.batches("train", seed=1, start=start)), batches[start])
    assert not equal(batches[0], next(task.batches("train", seed=2)))
    held_out = list(task.batches("test", seed=1))
    assert equal(next(task.batches("test", seed=9, start=len(held_out) - 1)), held_out[-1])
    assert sum(len(batch["source"]) for batch in held_out) == len(task.articles["test"])


def test_a_pass_visits_each_document_once(task):
    count = len(task.articles["train"])
    rows: list[tuple[int, ...]] = []
    for batch in task.batches("train", seed=3):
        rows += [tuple(row) for row in torch.cat((batch["source"], batch["target"]), dim=1).tolist()]
        if len(rows) >= 2 * count:
            break
    pairs = data.Pairs.of(task.articles["train"], task.tokeniser, task.source_length, task.target_length)
    expected = sorted(map(tuple, np.concatenate((pairs.source, pairs.target), axis=1).tolist()))
    assert sorted(rows[:count]) == expected
    assert sorted(rows[count : 2 * count]) == expected


@pytest.mark.parametrize("pattern", [NS, CS, CC])
def test_tokens_are_those_of_the_sequence_under_test(task, pattern):
    batch = next(task.batches("train", seed=0))
    under_test = batch["source"] if pattern is NS else batch["target"]
    assert Summarization(pattern=pattern).tokens(batch) == int((under_test != PAD).sum())


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


@pytest.mark.parametrize("shape", [SMALL, PARAGEN], ids=["small", "paragen"])
def test_neither_form_leaks(shape):
    assert_future_targets_do_not_matter(slots(), shape)


@pytest.mark.parametrize("shape", [SMALL, PARAGEN], ids=["small", "paragen"])
def test_output_depends_on_the_past_and_on_the_whole_source(shape):
    model = small_model(shape)
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


@pytest.mark.parametrize("shape", [SMALL, PARAGEN], ids=["small", "paragen"])
def test_padding_of_the_source_equals_cutting_it(shape):
    model = small_model(shape)
    source, inputs = torch.randint(1, 11, (3, 5)), torch.randint(1, 11, (3, 7))
    padded = torch.cat((source, torch.full((3, 4), PAD)), dim=1)
    # float64: sums of at most 12 terms of unit scale in another order.
    torch.testing.assert_close(model(padded, inputs), model(source, inputs), atol=1e-12, rtol=0)


def test_loss_is_the_mean_over_the_tokens_that_are_there(task):
    model, batch = task.build_model(slots()).eval(), next(task.batches("train", seed=0))
    present = batch["target"] != PAD
    assert not present.all()
    log_probability = model(batch["source"], batch["decoder_inputs"]).log_softmax(-1)
    chosen = log_probability.gather(-1, batch["target"][..., None])[..., 0]
    torch.testing.assert_close(task.loss(model, batch), -chosen[present].mean())  # float32


def sources_and_begin() -> tuple[Tensor, Tensor]:
    source = torch.randint(1, 11, (6, 9), generator=torch.Generator().manual_seed(5))
    for row, length in enumerate((9, 3, 7, 5, 9, 4)):
        source[row, length:] = PAD
    return source, torch.full((6, 1), BEGIN)


LIMITS = Limits(most=7, least=2, stop=END, pad=PAD, forbidden=(PAD, UNKNOWN, BEGIN))


def by_hand(model: EncoderDecoder, source: Tensor) -> list[int]:
    """Greedy search over one source, cut to its length, by the model's forward pass alone."""
    source = source[source != PAD][None]
    inputs, found = [BEGIN], []
    while len(found) < LIMITS.most and END not in found:
        logits = model(source, torch.tensor([inputs]))[0, -1].clone()
        logits[list(LIMITS.forbidden)] = -torch.inf
        if len(found) < LIMITS.least:
            logits[END] = -torch.inf
        found.append(int(logits.argmax()))
        inputs.append(found[-1])
    return found + [PAD] * (LIMITS.most - len(found))


@pytest.mark.parametrize("shape", [SMALL, PARAGEN], ids=["small", "paragen"])
@pytest.mark.parametrize(
    ("mechanisms", "incremental"),
    [
        ({}, True),
        ({"CS": "sdpa", "CC": "sdpa"}, True),
        ({"CS": "linear", "CC": "linear"}, True),
        ({"CS": "s4d", "NS": "efficient"}, True),
        ({"CS": "reformer"}, False),
        ({"CC": "reformer"}, False),
    ],
    ids=["softmax", "sdpa", "linear", "s4d", "reformer_cs", "reformer_cc"],
)
def test_summaries_in_steps_and_recomputed_are_those_of_the_definition(mechanisms, incremental, shape):
    model = small_model(replace(shape, width=16, vocabulary=30), slots(**mechanisms))
    for block in model.decoder:  # a loud source, so that summaries differ
        for parameter in block.cross_attention.parameters():
            parameter.data *= 4
    source, begin = sources_and_begin()
    with torch.no_grad():
        decoder = model.summarise(source)
        assert decoder.incremental is incremental
        found = continue_prompts(decoder, begin, LIMITS)
        assert torch.equal(found, continue_prompts(decoder, begin, LIMITS, incremental=False))
        assert found.tolist() == [by_hand(model, row) for row in source]
    assert len({tuple(row) for row in found.tolist()}) > 1
    assert not set(found.flatten().tolist()) & {UNKNOWN, BEGIN}


def test_training_step_is_finite_and_reaches_every_parameter(task):
    torch.manual_seed(0)
    model = task.build_model(slots())
    task.loss(model, next(task.batches("train", seed=0))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_few_steps_beat_the_floor_on_topical_articles(task):
    torch.manual_seed(0)
    model = task.build_model(slots())
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    untrained = task.evaluate(model.eval(), "test")
    for batch in itertools.islice(task.batches("train", seed=0), 40):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    perplexity, rouge_1, *_ = task.card.metrics
    scores, floors = task.evaluate(model, "test"), task.floors("test")
    assert perplexity.value(scores) < 0.5 * perplexity.value(floors["unigram"])
    assert rouge_1.value(scores) > 2 * rouge_1.value(untrained) + 5
    assert scores.units == floors["unigram"].units


class Constant(nn.Module):
    """Logits of fixed probabilities, wherever asked."""

    def __init__(self, probability: np.ndarray) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.from_numpy(np.log(np.maximum(probability, 1e-300))))

    def forward(self, source, inputs):
        return self.logits.expand(*inputs.shape, -1)


def test_floors_are_what_their_distributions_score(task):
    uniform = np.where(task.unigram > 0, 1 / (len(task.tokeniser) - 2), 0.0)
    floors = task.floors("test")
    assert set(floors) == set(task.card.floors)
    assert task.card.floor in floors
    for name, probability in (("uniform", uniform), ("unigram", task.unigram)):
        values = task.negative_log_likelihood(Constant(probability), "test")
        np.testing.assert_allclose(values, floors[name].values["perplexity"], rtol=1e-5)  # the loss takes float32
    metric = task.card.primary_metric
    assert metric.value(floors["uniform"]) == pytest.approx(len(task.tokeniser) - 2)
    assert metric.value(floors["lead_1"]) < metric.value(floors["unigram"])
    for name in ("lead_1", "lead_3"):
        assert set(floors[name].values) == {"perplexity", *ROUGE}
    assert floors["lead_1"].values["rouge_1"].mean() > 0


def test_perplexity_weighs_every_token_alike_and_rouge_every_document(task):
    target = task.target("test")
    total = -np.log(task.unigram[target[target != PAD]]).mean()
    assert task.card.primary_metric.value(task.floors("test")["unigram"]) == pytest.approx(math.exp(total))
    lead = task.floors("test")["lead_1"]
    assert task.card.metrics[1].value(lead) == pytest.approx(lead.values["rouge_1"].mean())


def test_rouge_is_of_the_whole_reference_not_of_the_cut_target(task):
    article = next(article for article in task.articles["test"] if len(article.summary.split()) > task.target_length)
    exact = as_numbers([article], [article.summary]).splitlines()[1]
    assert "100.0 / 100.0 / 100.0" in exact
    cut = " ".join(article.summary.split()[: task.target_length])
    assert "100.0" not in as_numbers([article], [cut]).splitlines()[1]


def test_label_smoothing_is_of_the_loss_alone(task, monkeypatch):
    model, batch = task.build_model(slots()).eval(), next(task.batches("test", seed=0))
    plain, before = task.loss(model, batch), task.negative_log_likelihood(model, "test")
    monkeypatch.setattr(task, "setting", SIZES["paper"])
    source, inputs, target = batch["source"], batch["decoder_inputs"], batch["target"]
    log_probability = model(source, inputs)[target != PAD].log_softmax(-1)
    smoothed = 0.9 * plain - 0.1 * log_probability.mean()  # Szegedy et al. 2016, section 7: 0.1 spread over all tokens
    torch.testing.assert_close(task.loss(model, batch), smoothed)
    np.testing.assert_allclose(task.negative_log_likelihood(model, "test"), before, rtol=1e-5)  # other batches: float32


def test_training_part_can_be_scored_too(task):
    assert len(task.negative_log_likelihood(Constant(task.unigram), "train")) == len(task.articles["train"])


@pytest.mark.parametrize("size", SIZES)
def test_slots_are_asked_for_the_lengths_of_the_card(task, size):
    asked, at = slots(), Summarization(size=size)
    shape = at.shape
    with torch.device("meta"):
        EncoderDecoder(asked, shape, pad=PAD)
    target, source = at.card.lengths[size]
    assert at.lengths == (target, source)
    assert asked[CC].lengths == [(target, source)] * SIZES[size].decoder_layers
    assert asked[CS].lengths == [(target, None)] * SIZES[size].decoder_layers
    assert asked[NS].lengths == [(source, None)] * SIZES[size].encoder_layers
    assert not asked[NC].lengths


def test_parameters_at_paper_are_those_of_cab_s_configuration(monkeypatch):
    """CAB prints no count. Counted from its configuration, Shark-NLP/CAB tasks/Sum/train.yaml (6 + 6 layers, width 512,
    inner width 2048, 4,096 and 512 learned positions, normalised embeddings), with ParaGen's defaults for what it
    leaves open (no shared embedding, post-norm without a last norm, no bias of the logits: paragen/models/seq2seq.py,
    modules/utils.py, modules/{encoders,decoders}) and the 50,265 tokens of bart-base."""
    monkeypatch.setattr(data, "load", lambda: pytest.fail("the model needs no data at this size"))
    e, f, v = 512, 2048, 50_265
    norm, attention, feed_forward = 2 * e, 4 * (e * e + e), (e * f + f) + (f * e + e)
    embeddings = 3 * v * e  # source, target, logits
    positions = 4096 * e + 512 * e
    encoder = 6 * (attention + feed_forward + 2 * norm)
    decoder = 6 * (2 * attention + feed_forward + 3 * norm)
    expected = embeddings + positions + 2 * norm + encoder + decoder
    assert expected == 123_706_880
    task = Summarization(size="paper")
    with torch.device("meta"):
        model = task.build_model(slots())
        assert sum(parameter.numel() for parameter in model.parameters()) == expected
        loss = task.loss(model, task.blank_batch(1))
    assert loss.device.type == "meta"
    assert loss.shape == ()


@pytest.mark.parametrize("pattern", [NS, CS, CC])
def test_blank_batch_has_the_shapes_of_a_real_one(task, pattern):
    real, blank = next(task.batches("train", seed=0)), task.blank_batch(SIZES["tiny"].batch)
    assert {name: (x.shape, x.dtype) for name, x in real.items()} == {n: (x.shape, x.dtype) for n, x in blank.items()}
    assert torch.isfinite(task.loss(task.build_model(slots()), task.blank_batch()))


def test_limits_at_paper_are_cab_s():
    """tasks/Sum/eval.yaml: between 200 and 400 tokens, whatever the source."""
    limits = Summarization(size="paper").limits
    assert (limits.least, limits.most, limits.stop) == (200, 400, END)


def test_samples_show_text_in_one_file_and_numbers_in_the_other(task):
    torch.manual_seed(0)
    texts, numbers = task.samples(task.build_model(slots()).eval())
    assert texts.content.decode().count("reference: ") == 4
    lines = numbers.content.decode().splitlines()
    assert len(lines) == 5
    assert not any(word in numbers.content.decode() for word in WORDS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "noncausal_cross"}, "pattern of task summarization 'noncausal_cross'.*causal_cross"),
        ({"data": "orginal"}, "did you mean 'original'"),
        ({"data_root": "/somewhere"}, "data_root=/somewhere is read with data=original only"),
        ({"source_length": 5}, "source_length=5.*20"),
        ({"target_length": 0}, "target_length=0"),
        ({"target_length": 100, "size": "paper"}, "target_length=100.*200"),
        ({"vocabulary": 5}, "vocabulary=5.*6"),
        ({"vocabulary": 260, "size": "base"}, "vocabulary=260.*261"),
    ],
)
def test_wrong_option_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        Summarization(**{"pattern": "causal_cross", **options})
    assert "\n" not in str(error.value)


def test_empty_part_is_one_line(monkeypatch):
    only = [data.Article("0" * 64, "word " * 20, "head")]
    monkeypatch.setattr(data, "load", lambda: only)
    with pytest.raises(ValueError, match="no document in the validation part of 1"):
        Summarization(pattern="causal_cross").prepare()
