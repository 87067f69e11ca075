"""The shipped weather: fetched once (33 MB), then from the cache."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.lstf import data
from tasks.lstf.task import LongSeriesForecasting


@pytest.mark.slow
def test_shipped_weather_is_what_the_card_says():
    weather = data.load()
    assert weather.values.shape == (153_384, 20)
    assert np.isfinite(weather.values).all()
    assert (np.diff(weather.hours) == 1).all()
    hours = weather.hours[[0, -1]].astype("datetime64[h]").astype(str)
    assert hours.tolist() == ["2000-01-01T00", "2017-06-30T23"]
    floors = LongSeriesForecasting().floors("test")
    assert len(floors["repeat_last"].units) >= 50
    means = {name: scores.values["mse"].mean() for name, scores in floors.items()}
    assert min(means, key=means.__getitem__) == "repeat_last"  # the strongest floor is the one to beat
