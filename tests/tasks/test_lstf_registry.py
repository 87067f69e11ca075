"""Parsing and joining the shipped weather, on small files of our own making."""

from __future__ import annotations

import numpy as np
import pytest

from tasks.lstf import registry

HEADER = "DateTime,WS50m_m/s,WD50m_deg,T2M_degC,PS_hPa"


def csv(*rows: str) -> bytes:
    return "\n".join([HEADER, *rows]).encode()


def test_site_is_parsed_by_hour():
    site = registry.parse_site(csv("2000-01-01 00:00:00,6.5,90,1.5,1000", "2000-01-01 01:00:00,7,180,2,1001"), "A")
    assert site.index.tolist() == [262968, 262969]  # 30 years of 365 days and 7 leap days, in hours
    np.testing.assert_array_equal(site.to_numpy(), np.float32([[6.5, 90, 1.5, 1000], [7, 180, 2, 1001]]))


@pytest.mark.parametrize("bad", ["", "nan", "inf", "broken"])
def test_row_without_a_number_is_left_out_and_makes_a_gap(bad):
    rows = [f"2000-01-01 0{hour}:00:00,{bad if hour == 2 else hour + 1},90,1,1000" for hour in range(5)]
    site = registry.parse_site(csv(*rows), "A")
    assert (site.index - site.index[0]).tolist() == [0, 1, 3, 4]


def test_byte_order_mark_is_no_part_of_the_first_column():
    content = b"\xef\xbb\xbf" + csv("2000-01-01 00:00:00,1,2,3,4")
    assert len(registry.parse_site(content, "A")) == 1


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
        registry.parse_site(content, "site X")
    assert "site X" in str(error.value)
    assert "\n" not in str(error.value)


def test_sites_join_at_common_hours_with_directions_on_the_circle():
    first = registry.parse_site(csv("2000-01-01 00:00:00,1,0,3,4", "2000-01-01 01:00:00,1,90,3,4"), "A")
    second = registry.parse_site(csv("2000-01-01 01:00:00,5,360,7,8", "2000-01-01 02:00:00,1,2,3,4"), "B")
    joined = registry.join_sites({"A": first, "B": second})
    assert joined.times.astype(str).tolist() == ["2000-01-01T01:00"]
    assert joined.names[:3] == ("A wind speed, m/s", "A wind direction, sine", "A wind direction, cosine")
    assert joined.names[8] == "B temperature, °C"
    # float32 sines of pi/2 and 2 pi are exact to about 1e-7.
    np.testing.assert_allclose(joined.values, [[1, 1, 0, 3, 4, 5, 0, 1, 7, 8]], atol=1e-6)
    with pytest.raises(ValueError, match="A, B have no hour in common"):
        registry.join_sites({"A": first.iloc[:1], "B": second.iloc[1:]})
