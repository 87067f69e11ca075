"""The forecasting tasks on synthetic series: batches, scores, floors, options and samples."""

from __future__ import annotations

import io
import itertools
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image
from recording_slots import slots
from torch import nn

from attention_zoo.contract import Pattern
from tasks.lstf import data, original, registry
from tasks.lstf import task as tasks
from tasks.lstf.plot import panel_channels
from tasks.published import ETT
from tasks.sources import DataUnavailable

NS, NC = Pattern.NONCAUSAL_SELF, Pattern.NONCAUSAL_CROSS
KINDS = {
    "lstf_weather": tasks.WeatherForecasting,
    "lstf_etth1": tasks.ETTh1Forecasting,
    "lstf_etth2": tasks.ETTh2Forecasting,
    "lstf_ettm1": tasks.ETTm1Forecasting,
    "lstf_ecl": tasks.ECLForecasting,
}


def waves(rows: int, channels: int, names: tuple[str, ...], step: int = 60) -> data.Series:
    """Noisy daily waves, each channel with a phase of its own."""
    steps = np.arange(rows)
    rng = np.random.default_rng(0)
    phase = 2 * np.pi * steps[:, None] * step / (24 * 60) + np.arange(channels)
    values = np.sin(phase) + 0.1 * rng.normal(size=(rows, channels))
    times = np.datetime64("2001-01-01T00:00", "m") + steps * np.timedelta64(step, "m")
    return data.Series(times, values.astype(np.float32), names, step)


@pytest.fixture
def weather(monkeypatch):
    """4,000 hours in place of the shipped weather."""
    series = waves(4000, registry.CHANNELS, registry.channel_names(registry.SITES))
    monkeypatch.setattr(registry, "load", lambda: series)
    return series


@pytest.fixture
def task(weather):
    return tasks.WeatherForecasting(pattern=NC)


@pytest.fixture(scope="module")
def etth1(tmp_path_factory):
    """A data root with a whole ETTh1.csv of waves."""
    root = tmp_path_factory.mktemp("ett")
    series = waves(original.ETTH1.rows, 7, original.ETTH1.columns)
    frame = pd.DataFrame(series.values, columns=list(series.names))
    frame.insert(0, "date", pd.DatetimeIndex(series.times).strftime("%Y-%m-%d %H:%M:%S"))
    (root / "ETT-small").mkdir()
    frame.to_csv(root / original.ETTH1.file, index=False)
    return str(root)


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


@pytest.mark.parametrize(("pattern", "length"), [(NC, 36), (NS, 96)])
def test_batch_is_cut_from_one_window(weather, pattern, length):
    task = tasks.WeatherForecasting(pattern=pattern, label_length=24, horizon=12)
    start = int(task.starts("validation")[0])
    batch = next(task.batches("validation", seed=0))
    whole, calendar = torch.from_numpy(task.values), torch.from_numpy(task.calendar)
    assert torch.equal(batch["inputs"][0], whole[start : start + 96])
    assert torch.equal(batch["targets"][0], whole[start + 96 : start + 108])
    assert torch.equal(batch["input_calendar"][0], calendar[start : start + 96])
    assert torch.equal(batch["target_calendar"][0], calendar[start + 72 : start + 108])
    assert task.tokens(batch) == len(batch["inputs"]) * length


@pytest.mark.parametrize("features", ["multivariate", "univariate"])
def test_blank_batch_has_the_shapes_of_a_batch(weather, features):
    task = tasks.WeatherForecasting(features=features, label_length=24)
    blank, batch = task.blank_batch(3), next(task.batches("train", seed=0))
    assert {name: tensor.shape[1:] for name, tensor in blank.items()} == {
        name: tensor.shape[1:] for name, tensor in batch.items()
    }
    assert {tensor.shape[0] for tensor in blank.values()} == {3}
    assert torch.isfinite(task.loss(task.build_model(slots()), blank))


