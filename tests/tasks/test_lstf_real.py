"""The shipped weather: fetched once (33 MB), then from the cache."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.lstf import registry
from tasks.lstf.task import WeatherForecasting


@pytest.mark.slow
def test_shipped_weather_is_what_the_card_says():
    weather = registry.load()
    assert weather.values.shape == (registry.ROWS, registry.CHANNELS)
    assert registry.TARGET in weather.names
    assert np.isfinite(weather.values).all()
    assert (np.diff(weather.times) == np.timedelta64(60, "m")).all()
    assert weather.times[[0, -1]].astype(str).tolist() == ["2000-01-01T00:00", "2017-06-30T23:00"]
    task = WeatherForecasting()
    assert task.borders["test"] == (122_708, 153_384)
    floors = task.floors("test")
    assert len(floors["repeat_last"].units) == 182
    means = {name: task.card.primary_metric.value(scores) for name, scores in floors.items()}
    assert min(means, key=means.__getitem__) == "repeat_last"  # the strongest floor is the one to beat
