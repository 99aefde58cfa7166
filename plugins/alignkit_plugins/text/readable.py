"""Numbers as a person reads them, with as many digits as they deserve."""

from __future__ import annotations

from collections.abc import Mapping
from sys import float_info
from typing import Any

from alignkit.io import text


def number(value: Any) -> float | None:
    """A finite number of a file, or None. Texts are none, even "nan"."""
    known = (
        isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= float_info.max
    )
    return float(value) if known else None


def short(value: Any) -> str:
    """Four significant digits: `0.001235`, `1,235`; `-` for None."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}"
    if 1e3 <= abs(value) < 1e15:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def bounds(estimate: Any) -> tuple[float | None, float | None, float | None]:
    """Mean, low and high of an estimate; None for each that is missing."""
    known = estimate if isinstance(estimate, Mapping) else {}
    return number(known.get("mean")), number(known.get("low")), number(known.get("high"))


def size(count: float) -> str:
    """`1.2 MB`"""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def duration(seconds: float | None) -> str:
    """`1h05m`, `1m05s` or `7.3s`; `-` for None."""
    if seconds is None:
        return "-"
    minutes = int(seconds // 60)
    return f"{minutes // 60}h{minutes % 60:02d}m" if minutes >= 60 else text.duration(seconds)


def percentage(value: Any, whole: float = 1) -> str:
    """`6%` of a whole; `-` for what is no number."""
    part = number(value)
    return "-" if part is None else f"{part / whole:.0%}"
