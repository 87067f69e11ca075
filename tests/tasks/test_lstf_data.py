"""Parsing, gaps, splits, windows and floors of the weather data, on small series of our own making."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.lstf import data

HEADER = "DateTime,WS50m_m/s,WD50m_deg,T2M_degC,PS_hPa"


def csv(*rows: str) -> bytes:
    return "\n".join([HEADER, *rows]).encode()


def weather(hours: np.ndarray, channels: int = 2) -> data.Weather:
    values = np.random.default_rng(0).normal(size=(len(hours), channels)).astype(np.float32)
    return data.Weather(hours, values, tuple(f"c{i}" for i in range(channels)))


def test_site_is_parsed_by_hour():
    site = data.parse_site(csv("2000-01-01 00:00:00,6.5,90,1.5,1000", "2000-01-01 01:00:00,7,180,2,1001"), "A")
    assert site.index.tolist() == [262968, 262969]  # 30 years of 365 days and 7 leap days, in hours
    np.testing.assert_array_equal(site.to_numpy(), np.float32([[6.5, 90, 1.5, 1000], [7, 180, 2, 1001]]))


@pytest.mark.parametrize("bad", ["", "nan", "inf", "broken"])
def test_row_without_a_number_is_left_out_and_makes_a_gap(bad):
    rows = [f"2000-01-01 0{hour}:00:00,{bad if hour == 2 else hour + 1},90,1,1000" for hour in range(5)]
    site = data.parse_site(csv(*rows), "A")
    assert (site.index - site.index[0]).tolist() == [0, 1, 3, 4]


def test_byte_order_mark_is_no_part_of_the_first_column():
    content = b"\xef\xbb\xbf" + csv("2000-01-01 00:00:00,1,2,3,4")
    assert len(data.parse_site(content, "A")) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"DateTime,WS50m,WD50m_deg,T2M_degC,PS_hPa\n2000-01-01 00:00:00,1,2,3,4", "'WS50m_m/s'.*did you mean 'WS50m'"),
        (csv("2000-01-01 00:00:00,,2,3,4"), "none of its 1 rows"),
        (csv(), "none of its 0 rows"),
        (csv("2000-01-01 00:10:00,1,2,3,4"), "not whole hours, such as 2000-01-01 00:10:00"),
        (csv("2000-01-01 01:00:00,1,2,3,4", "2000-01-01 00:00:00,1,2,3,4"), "do not rise.*2000-01-01 00:00:00"),
        (csv("2000-01-01 01:00:00,1,2,3,4", "2000-01-01 01:00:00,1,2,3,4"), "do not rise"),
    ],
)
def test_unusable_file_is_one_line(content, message):
    with pytest.raises(ValueError, match=message) as error:
        data.parse_site(content, "site X")
    assert "site X" in str(error.value)
    assert "\n" not in str(error.value)


def test_sites_join_at_common_hours_with_directions_on_the_circle():
    first = data.parse_site(csv("2000-01-01 00:00:00,1,0,3,4", "2000-01-01 01:00:00,1,90,3,4"), "A")
    second = data.parse_site(csv("2000-01-01 01:00:00,5,360,7,8", "2000-01-01 02:00:00,1,2,3,4"), "B")
    joined = data.join_sites({"A": first, "B": second})
    assert joined.hours.tolist() == [262969]
    assert joined.names[:3] == ("A wind speed", "A wind direction (sine)", "A wind direction (cosine)")
    # float32 sines of pi/2 and 2 pi are exact to about 1e-7.
    np.testing.assert_allclose(joined.values, [[1, 1, 0, 3, 4, 5, 0, 1, 7, 8]], atol=1e-6)
    with pytest.raises(ValueError, match="A, B have no hour in common"):
        data.join_sites({"A": first.iloc[:1], "B": second.iloc[1:]})


@settings(max_examples=50, deadline=None)
@given(
    length=st.integers(30, 200),
    missing=st.sets(st.integers(1, 198), max_size=6),
    window=st.integers(1, 12),
    stride=st.integers(1, 12),
)
def test_windows_stay_in_their_split_and_cross_no_gap(length, missing, window, stride):
    hours = np.array([hour for hour in range(length) if hour not in missing])
    series = weather(hours)
    covered: dict[str, set[int]] = {}
    for split in ("train", "validation", "test"):
        first, end = series.rows(split)
        starts = series.window_starts(split, window, stride)
        covered[split] = {int(row) for start in starts for row in range(start, start + window)}
        assert all(first <= row < end for row in covered[split])
        assert all(hours[start + window - 1] - hours[start] == window - 1 for start in starts)
        if stride == 1:  # no window is forgotten
            count = sum(
                all(hours[row] - hours[start] == row - start for row in range(start, start + window))
                for start in range(first, end - window + 1)
            )
            assert len(starts) == count
        if stride >= window:
            assert len(covered[split]) == len(starts) * window
    assert not covered["train"] & covered["validation"]
    assert not covered["validation"] & covered["test"]


def test_splits_are_60_20_20_in_time():
    series = weather(np.arange(1000))
    assert [series.rows(split) for split in ("train", "validation", "test")] == [(0, 600), (600, 800), (800, 1000)]


def test_standardisation_sees_the_training_part_only():
    series = weather(np.arange(500), channels=3)
    standardised = data.standardise(series)
    changed = series.values.copy()
    changed[300:] += 100.0
    other = data.standardise(data.Weather(series.hours, changed, series.names))
    np.testing.assert_array_equal(standardised[:300], other[:300])
    # Sums of 300 float32 values of unit scale, each rounded to 6e-8.
    np.testing.assert_allclose(standardised[:300].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(standardised[:300].std(axis=0), 1, atol=1e-5)


def test_constant_series_is_named():
    series = weather(np.arange(100))
    series.values[:60, 1] = 3.0
    with pytest.raises(ValueError, match="series 'c1' is constant in the training part"):
        data.standardise(series)


def test_floors_against_loops():
    inputs = np.random.default_rng(1).normal(size=(3, 48, 2))
    repeat, daily, mean = (floor(inputs, 50) for floor in (data.repeat_last, data.daily_naive, data.input_mean))
    for step in range(50):
        past = 48 + step  # the same hour of the last day that is wholly known
        while past >= 48:
            past -= 24
        np.testing.assert_array_equal(repeat[:, step], inputs[:, 47])
        np.testing.assert_array_equal(daily[:, step], inputs[:, past])
        np.testing.assert_array_equal(mean[:, step], inputs.mean(axis=1))


def test_calendar_has_the_periods_of_day_and_year():
    hours = np.arange(3 * 8766)
    features = data.calendar(hours)
    np.testing.assert_allclose(features[:-24, [0, 2]], features[24:, [0, 2]], atol=1e-6)  # float32 sines
    np.testing.assert_allclose(features[:8766, [1, 3]], features[8766:17532, [1, 3]], atol=1e-6)
    assert np.abs(features).max() <= 1
