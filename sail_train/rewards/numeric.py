"""Verifiers of numbers: one exact number, a number within 5% (charts), the digits of a grid."""

from __future__ import annotations

import re
from fractions import Fraction

from sail_train.rewards.config import VerifierConfig
from sail_train.rewards.format import FinalAnswer
from sail_train.rewards.text import normalise
from sail_train.types import Score

NUMBER = re.compile(r"(?<![\w.])[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?|(?<![\w.])[-+]?\.\d+")
TOLERANCE = Fraction(5, 100)
YEARS = range(1000, 3001)


def numbers(text: str) -> list[Fraction]:
    """The number literals of `text`; a minus between two digits is an operator, so "3-1" holds 3 and -1."""
    return [Fraction(found.replace(",", "")) for found in NUMBER.findall(text[:1000])]


def number(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """Exactly one number literal, of exactly the true value; a sum that was not carried out holds two."""
    truth, given = numbers(answer), numbers(final.text)
    if len(truth) != 1:
        return Score(value=0.0, status="error", detail=f"the truth {answer!r} is not one number; use 'math' or 'exact'")
    if len(given) != 1:
        return Score(value=0.0, status="unparsable", detail=f"{len(given)} numbers instead of one")
    return Score(value=float(given[0] == truth[0]))


def relaxed(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """ChartQA: a number within 5% of the true one, the bound included; years and words must be exact."""
    truth, given = _chart_value(answer), _chart_value(final.text)
    if truth is None or given is None:
        return Score(value=float(normalise(answer) == normalise(final.text)))
    if truth == 0 or (truth.denominator == 1 and int(truth) in YEARS and "%" not in answer):
        return Score(value=float(given == truth))
    return Score(value=float(abs(given - truth) <= TOLERANCE * abs(truth)))


def grid(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """All digits in reading order, none missing and none added, however they are separated."""
    truth, given = digits(answer), digits(final.text)
    if not truth:
        return Score(value=0.0, status="error", detail=f"the truth {answer!r} has no digit; use 'exact'")
    if not given:
        return Score(value=0.0, status="unparsable", detail="no digit")
    return Score(value=float(truth == given))


def digits(text: str) -> list[str]:
    return re.findall(r"[0-9]", text)


def digit_share(answer: str, given: str) -> float:
    """Share of places that hold the same digit; missing and added ones count as wrong."""
    pairs = (digits(answer), digits(given))
    same = sum(a == b for a, b in zip(*pairs, strict=False))
    return same / max(len(pairs[0]), len(pairs[1]), 1)


def _chart_value(text: str) -> Fraction | None:
    stripped = text.strip().strip("$").removesuffix("\\%").removesuffix("%").replace(",", "").strip()
    if not re.fullmatch(r"[-+]?(?:\d{1,50}(?:\.\d{0,50})?|\.\d{1,50})", stripped):
        return None
    value = Fraction(stripped)
    return value / 100 if text.strip().endswith("%") else value
