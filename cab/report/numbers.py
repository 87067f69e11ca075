"""Numbers as text: as many digits as the interval carries, sizes in binary units, times in the unit that fits."""

from __future__ import annotations

import math

MINUS = "\u2212"


def with_interval(value: float, half_width: float | None) -> str:
    """``0.913 ± 0.012``: two significant digits of the half-width, and the value to the same place."""
    if half_width is None:
        return plain(value)
    if not math.isfinite(half_width) or not math.isfinite(value):
        return f"{plain(value)} ± {plain(half_width)}"
    if half_width == 0.0:
        return f"{plain(value)} ± 0"
    places = max(0, min(6, 1 - math.floor(math.log10(half_width))))
    if abs(value) >= 1e5 or half_width < 1e-6:
        return f"{plain(value)} ± {_minus(f'{half_width:.1e}')}"
    return _minus(f"{value:,.{places}f} ± {half_width:,.{places}f}")


def plain(value: float, digits: int = 3) -> str:
    """``digits`` significant digits, without an exponent between 0.001 and 100,000."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0.0:
        return "0"
    magnitude = math.floor(math.log10(abs(value)))
    if magnitude < -3 or magnitude > 5:
        return _minus(f"{value:.{digits - 1}e}")
    return _minus(f"{value:,.{max(0, digits - 1 - magnitude)}f}")


def signed(value: float, half_width: float | None) -> str:
    """As :func:`with_interval`, with a plus sign where positive."""
    text = with_interval(value, half_width)
    return f"+{text}" if value > 0 else text


def size(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{plain(value)} {unit}"
        value /= 1024
    return f"{plain(value)} TiB"


def seconds(value: float) -> str:
    """Seconds, milliseconds or microseconds."""
    if abs(value) >= 1:
        return f"{plain(value)} s"
    return f"{plain(value * 1e3)} ms" if abs(value) >= 1e-3 else f"{plain(value * 1e6)} µs"


def count(value: float) -> str:
    """Whole numbers below a hundred thousand in full, larger ones with k, M, G, T."""
    if abs(value) < 1e5:
        return f"{value:,.0f}"
    for unit in ("k", "M", "G"):
        value /= 1e3
        if abs(value) < 1e3:
            return f"{plain(value)} {unit}"
    return f"{plain(value / 1e3)} T"


def length(length_q: int | None, length_kv: int | None) -> str:
    """``2,048``, or ``512×2,048`` for as many queries and keys."""
    if length_q is None:
        return "?"
    if length_kv is None or length_kv == length_q:
        return f"{length_q:,}"
    return f"{length_q:,}×{length_kv:,}"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
