"""How the page writes numbers: durations, counts, percentages, differences in points."""

from __future__ import annotations

from typing import Any

from sail_train.report.reading import is_number

NOTHING = "–"


def duration(seconds: Any) -> str:
    """83 -> "1:23 min", 4.2 -> "4.2 s", 7300 -> "2:01 h"."""
    if not is_number(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d} min"
    return f"{minutes // 60}:{minutes % 60:02d} h"


def count(value: Any) -> str:
    """1234 -> "1,234", 1234567 -> "1.23M"."""
    if not is_number(value):
        return NOTHING
    for limit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e5, "k")):
        if abs(value) >= limit:
            return f"{value / (1e3 if letter == 'k' else limit):.3g}{letter}"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def percent(value: Any, digits: int = 1) -> str:
    """0.7654 -> "76.5"; the page says once that these are percent."""
    return f"{100 * value:.{digits}f}" if is_number(value) else NOTHING


def points(value: Any) -> str:
    """A difference of two shares in percentage points, with its sign."""
    if not is_number(value):
        return NOTHING
    return f"{100 * value:+.1f}".replace("-", "−")


def number(value: Any) -> str:
    """At most one digit after the point where there is much before it: 33.21 -> "33.2", 0.125 -> "0.125"."""
    if not is_number(value):
        return NOTHING
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"


FILTERS = {"duration": duration, "count": count, "percent": percent, "points": points, "number": number}
"""Names in the templates."""
