"""Both text-to-speech tasks and backbones on made-up speech: batches, losses, causality, padding, timing, scores."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_slots import slots
from torch import nn

from attention_zoo.contract import Pattern
from tasks.contract import SlotFactory, Task
from tasks.tts import data, features, transformer_task
from tasks.tts.fastspeech2 import FastSpeech2, regulate
from tasks.tts.fastspeech2_task import FastSpeech2Speech
from tasks.tts.symbols import ARPABET, ESPEAK
from tasks.tts.transformer_task import TransformerSpeech
from tasks.tts.transformer_tts import TransformerTTS

NS, CS, CC = Pattern.NONCAUSAL_SELF, Pattern.CAUSAL_SELF, Pattern.CAUSAL_CROSS
TASKS = [FastSpeech2Speech, TransformerSpeech]


def made_up(count: int = 60) -> data.Corpus:
    """Utterances whose frames follow from their phonemes, some noise apart; of unequal length."""
    frames_of = np.random.default_rng(0).normal(-5, 2, size=(len(ESPEAK) + 1, features.BANDS))

    def utterance(index: int) -> data.Utterance:
        rng = np.random.default_rng(index + 1)
        phonemes = rng.integers(1, 4, size=int(rng.integers(3, 8)))
        durations = 2 + phonemes % 5
        mel = np.repeat(frames_of[phonemes], durations, axis=0) + 0.1 * rng.normal(
            size=(durations.sum(), features.BANDS)
        )
        return data.Utterance(f"{index:03}", phonemes, durations, 4.5 + 0.01 * phonemes, 3 + 0.1 * phonemes, mel)

    splits = ["train"] * (count - 12) + ["validation"] * 5 + ["test"] * 7
    return data.Corpus.of(ESPEAK, [(split, utterance(i)) for i, split in enumerate(splits)])  # type: ignore[misc]


@pytest.fixture
def _made_up(monkeypatch):
    corpus = made_up()
    monkeypatch.setattr(data, "load", lambda kind: corpus)


def small_fastspeech2(dtype: torch.dtype = torch.float64) -> FastSpeech2:
    torch.manual_seed(0)
    model = FastSpeech2(
        slots(),
        symbols=9,
        max_phonemes=10,
        max_frames=40,
        bands=6,
        width=8,
        heads=2,
        hidden=12,
        kernel=3,
        encoder_layers=2,
        decoder_layers=2,
        predictor_hidden=8,
        predictor_dropout=0.0,
        bins=8,
        pitch_range=(0.0, 1.0),
        energy_range=(0.0, 1.0),
        frames_per_phoneme=3.0,
        dropout=0.0,
    )
    return model.to(dtype).eval()


def small_transformer(
    factories: Mapping[Pattern, SlotFactory] | None = None, dtype: torch.dtype = torch.float64
) -> TransformerTTS:
    torch.manual_seed(0)
    model = TransformerTTS(
        slots() if factories is None else factories,
        symbols=9,
        max_phonemes=10,
        max_steps=8,
        bands=3,
        frames_per_step=2,
        width=8,
        heads=2,
        hidden=12,
        encoder_layers=2,
        decoder_layers=2,
        encoder_convolutions=2,
        prenet_hidden=8,
        postnet_hidden=8,
        postnet_layers=3,
        dropout=0.0,
        side_dropout=0.0,
    )
    for module in model.modules():  # as after some training
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model.to(dtype).eval()


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


# Backbones.


def output_looks_ahead(
    factories: Mapping[Pattern, SlotFactory], steps: int, phonemes: int, position: int, seed: int
) -> bool:
    """Whether frames or stop logits up to ``position`` change, bit for bit, with what the model is told after it."""
    model = small_transformer(factories)
    generator = torch.Generator().manual_seed(seed)
    text = torch.randint(1, 9, (2, phonemes), generator=generator)
    previous = torch.randn(2, steps, 6, generator=generator, dtype=torch.float64)
    changed = previous.clone()
    changed[:, position + 1 :] = torch.randn(2, steps - position - 1, 6, generator=generator, dtype=torch.float64)
    before, after = model(text, previous), model(text, changed)
    until = slice(0, position + 1)
    return not (
        torch.equal(before.causal[:, until], after.causal[:, until])
        and torch.equal(before.stop[:, until], after.stop[:, until])
    )


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 8), st.integers(1, 10), st.data())
def test_no_step_depends_on_later_ones(steps, phonemes, draw):
    position = draw.draw(st.integers(0, steps - 1))
    assert not output_looks_ahead(slots(), steps, phonemes, position, draw.draw(st.integers(0, 10**6)))


def test_every_step_depends_on_the_past_and_on_the_whole_text():
    model = small_transformer()
    text, previous = torch.arange(1, 9)[None], torch.randn(1, 8, 6, dtype=torch.float64)
    before = model(text, previous)
    for position in range(8):
        changed = previous.clone()
        changed[:, position] += 1.0
        assert (model(text, changed).causal != before.causal).any(dim=-1)[0, position:].all()
    for position in range(7):
        changed_text = text.clone()
        changed_text[0, position] = 8
        assert (model(changed_text, previous).causal != before.causal).any(dim=-1).all()


def test_the_postnet_looks_ahead_and_stops_at_the_end():
    model = small_transformer()
    text, previous = torch.arange(1, 9)[None], torch.randn(1, 8, 6, dtype=torch.float64)
    padding = torch.arange(8)[None] >= 5
    whole, masked = model(text, previous), model(text, previous, padding)
    assert not torch.equal(whole.refined[:, :5], masked.refined[:, :5])
    # float64: the same sums, in convolutions of another length.
    cut = model(text, previous[:, :5])
    torch.testing.assert_close(masked.refined[:, :5], cut.refined, atol=1e-12, rtol=0)


def test_blanked_history_leaves_the_rest_and_is_off_in_evaluation():
    model = small_transformer()
    model.history_dropout = 0.5
    seen = []
    model.decoder_prenet.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    text, previous = torch.ones(4, 3, dtype=torch.int64), torch.randn(4, 8, 6, dtype=torch.float64)
    model(text, previous)
    assert torch.equal(seen[0], previous)
    model.train()(text, previous)
    blank = (seen[1] == 0).all(dim=-1)
    assert 4 <= int(blank.sum()) <= 28  # of 32 with probability 1/2: outside once in 1e5
    assert torch.equal(seen[1][~blank], previous[~blank])


def test_padding_of_the_text_equals_cutting_it():
    text = torch.randint(1, 9, (3, 6))
    padded = torch.cat((text, torch.zeros(3, 4, dtype=text.dtype)), dim=1)
    transformer, previous = small_transformer(), torch.randn(3, 8, 6, dtype=torch.float64)
    # float64: sums of at most 10 terms of unit scale in another order.
    torch.testing.assert_close(
        transformer(padded, previous).causal, transformer(text, previous).causal, atol=1e-12, rtol=0
    )
    fastspeech2, durations = small_fastspeech2(), torch.randint(1, 4, (3, 6))
    longer = torch.cat((durations, torch.zeros(3, 4, dtype=text.dtype)), dim=1)
    cut = fastspeech2(text, durations)
    whole = fastspeech2(padded, longer, length=cut.mel.shape[1] + 7)
    assert whole.frames.tolist() == cut.frames.tolist() == durations.sum(dim=1).tolist()
    torch.testing.assert_close(whole.mel[:, : cut.mel.shape[1]], cut.mel, atol=1e-12, rtol=0)
    assert not whole.mel[:, cut.mel.shape[1] :].any()
    for name in ("log_durations", "pitch", "energy"):
        torch.testing.assert_close(getattr(whole, name)[:, :6], getattr(cut, name), atol=1e-12, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=3), st.integers(1, 14))
def test_length_regulator_repeats_phonemes(durations, length):
    x = torch.arange(1.0, 1 + 3 * len(durations)).reshape(len(durations), 3, 1)
    frames, padding = regulate(x, torch.tensor(durations), length)
    for row, counts in enumerate(durations):
        expected = [x[row, i].item() for i, count in enumerate(counts) for _ in range(count)][:length]
        assert frames[row, :, 0].tolist() == expected + [0.0] * (length - len(expected))
        assert (~padding[row]).sum() == len(expected)


def test_own_durations_are_rounded_bounded_and_never_all_zero():
    model = small_fastspeech2()
    padding = torch.tensor([[False, False, True], [False, False, False]])
    log_durations = torch.log1p(torch.tensor([[2.4, 0.6, 9.0], [0.2, -0.3, 0.1]]))
    assert model._durations(log_durations, padding).tolist() == [[2, 1, 0], [1, 0, 0]]
    huge = model._durations(torch.full((1, 3), 1e9), torch.zeros(1, 3, dtype=torch.bool))
    assert huge.tolist() == [[40, 40, 40]]
    with torch.no_grad():
        model.duration_predictor.output.bias.fill_(50.0)
    assert model(torch.tensor([[1, 2, 3]])).mel.shape == (1, 40, 6)


@pytest.mark.parametrize("stop_bias", [-10.0, 0.0, 10.0])
def test_generation_step_by_step_equals_full_recomputation(stop_bias):
    model = small_transformer()
    with torch.no_grad():
        model.stop.bias.fill_(stop_bias)
        model.stop.weight.mul_(3)
    assert model.is_incremental
    text = torch.tensor([[1, 2, 3, 4, 0, 0], [5, 6, 7, 8, 1, 2]])
    (first, first_steps), (again, again_steps) = (model.generate(text, incremental=way) for way in (True, False))
    assert first_steps.tolist() == again_steps.tolist()
    torch.testing.assert_close(first, again, atol=1e-10, rtol=0)  # float64, eight steps fed back
    if stop_bias == -10.0:
        assert first_steps.tolist() == [8, 8]
    if stop_bias == 10.0:
        assert first_steps.tolist() == [1, 1]
    # Forced with its own frames, the model says the same again.
    encoded, padding = model.encode(text)
    said = [torch.zeros(2, 1, 6, dtype=torch.float64)]
    for _ in range(first.shape[1]):
        said.append(model.decode(torch.cat(said, dim=1), encoded, padding)[0][:, -1:])
    causal = torch.cat(said[1:], dim=1)
    after_end = torch.arange(causal.shape[1]) >= first_steps[:, None]
    torch.testing.assert_close(causal + model.postnet(causal, after_end), first, atol=1e-10, rtol=0)


# Parameters at size paper. fairseq's page for LJSpeech (examples/speech_synthesis/docs/ljspeech_example.md) says 41 M
# for `fastspeech2` and 54 M for `tts_transformer`, the architectures that CAB trained; it prints no more digits. The
# counts below are taken layer by layer from their configurations, with the tokens as the only free number.


def convolution(inputs: int, outputs: int, kernel: int) -> int:
    return inputs * outputs * kernel + outputs


def linear(inputs: int, outputs: int) -> int:
    return inputs * outputs + outputs


def fairseq_fastspeech2(tokens: int) -> int:
    width, hidden = 256, 1024
    block = 4 * linear(width, width) + convolution(width, hidden, 9) + convolution(hidden, width, 9) + 2 * 2 * width
    predictor = 2 * (convolution(width, width, 3) + 2 * width) + linear(width, 1)
    return tokens * width + 8 * block + 3 * predictor + 2 * 256 * width + linear(width, 80) + 2


def fairseq_transformer(tokens: int) -> int:
    width, hidden, group = 512, 2048, 4 * 80
    attention, norm = 4 * linear(width, width), 2 * width
    feed_forward = linear(width, hidden) + linear(hidden, width)
    encoder = (
        3 * (convolution(width, width, 5) + norm) + linear(width, width) + 6 * (attention + feed_forward + 2 * norm)
    )
    prenet = linear(group, 256) + linear(256, 256) + linear(256, width)
    decoder = 6 * (2 * attention + feed_forward + 3 * norm) + linear(width, group) + linear(width, 1)
    postnet = (
        convolution(group, 512, 5) + 3 * convolution(512, 512, 5) + convolution(512, group, 5) + 2 * (4 * 512 + group)
    )
    return tokens * width + encoder + norm + prenet + decoder + norm + postnet + 2


@pytest.mark.parametrize(
    ("kind", "reference", "millions"),
    [(FastSpeech2Speech, fairseq_fastspeech2, 41), (TransformerSpeech, fairseq_transformer, 54)],
)
@pytest.mark.parametrize(("source", "inventory"), [("registry", ESPEAK), ("original", ARPABET)])
def test_parameters_at_size_paper(kind, reference, millions, source, inventory):
    task = kind(size="paper", data=source)
    with torch.device("meta"):
        model = task.build_model(slots())
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == reference(len(inventory) + 1)
    assert round(count / 1e6) == millions


# Tasks.


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("size", ["tiny", "base", "paper"])
def test_blank_batch_needs_no_data(kind, size, monkeypatch):
    monkeypatch.setattr(data, "load", None)
    task: Task = kind(size=size)
    if size == "tiny":
        torch.manual_seed(0)
        assert torch.isfinite(task.loss(task.build_model(slots()), task.blank_batch(2)))
    with torch.device("meta"):
        model, batch = task.build_model(slots()), task.blank_batch(1)
    assert batch["mel"].shape == (1, task.utterance_lengths.usual_frames, 80)
    assert sum(p.numel() for p in model.parameters()) > 0
    real = task.blank_batch(3)
    assert real["durations"].sum(dim=1).tolist() == [task.utterance_lengths.usual_frames] * 3


@pytest.mark.usefixtures("_made_up")
class TestTasks:
    @pytest.mark.parametrize("kind", TASKS)
    def test_batches_are_a_function_of_seed_and_index(self, kind):
        task = kind()
        batches = list(itertools.islice(task.batches("train", seed=1), 12))
        for start in (1, 7, 8, 11):
            assert equal(next(task.batches("train", seed=1, start=start)), batches[start])
        assert not equal(batches[0], next(task.batches("train", seed=2)))
        held_out = list(task.batches("test", seed=1))
        assert sum(len(batch["frames"]) for batch in held_out) == 7

    def test_every_pass_visits_each_utterance_once(self, monkeypatch):
        task = FastSpeech2Speech()
        count, size = len(task.rows("train")), task.setting.batch
        assert (count, size) == (48, 16)
        drawn: list[int] = []
        monkeypatch.setattr(data.Corpus, "batch", lambda self, rows: drawn.extend(rows) or {})
        # A bucket of 8 batches holds 128 utterances: 2 passes and 32 of a third.
        list(itertools.islice(task.batches("train", seed=0), 8 * 3))
        assert np.bincount(drawn, minlength=48).tolist() == [8] * 48

    @pytest.mark.parametrize("kind", TASKS)
    def test_a_training_step_reaches_every_parameter(self, kind):
        task = kind()
        torch.manual_seed(0)
        model = task.build_model(slots())
        batch = next(task.batches("train", seed=0))
        assert task.tokens(batch) > 0
        task.loss(model, batch).backward()
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name

    @pytest.mark.parametrize("kind", TASKS)
    def test_loss_does_not_see_padding(self, kind):
        task = kind()
        torch.manual_seed(0)
        model = task.build_model(slots()).eval()
        batch = task.corpus.batch(task.rows("train")[:3])
        wider = {
            name: nn.functional.pad(tensor, (0, 0, 0, 12) if name == "mel" else (0, 5)) if tensor.ndim > 1 else tensor
            for name, tensor in batch.items()
        }
        loss, same = task.loss(model, batch), task.loss(model, wider)
        torch.testing.assert_close(loss, same, rtol=1e-4, atol=1e-4)  # float32, other shapes

    def test_loss_of_fastspeech2_is_the_sum_of_its_parts(self):
        task = FastSpeech2Speech()
        torch.manual_seed(0)
        model = task.build_model(slots()).eval()
        batch = task.corpus.batch(task.rows("train")[:2])
        said = model(batch["phonemes"], batch["durations"], batch["pitch"], batch["energy"])
        errors: dict[str, list[np.ndarray]] = {name: [] for name in ("mel", "log_durations", "pitch", "energy")}
        for i in range(2):
            frames, count = batch["frames"][i], int((batch["phonemes"][i] > 0).sum())
            errors["mel"].append((said.mel[i, :frames] - batch["mel"][i, :frames]).abs().detach().numpy().ravel())
            for name, wanted in (
                ("log_durations", torch.log(1.0 + batch["durations"])),
                ("pitch", batch["pitch"]),
                ("energy", batch["energy"]),
            ):
                errors[name].append(((getattr(said, name) - wanted)[i, :count] ** 2).detach().numpy())
        expected = sum(np.concatenate(parts).mean() for parts in errors.values())
        assert task.loss(model, batch).item() == pytest.approx(expected, rel=1e-5)  # float32

    def test_stop_is_wanted_at_the_last_step_alone(self, monkeypatch):
        task = TransformerSpeech(frames_per_step=4)
        torch.manual_seed(0)
        model = task.build_model(slots()).eval()
        batch = task.corpus.batch(task.rows("train")[:3])
        seen = {}
        original = nn.functional.binary_cross_entropy_with_logits

        def spy(logits, wanted, pos_weight):
            seen.update(wanted=wanted, weight=pos_weight)
            return original(logits, wanted, pos_weight=pos_weight)

        monkeypatch.setattr(nn.functional, "binary_cross_entropy_with_logits", spy)
        task.loss(model, batch)
        steps = [-(-int(frames) // 4) for frames in batch["frames"]]
        assert seen["wanted"].tolist() == [float(i == count - 1) for count in steps for i in range(count)]
        assert seen["weight"] == 5.0

    def test_inputs_are_the_true_frames_one_step_late(self):
        task = TransformerSpeech(frames_per_step=4)
        batch = task.corpus.batch(task.rows("train")[:2])
        seen = []

        class Spy(nn.Module):
            def forward(self, phonemes, previous, padding):
                seen.append((previous, padding))
                raise StopIteration

        with pytest.raises(StopIteration):
            task.aligned(Spy(), batch)
        previous, padding = seen[0]
        mel = torch.cat((batch["mel"], torch.zeros(2, 3, 80)), dim=1)
        assert not previous[:, 0].any()
        for step in range(1, previous.shape[1]):
            assert torch.equal(previous[:, step].reshape(2, 4, 80), mel[:, 4 * (step - 1) : 4 * step])
        assert (~padding).sum(dim=1).tolist() == [-(-int(frames) // 4) for frames in batch["frames"]]

    @pytest.mark.parametrize("kind", TASKS)
    def test_few_steps_beat_the_mean_frame(self, kind):
        task = kind()
        torch.manual_seed(0)
        model = task.build_model(slots())
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        for batch in itertools.islice(task.batches("train", seed=0), 80):
            optimizer.zero_grad()
            task.loss(model, batch).backward()
            optimizer.step()
        model.eval()
        scores, floors = task.evaluate(model, "test"), task.floors("test")
        assert set(floors) == set(task.card.floors)
        assert set(scores.values) == {metric.name for metric in task.card.metrics}
        assert all(np.isfinite(values).all() for values in scores.values.values())
        assert all(floor.units == scores.units for floor in floors.values())
        metrics = {metric.name: metric for metric in task.card.metrics}
        assert task.card.primary_metric.name == "mcd"
        mean = floors["mean_frame"]
        assert metrics["mel_l1"].value(scores) < 0.95 * metrics["mel_l1"].value(mean)
        names = [artifact.name for artifact in task.samples(model)]
        assert names == ["spectrograms.png", "target.wav", "output.wav"]

    def test_floors_are_what_they_say(self):
        task = TransformerSpeech(frames_per_step=4)
        floors = task.floors("test")
        mean = task.corpus.statistics[0]
        for place, row in enumerate(task.rows("test")):
            mel = task.corpus[row].mel
            assert floors["mean_frame"].values["mel_l1"][place] == pytest.approx(np.abs(mel - mean).mean(), rel=1e-5)
            held = [mean if t < 4 else mel[t // 4 * 4 - 1] for t in range(len(mel))]
            assert floors["previous_frame"].values["mel_l1"][place] == pytest.approx(
                np.abs(mel - held).mean(), rel=1e-5
            )
            guessed = max(1, round(task.corpus.lengths[row] * task.corpus.mean_frames_per_phoneme))
            assert floors["mean_frame"].values["length_error"][place] == abs(guessed - len(mel)) / len(mel)
        # The made-up frames are the phonemes' own, but for noise of 0.1: mean magnitude 0.08.
        assert floors["phoneme_mean"].values["mel_l1"].max() < 0.12
        assert floors["phoneme_mean"].values["length_error"].max() == 0

    def test_the_reference_itself_has_no_distortion(self):
        task = FastSpeech2Speech()
        rows = task.rows("test")
        said = [torch.from_numpy(task.corpus[row].mel) for row in rows]
        scores = task._scores(rows, [0.0] * len(rows), said)
        for name in ("mcd", "msd", "length_error"):
            assert task.card.metrics[0].name == "mcd"
            assert scores.values[name].max() < 1e-4  # square roots of roundings
        # Pooled over utterances: sums over frames of what was said, as fairseq divides.
        assert scores.weights["mcd"].tolist() == [1 + 256 * (len(mel) - 1) // 275 for mel in said]

    @pytest.mark.parametrize("kind", TASKS)
    def test_longer_utterances_are_left_out(self, kind, monkeypatch):
        task = kind()
        frames = np.sort(task.corpus.frames[task.corpus.rows["test"]])
        longest, kept = int(frames[3]), int((frames <= frames[3]).sum())
        assert kept < 7
        monkeypatch.setattr(task, "utterance_lengths", replace(task.utterance_lengths, frames=longest))
        assert len(task.rows("test")) == kept
        monkeypatch.setattr(task, "utterance_lengths", replace(task.utterance_lengths, frames=3))
        with pytest.raises(ValueError, match="none of 7 test utterances has at most 3 frames"):
            task.rows("test")

    @pytest.mark.parametrize("pattern", [NS, CS, CC])
    def test_slots_of_the_transformer_are_asked_for_the_lengths_of_the_task(self, pattern):
        task = TransformerSpeech(pattern=pattern)
        asked = slots()
        task.build_model(asked)
        layers = transformer_task.SIZES["tiny"].layers
        assert asked[NS].lengths == [(48, None)] * layers
        assert asked[CS].lengths == [(40, None)] * layers
        assert asked[CC].lengths == [(40, 48)] * layers
        assert task.lengths == {NS: (48, None), CS: (40, None), CC: (40, 48)}[pattern]
        assert task.card.lengths["tiny"] == (40, 48)

    def test_slots_of_fastspeech2_are_asked_for_the_lengths_of_the_card(self):
        task = FastSpeech2Speech()
        asked = slots()
        task.build_model(asked)
        assert asked[NS].lengths == [(48, None)] * task.setting.layers + [(160, None)] * task.setting.layers
        assert task.lengths == task.card.lengths["tiny"] == (160, None)
        assert not asked[CS].lengths
        assert not asked[CC].lengths


@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "noncausal_cross"}, "pattern of task tts_.*'noncausal_cross'"),
        ({"data": "orignal"}, "data 'orignal'.*did you mean 'original'"),
        ({"data_root": "/there"}, "data_root=/there is read with data=original only"),
    ],
)
def test_wrong_option_is_one_line(kind, options, message):
    with pytest.raises(ValueError, match=message) as error:
        kind(**options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", [0, 161, 2.5, True])
def test_wrong_frames_per_step_is_one_line(value):
    with pytest.raises(ValueError, match=r"frames_per_step=.*from 1 to 160") as error:
        TransformerSpeech(frames_per_step=value)
    assert "\n" not in str(error.value)
