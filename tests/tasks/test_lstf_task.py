"""The forecasting task on synthetic weather: batches, the backbone, scores and floors."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

from attention_zoo import build
from attention_zoo.contract import Attention, Pattern
from tasks.lstf import data
from tasks.lstf.model import Informer
from tasks.lstf.task import SIZES, LongSeriesForecasting


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


@pytest.fixture
def task(monkeypatch):
    """The task on 4,000 hours of noisy daily waves in three channels."""
    hours = np.arange(4000)
    rng = np.random.default_rng(0)
    values = np.sin(2 * np.pi * hours[:, None] / 24 + np.arange(3)) + 0.1 * rng.normal(size=(4000, 3))
    series = data.Weather(hours, values.astype(np.float32), ("a", "b", "c"))
    monkeypatch.setattr(data, "load", lambda: series)
    return LongSeriesForecasting(pattern=Pattern.NONCAUSAL_CROSS)


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_batches_are_a_function_of_seed_and_index(task):
    batches = list(itertools.islice(task.batches("train", seed=1), 6))
    assert equal(next(task.batches("train", seed=1, start=5)), batches[5])
    assert not equal(batches[0], batches[1])
    assert not equal(batches[0], next(task.batches("train", seed=2)))
    held_out = list(task.batches("test", seed=1))
    assert equal(next(task.batches("test", seed=9, start=len(held_out) - 1)), held_out[-1])
    assert sum(len(batch["inputs"]) for batch in held_out) == len(task.starts("test"))


def test_batch_is_cut_from_one_window(task):
    task = LongSeriesForecasting(pattern="noncausal_cross", label_length=24, horizon=12)
    start = int(task.starts("validation")[0])
    batch = next(task.batches("validation", seed=0))
    whole, calendar = torch.from_numpy(task.values), torch.from_numpy(task.calendar)
    assert torch.equal(batch["inputs"][0], whole[start : start + 96])
    assert torch.equal(batch["targets"][0], whole[start + 96 : start + 108])
    assert torch.equal(batch["input_calendar"][0], calendar[start : start + 96])
    assert torch.equal(batch["target_calendar"][0], calendar[start + 72 : start + 108])
    assert task.tokens(batch) == len(batch["inputs"]) * 36


def test_test_windows_share_no_hour(task):
    rows = [row for start in task.starts("test") for row in range(start, start + task.window)]
    assert len(rows) == len(set(rows))


def test_perfect_forecast_scores_zero_and_floors_are_the_direct_computation(task):
    class Oracle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused = nn.Parameter(torch.zeros(1))
            self.targets = iter([batch["targets"] for batch in task.batches("test", seed=0)])

        def forward(self, inputs, input_calendar, target_calendar):
            return next(self.targets)

    scores = task.evaluate(Oracle(), "test")
    assert not scores.values["mse"].any()
    assert not scores.values["mae"].any()

    floors = task.floors("test")
    assert set(floors) == set(task.card.floors)
    assert task.card.floor in floors
    start = int(task.starts("test")[1])
    known, truth = task.values[start : start + 96], task.values[start + 96 : start + 120]
    for name, forecast in (("repeat_last", known[-1:]), ("daily_naive", known[-24:]), ("input_mean", known.mean(0))):
        assert floors[name].units == scores.units
        # The floors' means are float32 sums of 96 terms of unit scale.
        assert floors[name].values["mse"][1] == pytest.approx(((forecast - truth) ** 2).mean(), rel=1e-5)
        assert floors[name].values["mae"][1] == pytest.approx(np.abs(forecast - truth).mean(), rel=1e-5)


@pytest.mark.parametrize(("distil", "label"), [(False, 0), (True, 24)])
def test_training_step_is_finite_and_reaches_every_parameter(task, monkeypatch, distil, label):
    task = LongSeriesForecasting(pattern="noncausal_cross", distil=distil, label_length=label)
    torch.manual_seed(0)
    model = task.build_model(slots())
    task.loss(model, next(task.batches("train", seed=0))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_few_steps_beat_the_floor_on_a_daily_wave(task):
    torch.manual_seed(0)
    model = task.build_model(slots())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in itertools.islice(task.batches("train", seed=0), 60):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    model.eval()
    metric = task.card.primary_metric
    assert metric.value(task.evaluate(model, "test")) < 0.5 * metric.value(task.floors("test")["repeat_last"])


def test_slots_are_asked_for_the_lengths_of_the_card(task):
    asked = slots()
    task.build_model(asked)
    (target, source) = task.card.lengths["tiny"]
    assert asked[Pattern.NONCAUSAL_CROSS].lengths == [(target, source)] * SIZES["tiny"].decoder_layers
    assert asked[Pattern.NONCAUSAL_SELF].lengths == [(source, None)] * SIZES["tiny"].encoder_layers
    assert asked[Pattern.CAUSAL_SELF].lengths == [(target, None)] * SIZES["tiny"].decoder_layers
    assert task.lengths == (target, source)


@pytest.mark.parametrize("length", [24, 25, 96])
def test_distilling_halves_between_encoder_blocks(length):
    asked = slots()
    model = Informer(
        asked,
        channels=3,
        calendar_features=4,
        input_length=length,
        label_length=8,
        horizon=5,
        width=16,
        heads=2,
        hidden=16,
        encoder_layers=3,
        decoder_layers=1,
        distil=True,
        dropout=0.0,
    )
    half = (length + 1) // 2
    assert asked[Pattern.NONCAUSAL_SELF].lengths == [(length, None), (half, None), ((half + 1) // 2, None)]
    assert asked[Pattern.NONCAUSAL_CROSS].lengths == [(13, (half + 1) // 2)]
    assert model(torch.randn(2, length, 3), torch.randn(2, length, 4), torch.randn(2, 13, 4)).shape == (2, 5, 3)


@pytest.mark.parametrize("early", [0, 40])
def test_forecast_depends_on_the_whole_input(task, early):
    torch.manual_seed(0)
    model = task.build_model(slots()).eval()
    batch = {name: tensor.clone() for name, tensor in next(task.batches("test", seed=0)).items()}
    names = ("inputs", "input_calendar", "target_calendar")
    before = model(*(batch[name] for name in names))
    batch["inputs"][:, early] += 1.0
    after = model(*(batch[name] for name in names))
    assert (before != after).flatten(1).any(dim=1).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "causal_self"}, "pattern of task lstf 'causal_self'.*noncausal_cross"),
        ({"input_length": 12}, "input_length=12.*24"),
        ({"label_length": 97}, "label_length=97.*0 to 96"),
        ({"horizon": 0}, "horizon=0"),
    ],
)
def test_wrong_option_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        LongSeriesForecasting(**{"pattern": "noncausal_cross", **options})
    assert "\n" not in str(error.value)


def test_series_too_short_for_a_window_is_one_line(task):
    task = LongSeriesForecasting(input_length=900)
    with pytest.raises(ValueError, match="no window of 924 hours without a gap in the test part"):
        task.floors("test")


def test_sample_is_a_table_of_truth_and_forecast(task):
    model = task.build_model(slots()).eval()
    (artifact,) = task.samples(model)
    lines = artifact.content.decode().splitlines()
    assert lines[0] == "time,channel,truth,forecast"
    assert len(lines) == 1 + 24 * 3
