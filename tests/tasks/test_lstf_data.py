"""Parts, windows, standardisation and calendar, on small series of our own making."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.lstf import data

START = np.datetime64("2000-01-01T00:00", "m")


def series_of(steps: np.ndarray, channels: int = 2, step: int = 60) -> data.Series:
    values = np.random.default_rng(0).normal(size=(len(steps), channels)).astype(np.float32)
    names = tuple(f"c{number}" for number in range(channels))
    return data.Series(START + steps * np.timedelta64(step, "m"), values, names, step)


@settings(max_examples=100, deadline=None)
@given(
    length=st.integers(20, 120),
    missing=st.sets(st.integers(1, 118), max_size=6),
    input_length=st.integers(1, 12),
    horizon=st.integers(1, 12),
    stride=st.integers(1, 12),
    step=st.sampled_from([15, 60]),
)
def test_targets_stay_in_their_part_and_no_window_crosses_a_gap(length, missing, input_length, horizon, stride, step):
    steps = np.array([number for number in range(length) if number not in missing])
    series = series_of(steps, step=step)
    borders = data.Shares(0.6, 0.2).borders(len(steps), step)
    window = input_length + horizon
    forecast: dict[str, set[int]] = {}
    for split, (begin, end) in borders.items():
        starts = series.window_starts((begin, end), input_length, horizon, stride).tolist()
        forecast[split] = {row for start in starts for row in range(start + input_length, start + window)}
        assert all(begin <= row < end for row in forecast[split])
        assert all(start >= 0 and steps[start + window - 1] - steps[start] == window - 1 for start in starts)
        if split == "train":  # nothing before it to reach back into
            assert all(start >= 0 and start + window <= end for start in starts)
        if stride == 1:  # no window is forgotten
            possible = range(max(0, begin - input_length), end - window + 1)
            assert starts == [start for start in possible if steps[start + window - 1] - steps[start] == window - 1]
        if stride >= horizon:  # each step is forecast once
            assert len(forecast[split]) == len(starts) * horizon
    assert not forecast["train"] & forecast["validation"]
    assert not forecast["validation"] & forecast["test"]


def test_every_step_of_a_held_out_part_is_forecast_once_where_the_stride_is_the_horizon():
    series = series_of(np.arange(1000))
    starts = series.window_starts((800, 1000), input_length=50, horizon=10, stride=10)
    assert (starts + 50).tolist() == list(range(800, 1000, 10))


def test_published_splits():
    """Informer, section 4.1 (12/4/4, 15/3/4 and 28/10/10 months of 30 days), and its code's 70/10/20 of the rows."""
    hourly = data.Months(12, 4, 4).borders(17_420, 60)
    assert hourly == {"train": (0, 8640), "validation": (8640, 11520), "test": (11520, 14400)}
    quarters = data.Months(12, 4, 4).borders(69_680, 15)
    assert quarters == {"train": (0, 34560), "validation": (34560, 46080), "test": (46080, 57600)}
    assert data.Months(15, 3, 4).borders(26_304, 60)["test"] == (18 * 720, 22 * 720)
    assert data.Months(28, 10, 10).borders(35_064, 60)["test"] == (38 * 720, 48 * 720)
    assert data.Shares(0.7, 0.2).borders(26_304, 60) == {
        "train": (0, 18_412),
        "validation": (18_412, 21_044),
        "test": (21_044, 26_304),
    }


def test_series_shorter_than_its_split_is_one_line():
    with pytest.raises(ValueError, match=r"14,399 rows are too few for a split into 12, 4 and 4 months.*14,400"):
        data.Months(12, 4, 4).borders(14_399, 60)


def test_standardisation_sees_the_training_part_only():
    series = series_of(np.arange(500), channels=3)
    scale = data.Scale.of(series, (0, 300))
    changed = series.values.copy()
    changed[300:] += 100.0
    other = data.Scale.of(data.Series(series.times, changed, series.names), (0, 300))
    np.testing.assert_array_equal(scale.mean, other.mean)
    np.testing.assert_array_equal(scale.std, other.std)
    standardised = scale.standardise(series.values)
    # Sums of 300 float32 values of unit scale, each rounded to 6e-8.
    np.testing.assert_allclose(standardised[:300].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardised[:300].std(axis=0), 1, atol=1e-5)
    np.testing.assert_allclose(scale.undo(standardised), series.values, atol=1e-5)


def test_constant_series_is_named():
    series = series_of(np.arange(100))
    series.values[:60, 1] = 3.0
    with pytest.raises(ValueError, match="series 'c1' is constant in the training part"):
        data.Scale.of(series, (0, 60))


@pytest.mark.parametrize("step", [15, 60])
def test_calendar_is_the_fields_of_the_time_from_minus_to_plus_a_half(step):
    times = START + np.arange(0, 366 * 24 * 60, step) * np.timedelta64(1, "m")  # 2000 is a leap year
    features = data.calendar(times, step)
    assert features.shape == (len(times), data.calendar_features(step))
    assert features.min() == -0.5
    assert features.max() == 0.5
    stamp = pd.Timestamp("2000-07-13 17:45" if step == 15 else "2000-07-13 17:00")  # a Thursday, day 195
    row = int((stamp.to_datetime64() - START) / np.timedelta64(step, "m"))
    expected = [17 / 23, 3 / 6, 12 / 30, 194 / 365]
    np.testing.assert_allclose(
        features[row], np.array([45 / 59, *expected] if step == 15 else expected) - 0.5, atol=1e-7
    )