@pytest.mark.parametrize("size", ["tiny", "base", "paper"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_sizes_need_no_data(kind, size):
    task = kind(size=size)
    with torch.device("meta"):
        model = task.build_model(slots())
    assert torch.isfinite(torch.tensor(sum(parameter.numel() for parameter in model.parameters())))
    assert task.loss(model, task.blank_batch(1)).shape == ()


def test_perfect_forecast_scores_zero(weather):
    task = tasks.WeatherForecasting(relative=False)

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


def test_floors_are_the_direct_computation_on_the_same_units(task):
    floors = task.floors("test")
    assert list(floors) == list(task.card.floors)
    assert task.card.floor in floors
    scores = task.evaluate(task.build_model(slots()).eval(), "test")
    starts = task.starts("test")
    assert len(scores.units) == (4000 - 3200) // 168  # whole weeks of the test part
    for name, forecast in (
        ("repeat_last", lambda known: known[-1:]),
        ("daily_naive", lambda known: known[-24:]),
        ("input_mean", lambda known: known.mean(axis=0)),
    ):
        assert floors[name].units == scores.units
        errors = [
            forecast(task.values[start : start + 96]) - task.values[start + 96 : start + 120] for start in starts[:7]
        ]
        # A week is seven windows of a day. The floors' means are float32 sums of 96 terms of unit scale.
        assert floors[name].values["mse"][0] == pytest.approx(np.mean(np.square(errors)), rel=1e-5)
        assert floors[name].values["mae"][0] == pytest.approx(np.mean(np.abs(errors)), rel=1e-5)


def test_held_out_targets_tile_their_part_and_share_no_step_with_training(task):
    rows = [row for start in task.starts("test") for row in range(start + 96, start + 120)]
    assert rows == list(range(3200, 3200 + len(rows)))
    assert len(rows) > 800 - 24
    training = task.starts("train") + task.window
    assert training.max() <= task.borders["validation"][0]


def test_stride_of_one_scores_every_window(weather):
    task = tasks.WeatherForecasting(stride=1)
    assert len(task.starts("test")) == 800 - 24 + 1
    assert len(task.floors("test")["repeat_last"].units) == 4


@pytest.mark.parametrize(("distil", "label"), [(False, 0), (True, 24)])
def test_training_step_is_finite_and_reaches_every_parameter(weather, distil, label):
    task = tasks.WeatherForecasting(distil=distil, label_length=label)
    model = task.build_model(slots())
    task.loss(model, next(task.batches("train", seed=0))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_forecast_does_not_depend_on_the_target(task):
    model = task.build_model(slots()).eval()
    batch = dict(next(task.batches("test", seed=0)))
    before, _ = task._forecast(model, batch)
    batch["targets"] = batch["targets"] + 1.0
    assert torch.equal(task._forecast(model, batch)[0], before)


@pytest.mark.parametrize("relative", [True, False])
def test_a_relative_forecast_follows_the_level_of_its_input(weather, relative):
    task = tasks.WeatherForecasting(relative=relative)
    model = task.build_model(slots()).eval().double()
    batch = dict(next(task.batches("test", seed=0)))
    before, _ = task._forecast(model, batch)
    after, _ = task._forecast(model, {**batch, "inputs": batch["inputs"] + 2.0})
    # 1e-5: values are float32 where two is added to them
    assert torch.allclose(after, before + 2.0, atol=1e-5) == relative


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_base_and_paper_say_values_as_informer_does(kind):
    assert [kind(size=size).relative for size in ("tiny", "base", "paper")] == [True, False, False]


def test_few_steps_beat_the_floor_on_a_daily_wave(task):
    model = task.build_model(slots())
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for batch in itertools.islice(task.batches("train", seed=0), 60):
        optimizer.zero_grad()
        task.loss(model, batch).backward()
        optimizer.step()
    model.eval()
    metric = task.card.primary_metric
    assert metric.value(task.evaluate(model, "test")) < 0.5 * metric.value(task.floors("test")["repeat_last"])


@pytest.mark.parametrize("size", ["tiny", "base", "paper"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_slots_are_asked_for_the_lengths_of_the_card(kind, size):
    asked = slots()
    task = kind(size=size, pattern=NC)
    with torch.device("meta"):
        task.build_model(asked)
    target, source = task.card.lengths[size]
    assert asked[NC].lengths == [(target, source)] * task.setting.decoder_layers
    assert asked[Pattern.CAUSAL_SELF].lengths == [(target, None)] * task.setting.decoder_layers
    assert len(asked[NS].lengths) == task.setting.encoder_layers
    assert task.lengths == (target, source)
    assert kind(size=size, pattern=NS).lengths == asked[NS].lengths[0] == (task.input_length, None)


@pytest.mark.parametrize(
    ("name", "features", "lengths", "layers", "steps"),
    [
        # Lengths and layers: CAB's scripts. Steps: six passes over the training windows in batches of 32.
        ("lstf_etth1", "multivariate", (336, 336, 720), (2, 1), 6 * (7585 // 32)),
        ("lstf_etth1", "univariate", (168, 168, 720), (2, 1), 6 * (7753 // 32)),
        ("lstf_etth2", "multivariate", (720, 336, 720), (2, 1), 6 * (7201 // 32)),
        ("lstf_etth2", "univariate", (336, 336, 720), (2, 1), 6 * (7585 // 32)),
        ("lstf_ettm1", "multivariate", (672, 384, 672), (2, 1), 6 * (33217 // 32)),
        ("lstf_ettm1", "univariate", (384, 384, 672), (2, 1), 6 * (33505 // 32)),
        ("lstf_ecl", "multivariate", (336, 336, 960), (3, 2), 6 * (9505 // 32)),
        ("lstf_ecl", "univariate", (336, 336, 960), (3, 2), 6 * (9505 // 32)),
        ("lstf_weather", "multivariate", (720, 336, 720), (3, 2), 6 * (18721 // 32)),
        ("lstf_weather", "univariate", (720, 336, 720), (3, 2), 6 * (18721 // 32)),
    ],
)
def test_paper_settings(name, features, lengths, layers, steps):
    task = KINDS[name](size="paper", data="original", features=features)
    assert (task.input_length, task.label_length, task.horizon) == lengths
    assert (task.setting.encoder_layers, task.setting.decoder_layers) == layers
    assert (task.setting.batch, task.recipe.learning_rate, task.setting.dropout) == (32, 1e-4, 0.05)
    assert task.recipe.max_steps == steps
    assert task.stride == 1
    rates = [task.recipe.schedule(steps // 6 * epoch, 0, steps) for epoch in range(6)]
    assert rates == [1, 1, 1 / 2, 1 / 4, 1 / 8, 1 / 16]  # the released code halves from its second epoch's end on


def test_original_is_read_split_and_scored(etth1):
    task = tasks.ETTh1Forecasting(data="original", data_root=etth1, input_length=24, horizon=24)
    assert task.borders["test"] == (11520, 14400)
    assert task.card.licence == "CC BY-ND 4.0"
    assert not task.sources
    assert len(task.floors("test")["daily_naive"].units) == 2880 // 168
    # Waves that repeat by the day, with noise of variance 0.01 in input and target, over a variance of about 0.51.
    metric = task.card.primary_metric
    assert metric.value(task.floors("test")["daily_naive"]) == pytest.approx(0.02 / 0.51, rel=0.05)


def test_windows_of_the_published_protocol(etth1):
    task = tasks.ETTh1Forecasting(size="paper", data="original", data_root=etth1)
    # Of the released code's loaders: 8640 - 336 - 720 + 1, and 2880 - 720 + 1 with inputs from the part before.
    assert [len(task.starts(split)) for split in ("train", "validation", "test")] == [7585, 2161, 2161]
    assert len(task.floors("test")["repeat_last"].units) == 4


def test_univariate_is_the_target_alone(etth1, weather):
    task = tasks.ETTh1Forecasting(data="original", data_root=etth1, features="univariate")
    every = tasks.ETTh1Forecasting(data="original", data_root=etth1)
    assert task.series.names == ("OT",)
    np.testing.assert_array_equal(task.values[:, 0], every.values[:, every.series.names.index("OT")])
    assert tasks.WeatherForecasting(features="univariate").series.names == ("NE temperature, °C",)


@pytest.mark.parametrize("name", [name for name in KINDS if name != "lstf_weather"])
def test_named_set_is_never_another_one(name, weather, tmp_path, monkeypatch):
    monkeypatch.setenv("CAB_CACHE", str(tmp_path))
    for key, published in ETT.items():
        monkeypatch.setitem(ETT, key, replace(published, url="http://127.0.0.1:9/ett.csv"))
    for options in ({"data": "registry"}, {"data": "original"}):
        with pytest.raises(DataUnavailable, match=r"(get|put) \S+\.csv .* (put it at|into) ") as error:
            KINDS[name](**options).prepare()
        assert "\n" not in str(error.value)


def test_weather_of_the_paper_has_a_card_of_its_own(tmp_path):
    task = tasks.WeatherForecasting(data="original", data_root=str(tmp_path))
    assert "NOAA" in task.card.source
    assert "MERRA-2" in tasks.WeatherForecasting.card.source
    assert not task.sources
    with pytest.raises(DataUnavailable, match=r"WTH\.csv"):
        task.prepare()


def test_cards_are_named_as_their_configs():
    assert {name: kind.card.name for name, kind in KINDS.items()} == {name: name for name in KINDS}
    for kind in KINDS.values():
        assert kind.card.patterns == (NS, NC)
        assert kind.card.floor in kind.card.floors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "tinny"}, "did you mean 'tiny'"),
        ({"pattern": "causal_self"}, "pattern of task lstf_weather 'causal_self'.*noncausal_cross"),
        ({"data": "registri"}, "did you mean 'registry'"),
        ({"features": "M"}, "features 'M'.*multivariate, univariate"),
        ({"split": "paper"}, "split 'paper'.*60/20/20"),
        ({"split": "coda", "data": "original"}, "did you mean 'code'"),
        ({"input_length": 12}, "input_length=12.*24"),
        ({"label_length": 97}, "label_length=97.*0 to 96"),
        ({"horizon": 0}, "horizon=0"),
        ({"stride": 0}, "stride=0"),
    ],
)
def test_wrong_option_is_one_line(options, message):
    with pytest.raises(ValueError, match=message) as error:
        tasks.WeatherForecasting(**{"pattern": "noncausal_cross", **options})
    assert "\n" not in str(error.value)


def test_floor_of_a_day_needs_a_day_of_quarters():
    with pytest.raises(ValueError, match=r"input_length=95.*96"):
        tasks.ETTm1Forecasting(input_length=95)


def test_series_too_short_for_a_window_is_one_line(weather):
    task = tasks.WeatherForecasting(horizon=900)
    with pytest.raises(ValueError, match="no window of 996 steps without a gap in the validation part"):
        task.floors("validation")


def test_another_number_of_series_is_one_line(monkeypatch):
    monkeypatch.setattr(registry, "load", lambda: waves(100, 2, ("a", "b")))
    with pytest.raises(ValueError, match="2 series were loaded, expected 20"):
        tasks.WeatherForecasting().prepare()


def test_sample_is_a_picture_and_a_table_in_the_units_of_the_data(task):
    picture, table = task.samples(task.build_model(slots()).eval())
    assert (picture.media_type, table.media_type) == ("image/png", "text/csv")
    pixels = image.imread(io.BytesIO(picture.content))
    assert pixels.shape[1] == 960
    assert len(np.unique(pixels.reshape(-1, pixels.shape[2]), axis=0)) > 10  # lines in several colours
    frame = pd.read_csv(io.BytesIO(table.content), parse_dates=["time"])
    assert list(frame.columns) == ["time", "channel", "target", "forecast"]
    assert len(frame) == 24 * registry.CHANNELS
    row = int(np.flatnonzero(task.series.times == frame.time[0].to_datetime64())[0])
    begin, end = task.borders["validation"]
    assert begin <= row < end
    # Written with four decimals; standardised and back in float32.
    np.testing.assert_allclose(frame.target.to_numpy().reshape(24, -1), task.series.values[row : row + 24], atol=1e-4)


def test_picture_shows_channels_from_first_to_last():
    assert panel_channels(1) == [0]
    assert panel_channels(7) == [0, 2, 4, 6]
    assert panel_channels(20) == [0, 6, 13, 19]
    assert panel_channels(3) == [0, 1, 2]
