from __future__ import annotations

import pytest

from sail_train.report.formats import NOTHING, count, duration, number, percent, points


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (4.21, "4.2 s"),
        (45, "45 s"),
        (83, "1:23 min"),
        (3599.7, "1:00 h"),
        (7384, "2:03 h"),
        (None, NOTHING),
        ("x", NOTHING),
    ],
)
def test_durations(seconds: object, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0, "0"),
        (1234, "1,234"),
        (33.25, "33.2"),
        (123_456, "123k"),
        (1_130_000, "1.13M"),
        (7.2e12, "7.2T"),
        (None, NOTHING),
    ],
)
def test_counts(value: object, shown: str) -> None:
    assert count(value) == shown


def test_shares_and_differences_are_in_points() -> None:
    assert percent(0.7654) == "76.5" and percent(0.5, 0) == "50" and percent(None) == NOTHING
    assert points(0.143) == "+14.3" and points(-0.02) == "−2.0" and points(float("nan")) == NOTHING
    assert (
        number(33.21234) == "33.2"
        and number(0.125) == "0.125"
        and number(2048.3) == "2,048"
        and number(True) == NOTHING
    )
