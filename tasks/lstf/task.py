"""Long-sequence time-series forecasting: five data sets, one backbone, loss, metrics and floors, joined.

One class per data set, since each has a card of its own; all they differ in is the table :data:`DATA_SETS`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.lstf import data, original, registry
from tasks.lstf.metrics import FLOORS, UnitErrors
from tasks.lstf.model import Informer, distilled
from tasks.lstf.plot import Shown, forecast_png
from tasks.options import chosen, original_folder, scored_pattern, whole
from tasks.sources import Source, cache_folder

_SHUFFLE = 0x157F  # own stream of random numbers for the order of the training windows
_DAYS_PER_UNIT = 7  # errors of neighbouring days are much alike, those of neighbouring weeks less so


@dataclass(frozen=True)
class Lengths:
    """Steps known, known steps that also start the target, steps wanted."""

    input: int
    label: int
    horizon: int


@dataclass(frozen=True)
class Size:
    """Lengths, the backbone, and how it is trained.

    Attributes:
        lengths: by the option ``features``.
        stride: steps from one held-out window to the next; None: the horizon, so that each step is forecast once.
        epochs: as many steps as so many passes over the training windows take, the rate halved by pass; None: the
            recipe's ``max_steps`` and schedule.
        relative: whether the model sees and says values relative to the last known one.
    """

    lengths: Mapping[str, Lengths]
    width: int
    heads: int
    hidden: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    batch: int
    recipe: Recipe
    stride: int | None = None
    epochs: int | None = None
    relative: bool = False


def _both(lengths: Lengths) -> Mapping[str, Lengths]:
    return {"multivariate": lengths, "univariate": lengths}


TINY = Size(
    lengths=_both(Lengths(96, 0, 24)),
    width=64,
    heads=4,
    hidden=256,
    encoder_layers=2,
    decoder_layers=1,
    dropout=0.0,
    batch=32,
    recipe=Recipe(max_steps=500, learning_rate=2e-3, warmup_steps=50),
    relative=True,
)
BASE = Size(
    lengths=_both(Lengths(336, 168, 336)),
    width=512,
    heads=8,
    hidden=2048,
    encoder_layers=3,
    decoder_layers=2,
    dropout=0.05,
    batch=32,
    recipe=Recipe(max_steps=30_000, learning_rate=1e-4, warmup_steps=1000, weight_decay=0.0, betas=(0.9, 0.999)),
)


@dataclass(frozen=True)
class Halving:
    """``2^-max(0, floor(t / every) - 1)``: half the rate after each pass but the first, as Informer's code trains."""

    every: int

    def __call__(self, step: int, warmup: int, total: int) -> float:
        return 0.5 ** max(0, step // self.every - 1)


def _paper(multivariate: Lengths, univariate: Lengths, *, encoder_layers: int, decoder_layers: int) -> Size:
    """CAB's setting: Informer's defaults and its lengths; Adam at 1e-4 for 6 epochs of batches of 32, unclipped."""
    return Size(
        lengths={"multivariate": multivariate, "univariate": univariate},
        width=512,
        heads=8,
        hidden=2048,
        encoder_layers=encoder_layers,
        decoder_layers=decoder_layers,
        dropout=0.05,
        batch=32,
        recipe=Recipe(
            max_steps=0,
            learning_rate=1e-4,
            warmup_steps=0,
            weight_decay=0.0,
            betas=(0.9, 0.999),
            gradient_clip=None,
        ),
        stride=1,
        epochs=6,
    )


@dataclass(frozen=True)
class Feed:
    """Where values come from, and what is known of them before they are there.

    Attributes:
        rows, channels: how many; ``step`` minutes from row to row.
        target: the series of the univariate form.
        splits: by name; the first is the default.
        load: the series, or a :class:`~tasks.sources.DataUnavailable` or ``ValueError`` of one line.
    """

    rows: int
    channels: int
    step: int
    target: str
    splits: Mapping[str, data.Months | data.Shares]
    load: Callable[[], data.Series]


@dataclass(frozen=True)
class DataSet:
    """What a class of this file is made of: its published file and its paper size."""

    layout: original.Layout
    paper: Size

    @property
    def sizes(self) -> Mapping[str, Size]:
        return {"tiny": TINY, "base": BASE, "paper": self.paper}

    def feed(self, data: str, data_root: str | None) -> Feed:
        folder = original_folder(data, data_root, self.layout.folder)
        if folder is None:
            return self._registry_feed()
        return self._layout_feed(partial(original.load, self.layout, folder))

    def _registry_feed(self) -> Feed:
        """Of the weather a stand-in; of a named set nothing: another data set under its name would be a lie."""
        if self.layout is original.WTH:
            return Feed(
                rows=registry.ROWS,
                channels=registry.CHANNELS,
                step=60,
                target=registry.TARGET,
                splits={"60/20/20": data.Shares(train=0.6, test=0.2)},
                load=lambda: registry.load(),
            )
        return self._layout_feed(partial(_not_in_the_registry, self.layout))

    def _layout_feed(self, load: Callable[[], data.Series]) -> Feed:
        own = self.layout
        return Feed(own.rows, own.channels, own.step, own.target, own.splits, load)


def _not_in_the_registry(layout: original.Layout) -> data.Series:
    folder = cache_folder() / "original" / layout.folder
    raise original.unavailable(layout, folder, "no registry package carries it, only task.data=original has it")


DATA_SETS: Mapping[str, DataSet] = {
    "lstf_weather": DataSet(
        original.WTH,
        _paper(Lengths(720, 336, 720), Lengths(720, 336, 720), encoder_layers=3, decoder_layers=2),
    ),
    "lstf_etth1": DataSet(
        original.ETTH1,
        _paper(Lengths(336, 336, 720), Lengths(168, 168, 720), encoder_layers=2, decoder_layers=1),
    ),
    "lstf_etth2": DataSet(
        original.ETTH2,
        _paper(Lengths(720, 336, 720), Lengths(336, 336, 720), encoder_layers=2, decoder_layers=1),
    ),
    "lstf_ettm1": DataSet(
        original.ETTM1,
        _paper(Lengths(672, 384, 672), Lengths(384, 384, 672), encoder_layers=2, decoder_layers=1),
    ),
    "lstf_ecl": DataSet(
        original.ECL,
        _paper(Lengths(336, 336, 960), Lengths(336, 336, 960), encoder_layers=3, decoder_layers=2),
    ),
}


def _cross_lengths(size: Size) -> tuple[int, int]:
    """What the cross attention sees: the target, and the source after distilling."""
    lengths = size.lengths["multivariate"]
    return lengths.label + lengths.horizon, distilled(lengths.input, size.encoder_layers - 1)


def _card(name: str, title: str, source: str, licence: str, citation: str = "") -> TaskCard:
    return TaskCard(
        name=name,
        title=f"Long-sequence time-series forecasting ({title})",
        patterns=(Pattern.NONCAUSAL_SELF, Pattern.NONCAUSAL_CROSS),
        primary_pattern=Pattern.NONCAUSAL_CROSS,
        metrics=(
            Metric("mse", "standardised^2", False, "mean squared error over windows, horizon and channels"),
            Metric("mae", "standardised", False, "mean absolute error over windows, horizon and channels"),
        ),
        lengths={size: _cross_lengths(setting) for size, setting in DATA_SETS[name].sizes.items()},
        unit="stretch of the test part, a week or the horizon if longer: mean error of all forecasts of its steps",
        floors={
            "repeat_last": "the last known value at every step",
            "daily_naive": "the value at the same time of the last known day",
            "input_mean": "the mean over the input at every step",
        },
        floor="repeat_last",
        source=source,
        licence=licence,
        citation=f"Zhou et al., Informer, AAAI 2021, arXiv:2012.07436{citation}",
    )


def _original_card(name: str) -> TaskCard:
    layout = DATA_SETS[name].layout
    return _card(name, layout.name, layout.source, layout.licence, layout.citation)


class LongSeriesForecasting(Task):
    """Forecast ``horizon`` steps of all channels from the ``input_length`` steps before, in one pass.

    Args:
        size: of the backbone and its recipe.
        pattern: under test; NC (from target to source) or NS (in the encoder).
        data: ``registry`` (hourly weather of a package; no other series is in one) or ``original``.
        data_root: folder of the original data set; None: its own in the cache.
        features: ``multivariate`` (all channels from all) or ``univariate`` (the target series from itself).
        split: by name: ``paper`` or, of ECL and Weather, ``code``; ``60/20/20`` of the registry's; None: the first.
        input_length, label_length, horizon: in steps; None: as the size says.
        stride: steps from one held-out window to the next; None: as the size says.
        distil: halve the source between encoder layers, as Informer does.
        relative: give the model each channel relative to its last known value, and add that to what it says: NLinear's
            normalisation (Zeng et al., "Are Transformers Effective for Time Series Forecasting?", AAAI 2023,
            arXiv:2205.13504, section 4), which Informer lacks; None: as the size says.
    """

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        data: str = "registry",
        data_root: str | None = None,
        features: str = "multivariate",
        split: str | None = None,
        input_length: int | None = None,
        label_length: int | None = None,
        horizon: int | None = None,
        stride: int | None = None,
        distil: bool = True,
        relative: bool | None = None,
    ) -> None:
        card = type(self).card
        data_set = DATA_SETS[card.name]
        self.setting = chosen(f"size of task {card.name}", size, data_set.sizes)
        self.size, self.features, self.distil = size, features, distil
        self.relative = self.setting.relative if relative is None else relative
        self.pattern = scored_pattern(card, pattern)
        self.feed = data_set.feed(data, data_root)
        if data == "original" and self.sources:
            self.card = _original_card(card.name)
            self.sources = ()  # type: ignore[misc]
        self.parts = chosen("split", next(iter(self.feed.splits)) if split is None else split, self.feed.splits)
        self._take_lengths(chosen("features", features, self.setting.lengths), input_length, label_length, horizon)
        self.stride = whole("stride", _first(stride, self.setting.stride, self.horizon), at_least=1, why="steps")
        self.recipe = self._recipe()

    def _take_lengths(
        self, own: Lengths, input_length: int | None, label_length: int | None, horizon: int | None
    ) -> None:
        self.input_length = whole(
            "input_length",
            _first(input_length, own.input),
            at_least=self.steps_per_day,
            why="steps; the daily floor needs a day",
        )
        self.label_length = whole(
            "label_length",
            _first(label_length, own.label),
            at_least=0,
            at_most=self.input_length,
            why="steps at the end of the input",
        )
        self.horizon = whole("horizon", _first(horizon, own.horizon), at_least=1, why="steps")

    def _recipe(self) -> Recipe:
        """The size's; where it counts epochs, with the steps that they take on a file without gaps."""
        if self.setting.epochs is None:
            return self.setting.recipe
        _, end = self.parts.borders(self.feed.rows, self.feed.step)["train"]
        steps = max(1, (end - self.window + 1) // self.setting.batch)
        return replace(self.setting.recipe, max_steps=self.setting.epochs * steps, schedule=Halving(every=steps))

    @property
    def steps_per_day(self) -> int:
        return data.MINUTES_PER_DAY // self.feed.step

    @property
    def channels(self) -> int:
        return 1 if self.features == "univariate" else self.feed.channels

    @property
    def lengths(self) -> tuple[int, int | None]:
        """NC: the target, and the source after distilling. NS: the source as the first encoder layer sees it."""
        if self.pattern is Pattern.NONCAUSAL_SELF:
            return self.input_length, None
        return self.label_length + self.horizon, distilled(
            self.input_length, self.setting.encoder_layers - 1 if self.distil else 0
        )

    @property
    def window(self) -> int:
        """Steps of a window: input and horizon."""
        return self.input_length + self.horizon

    @cached_property
    def series(self) -> data.Series:
        """All rows, in the units of the data; of the univariate form the target alone."""
        whole_series = self.feed.load()
        if whole_series.values.shape[1] != self.feed.channels:
            raise ValueError(f"{whole_series.values.shape[1]} series were loaded, expected {self.feed.channels}")
        if self.features == "multivariate":
            return whole_series
        column = whole_series.names.index(self.feed.target)
        return replace(whole_series, values=whole_series.values[:, [column]], names=(self.feed.target,))

    @cached_property
    def borders(self) -> data.Borders:
        return self.parts.borders(len(self.series.times), self.feed.step)

    @cached_property
    def scale(self) -> data.Scale:
        return data.Scale.of(self.series, self.borders["train"])

    @cached_property
    def values(self) -> np.ndarray:
        """All rows, standardised with the training part's statistics: [T, C]."""
        return self.scale.standardise(self.series.values)

    @cached_property
    def calendar(self) -> np.ndarray:
        return data.calendar(self.series.times, self.feed.step)

    def prepare(self) -> None:
        self.series  # noqa: B018 - fetched, unpacked and checked by being looked at

    def starts(self, split: Split) -> np.ndarray:
        """First rows of the split's windows: every possible one in training, else one every ``stride`` steps."""
        stride = 1 if split == "train" else self.stride
        starts = self.series.window_starts(self.borders[split], self.input_length, self.horizon, stride)
        if not len(starts):
            raise ValueError(f"no window of {self.window} steps without a gap in the {split} part")
        return starts

    def build_model(self, slots: Slots) -> nn.Module:
        return Informer(
            slots,
            channels=self.channels,
            calendar_features=data.calendar_features(self.feed.step),
            input_length=self.input_length,
            label_length=self.label_length,
            horizon=self.horizon,
            width=self.setting.width,
            heads=self.setting.heads,
            hidden=self.setting.hidden,
            encoder_layers=self.setting.encoder_layers,
            decoder_layers=self.setting.decoder_layers,
            distil=self.distil,
            dropout=self.setting.dropout,
        )

    def _cut(self, values: Tensor, calendar: Tensor) -> Batch:
        """A batch from windows of values [B, window, C] and of the calendar [B, window, K]."""
        return {
            "inputs": values[:, : self.input_length],
            "input_calendar": calendar[:, : self.input_length],
            "target_calendar": calendar[:, self.input_length - self.label_length :],
            "targets": values[:, self.input_length :],
        }

    def _batch(self, starts: np.ndarray) -> Batch:
        return self._cut(
            torch.from_numpy(data.gather(self.values, starts, self.window)),
            torch.from_numpy(data.gather(self.calendar, starts, self.window)),
        )

    def blank_batch(self, rows: int = 1) -> Batch:
        calendar = torch.zeros(rows, self.window, data.calendar_features(self.feed.step))
        return self._cut(torch.zeros(rows, self.window, self.channels), calendar)

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        starts, size = self.starts(split), self.setting.batch
        if split != "train":
            for first in range(start * size, len(starts), size):
                yield self._batch(starts[first : first + size])
            return
        step = start
        while True:
            drawn = np.random.default_rng((_SHUFFLE, seed, step)).integers(len(starts), size=size)
            yield self._batch(starts[drawn])
            step += 1

    def tokens(self, batch: Batch) -> int:
        rows = batch["inputs"].shape[0]
        return int(rows * self.lengths[0])

    def _forecast(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        parameter = next(model.parameters())
        names = ("inputs", "input_calendar", "target_calendar", "targets")
        inputs, *calendars, targets = (batch[name].to(parameter) for name in names)
        level = inputs[:, -1:] if self.relative else torch.zeros_like(inputs[:, -1:])
        return model(inputs - level, *calendars).to(parameter.dtype) + level, targets

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(*self._forecast(model, batch))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        def forecast(starts: np.ndarray) -> np.ndarray:
            return self._forecast(model, self._batch(starts))[0].float().cpu().numpy()

        return self._errors(split, {"model": forecast})["model"]

    def floors(self, split: Split) -> Mapping[str, Scores]:
        def of(name: str) -> Callable[[np.ndarray], np.ndarray]:
            return lambda starts: FLOORS[name](
                data.gather(self.values, starts, self.input_length), self.horizon, self.steps_per_day
            )

        return self._errors(split, {name: of(name) for name in FLOORS})

    def _errors(self, split: Split, forecasts: Mapping[str, Callable[[np.ndarray], np.ndarray]]) -> dict[str, Scores]:
        """The scores of functions from first rows [N] to forecasts [N, H, C], batch by batch."""
        starts, rows_per_unit = self.starts(split), max(self.horizon, _DAYS_PER_UNIT * self.steps_per_day)
        errors = {name: UnitErrors(self.borders[split], rows_per_unit) for name in forecasts}
        for first in range(0, len(starts), self.setting.batch):
            rows = starts[first : first + self.setting.batch]
            targets = data.gather(self.values, rows + self.input_length, self.horizon)
            for name, forecast in forecasts.items():
                errors[name].add(rows + self.input_length, forecast(rows), targets)
        return {name: sums.scores(self.series.times) for name, sums in errors.items()}

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """The forecast of the window in the middle of the validation part, as a picture and as a table."""
        starts = self.starts("validation")
        start = starts[len(starts) // 2 :][:1]
        forecast, targets = (tensor.float().cpu().numpy()[0] for tensor in self._forecast(model, self._batch(start)))
        rows = slice(int(start[0]), int(start[0]) + self.window)
        shown = Shown(
            times=self.series.times[rows],
            inputs=self.series.values[rows][: self.input_length],
            targets=self.scale.undo(targets),
            forecast=self.scale.undo(forecast),
            names=self.series.names,
        )
        return [
            Artifact("forecast.png", "image/png", forecast_png(shown, f"{self.card.title}: validation part")),
            Artifact("forecast.csv", "text/csv", _table(shown)),
        ]


def _first(*values: int | None) -> int:
    """The first that is not None."""
    return next(value for value in values if value is not None)


def _table(shown: Shown) -> bytes:
    """CSV: one row per step of the horizon and channel, in the units of the data."""
    frame = pd.DataFrame(
        {
            "time": np.repeat(shown.times[len(shown.inputs) :], len(shown.names)),
            "channel": list(shown.names) * len(shown.targets),
            "target": shown.targets.ravel(),
            "forecast": shown.forecast.ravel(),
        }
    )
    buffer = io.StringIO()
    frame.to_csv(buffer, index=False, float_format="%.4f")
    return buffer.getvalue().encode()


class WeatherForecasting(LongSeriesForecasting):
    """Hourly weather: of the registry's package, or Informer's WTH."""

    card: TaskCard = _card(
        "lstf_weather",
        "hourly weather",
        "MERRA-2 hourly weather, 4 sites, 2000-01 to 2017-06, from the package brightwind 2.7.0",
        registry.SOURCE.licence,
        "; Gelaro et al., MERRA-2, J. Climate 30 (2017)",
    )
    sources: ClassVar[tuple[Source, ...]] = (registry.SOURCE,)


class ETTh1Forecasting(LongSeriesForecasting):
    """An electricity transformer by the hour, the first of two."""

    card: TaskCard = _original_card("lstf_etth1")


class ETTh2Forecasting(LongSeriesForecasting):
    """An electricity transformer by the hour, the second of two."""

    card: TaskCard = _original_card("lstf_etth2")


class ETTm1Forecasting(LongSeriesForecasting):
    """An electricity transformer by the quarter of an hour, the first of two."""

    card: TaskCard = _original_card("lstf_ettm1")


class ECLForecasting(LongSeriesForecasting):
    """Electricity consumption of 321 clients by the hour."""

    card: TaskCard = _original_card("lstf_ecl")
