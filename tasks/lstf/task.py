"""Long-sequence time-series forecasting of hourly weather: data, backbone, loss, metrics and floors, joined."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from attention_zoo.contract import Pattern
from tasks.contract import Artifact, Batch, Metric, Recipe, Scores, Slots, Split, Task, TaskCard
from tasks.lstf import data
from tasks.lstf.model import Informer
from tasks.options import chosen, scored_pattern, whole
from tasks.sources import Source

_SHUFFLE = 0x157F  # own stream of random numbers for the order of the training windows


@dataclass(frozen=True)
class Size:
    """Lengths in hours, the backbone, and how it is trained."""

    input_length: int
    label_length: int
    horizon: int
    width: int
    heads: int
    hidden: int
    encoder_layers: int
    decoder_layers: int
    dropout: float
    batch: int
    recipe: Recipe


SIZES: Mapping[str, Size] = {
    "tiny": Size(
        input_length=96,
        label_length=0,
        horizon=24,
        width=64,
        heads=4,
        hidden=192,
        encoder_layers=1,
        decoder_layers=1,
        dropout=0.0,
        batch=32,
        recipe=Recipe(max_steps=300, learning_rate=3e-3, warmup_steps=30),
    ),
}


class LongSeriesForecasting(Task):
    """Forecast ``horizon`` hours of all channels from the ``input_length`` hours before, in one pass.

    Args:
        size: of the backbone and its recipe.
        pattern: under test; the attention from target to source (NC) is what is scored.
        input_length, label_length, horizon: in hours; None means: as the size says.
        distil: halve the source between encoder blocks, as Informer does.
    """

    card: ClassVar[TaskCard] = TaskCard(
        name="lstf",
        title="Long-sequence time-series forecasting (hourly weather)",
        patterns=(Pattern.NONCAUSAL_CROSS,),
        primary_pattern=Pattern.NONCAUSAL_CROSS,
        metrics=(
            Metric("mse", "standardised^2", False, "mean squared error over horizon and channels"),
            Metric("mae", "standardised", False, "mean absolute error over horizon and channels"),
        ),
        lengths={name: (size.label_length + size.horizon, size.input_length) for name, size in SIZES.items()},
        unit="window (input and horizon), no two overlapping",
        floors={
            "repeat_last": "the last known value at every step",
            "daily_naive": "the value at the same hour of the last known day",
            "input_mean": "the mean over the input at every step",
        },
        floor="repeat_last",
        source="MERRA-2 hourly weather, 4 sites, 2000-01 to 2017-06, from the package brightwind 2.7.0",
        licence=data.SOURCE.licence,
        citation="Zhou et al., Informer, AAAI 2021, arXiv:2012.07436; Gelaro et al., MERRA-2, J. Climate 30 (2017)",
    )
    sources: ClassVar[tuple[Source, ...]] = (data.SOURCE,)

    def __init__(
        self,
        *,
        size: str = "tiny",
        pattern: Pattern | str | None = None,
        input_length: int | None = None,
        label_length: int | None = None,
        horizon: int | None = None,
        distil: bool = False,
    ) -> None:
        self.setting = chosen("size of task lstf", size, SIZES)
        self.size = size
        self.pattern = scored_pattern(self.card, pattern)
        self.recipe = self.setting.recipe
        own = self.setting
        self.input_length = whole(
            "input_length",
            own.input_length if input_length is None else input_length,
            at_least=24,
            why="hours; the daily floor needs a day",
        )
        self.label_length = whole(
            "label_length",
            own.label_length if label_length is None else label_length,
            at_least=0,
            at_most=self.input_length,
            why="hours at the end of the input",
        )
        self.horizon = whole("horizon", own.horizon if horizon is None else horizon, at_least=1, why="hours")
        self.distil = distil

    @property
    def lengths(self) -> tuple[int, int | None]:
        """Lengths that the cross attention sees: the target, and the source after distilling."""
        source = self.input_length
        for _ in range(self.setting.encoder_layers - 1 if self.distil else 0):
            source = (source + 1) // 2
        return self.label_length + self.horizon, source

    @property
    def window(self) -> int:
        """Hours of a window: input and horizon."""
        return self.input_length + self.horizon

    @cached_property
    def weather(self) -> data.Weather:
        return data.load()

    @cached_property
    def values(self) -> np.ndarray:
        """All rows, standardised with the training part's statistics: [T, C]."""
        return data.standardise(self.weather)

    @cached_property
    def calendar(self) -> np.ndarray:
        return data.calendar(self.weather.hours)

    def prepare(self) -> None:
        data.load()

    def starts(self, split: Split) -> np.ndarray:
        """First rows of the split's windows: every possible one in training, else windows that do not overlap."""
        starts = self.weather.window_starts(split, self.window, 1 if split == "train" else self.window)
        if not len(starts):
            raise ValueError(f"no window of {self.window} hours without a gap in the {split} part")
        return starts

    def build_model(self, slots: Slots) -> nn.Module:
        return Informer(
            slots,
            channels=self.values.shape[1],
            calendar_features=self.calendar.shape[1],
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

    def _batch(self, starts: np.ndarray) -> Batch:
        values = torch.from_numpy(data.gather(self.values, starts, self.window))
        calendar = torch.from_numpy(data.gather(self.calendar, starts, self.window))
        return {
            "inputs": values[:, : self.input_length],
            "input_calendar": calendar[:, : self.input_length],
            "target_calendar": calendar[:, self.input_length - self.label_length :],
            "targets": values[:, self.input_length :],
        }

    def batches(self, split: Split, seed: int, start: int = 0) -> Iterator[Batch]:
        starts, size = self.starts(split), self.setting.batch
        if split != "train":
            for first in range(start * size, len(starts), size):
                yield self._batch(starts[first : first + size])
            return
        step = start
        while True:
            chosen = np.random.default_rng((_SHUFFLE, seed, step)).integers(len(starts), size=size)
            yield self._batch(starts[chosen])
            step += 1

    def tokens(self, batch: Batch) -> int:
        return int(batch["target_calendar"].shape[0] * batch["target_calendar"].shape[1])

    @staticmethod
    def _forecast(model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        parameter = next(model.parameters())
        inputs = (batch[name].to(parameter) for name in ("inputs", "input_calendar", "target_calendar"))
        return model(*inputs).to(parameter.dtype), batch["targets"].to(parameter)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(*self._forecast(model, batch))

    @torch.no_grad()
    def evaluate(self, model: nn.Module, split: Split) -> Scores:
        starts = self.starts(split)
        forecasts = []
        for first in range(0, len(starts), self.setting.batch):
            forecast, _ = self._forecast(model, self._batch(starts[first : first + self.setting.batch]))
            forecasts.append(forecast.cpu().numpy())
        return self._score(starts, np.concatenate(forecasts))

    def floors(self, split: Split) -> Mapping[str, Scores]:
        starts = self.starts(split)
        inputs = data.gather(self.values, starts, self.input_length)
        return {
            "repeat_last": self._score(starts, data.repeat_last(inputs, self.horizon)),
            "daily_naive": self._score(starts, data.daily_naive(inputs, self.horizon)),
            "input_mean": self._score(starts, data.input_mean(inputs, self.horizon)),
        }

    def _score(self, starts: np.ndarray, forecast: np.ndarray) -> Scores:
        targets = data.gather(self.values, starts + self.input_length, self.horizon)
        error = forecast.astype(np.float64) - targets
        hours = self.weather.hours[starts].astype("datetime64[h]")
        return Scores(
            units=[str(hour) for hour in hours],
            values={"mse": (error**2).mean(axis=(1, 2)), "mae": np.abs(error).mean(axis=(1, 2))},
        )

    @torch.no_grad()
    def samples(self, model: nn.Module) -> list[Artifact]:
        """Truth and forecast of the first validation window, as CSV: one row per hour and channel."""
        start = self.starts("validation")[:1]
        forecast, targets = (tensor.cpu().numpy()[0] for tensor in self._forecast(model, self._batch(start)))
        rows = np.arange(start[0] + self.input_length, start[0] + self.window)
        frame = pd.DataFrame(
            {
                "time": np.repeat(self.weather.hours[rows].astype("datetime64[h]"), len(self.weather.names)),
                "channel": list(self.weather.names) * self.horizon,
                "truth": targets.ravel(),
                "forecast": forecast.ravel(),
            }
        )
        buffer = io.StringIO()
        frame.to_csv(buffer, index=False, float_format="%.4f")
        return [Artifact("forecast.csv", "text/csv", buffer.getvalue().encode())]
