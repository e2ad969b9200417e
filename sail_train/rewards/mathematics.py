r"""The verifier of mathematics: are two LaTeX values equal?

final answer in a box -> refused where a plain value is asked for and an expression stands there (`\boxed{1+1}`) ->
percent signs taken off -> equal integers decided here, all else by math-verify in a process that can be killed.
"""

from __future__ import annotations

import re

from sail_train.rewards.config import VerifierConfig
from sail_train.rewards.format import FinalAnswer
from sail_train.rewards.math_pool import shared_pool
from sail_train.types import Score

MAX_CHARS = 500
INTEGER = re.compile(r"[-+]?(?:\d{1,3}(?:,\d{3})+|\d+)")
DECORATION = re.compile(r"\\(?:text|mathrm)\s*\{[^{}]*\}|\^\s*\{?\s*\\circ\s*\}?|\\[,!; ]|[$\s]")
LEFT_SIDE = re.compile(r"^\s*[A-Za-z]\s*=")
_DECIMAL = r"(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?"
VALUE = re.compile(
    rf"[-+]?(?:{_DECIMAL}|\d+/\d+|\\[dt]?frac\{{[-+]?\d+\}}\{{\d+\}}|{_DECIMAL}(?:\\times|\\cdot)10\^\{{?[-+]?\d+\}}?)"
)
WORD = re.compile(r"[A-Za-z]{2,}[.\s]*|[A-J]")


def mathematics(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """1 if the boxed value equals `answer`; a truth that is a bare word or letter fails, since it is no mathematics."""
    if WORD.fullmatch(answer.strip()) or not answer.strip():
        detail = f"the truth {answer!r} is not mathematics; use 'choice', 'yesno' or 'exact'"
        return Score(value=0.0, status="error", detail=detail)
    if not final.boxed:
        return Score(value=0.0, status="unparsable", detail="no box")
    if len(final.text) > MAX_CHARS:
        return Score(value=0.0, status="unparsable", detail=f"longer than {MAX_CHARS} characters")
    truth, truth_percent = _without_percent(answer)
    given, given_percent = _without_percent(final.text)
    if is_value(truth) and not is_value(LEFT_SIDE.sub("", given)):
        return Score(value=0.0, status="unparsable", detail="an expression where a value is asked for")
    if truth_percent == given_percent and INTEGER.fullmatch(truth) and INTEGER.fullmatch(given):
        return Score(value=float(int(truth.replace(",", "")) == int(given.replace(",", ""))))
    # "10%" against "10" or "0.1": a sign on one side only allows both readings.
    readings = {"golds": [truth], "preds": [given]}
    if truth_percent and not given_percent:
        readings["golds"].append(rf"\frac{{{truth}}}{{100}}")
    if given_percent and not truth_percent:
        readings["preds"].append(rf"\frac{{{given}}}{{100}}")
    return shared_pool(config.workers).ask(readings, timeout=config.timeout)


def is_value(text: str) -> bool:
    """Whether `text` is a number or a fraction, with or without a unit, rather than something to be worked out."""
    bare = DECORATION.sub("", text)
    return bool(bare) and bool(VALUE.fullmatch(bare))


def _without_percent(text: str) -> tuple[str, bool]:
    bare = text.strip().strip("$").strip()
    for sign in (r"\%", "%"):
        if bare.endswith(sign):
            return bare.removesuffix(sign).strip(), True
    return bare, False
