r"""Exact values -> text: decimals that end, rounded ones with their rounding stated, fractions as \frac{p}{q}."""

from __future__ import annotations

from fractions import Fraction


def ends(value: Fraction, places: int) -> bool:
    """Whether `value` has no more than `places` decimals."""
    return (value * 10**places).denominator == 1


def is_tie(value: Fraction, places: int) -> bool:
    """Whether rounding to `places` is up to convention: exactly half way between two decimals."""
    return (value * 10**places * 2).denominator == 1 and not ends(value, places)


def decimal(value: Fraction, places: int = 2) -> str:
    """The nearest decimal of at most `places`, without zeros at its end.

    ValueError for a value half way between two: what is asked of it would have two right answers.
    """
    if is_tie(value, places):
        raise ValueError(f"{value} lies half way between two decimals of {places} places; ask something else")
    scaled = round(value * 10**places)
    sign, digits = "-" if scaled < 0 else "", f"{abs(scaled):0{places + 1}d}"
    if places == 0:
        return sign + digits
    return f"{sign}{digits[:-places]}.{digits[-places:]}".rstrip("0").rstrip(".")


def fraction(value: Fraction) -> str:
    r"""3, \frac{7}{2} or -\frac{1}{3}: reduced, as the verifier "math" reads it."""
    if value.denominator == 1:
        return str(value.numerator)
    return rf"{'-' if value < 0 else ''}\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"


def plain(value: Fraction) -> str:
    """3, 7/2 or -1/3: as it stands in a thought."""
    return str(value)
