"""Verifiers of words: exact, contains, choice, yes or no, and edit distance (ANLS)."""

from __future__ import annotations

import re

from sail_train.rewards.config import VerifierConfig
from sail_train.rewards.format import FinalAnswer
from sail_train.types import Score

WRAPPER = re.compile(r"\\(?:text|mathrm|mathbf|textbf)\s*\{([^{}]*)\}")
ANCHORED = re.compile(r"(?:answer|option|choice)\s*(?:is|:)?\s*\(?([A-J])\)?(?![A-Za-z'])", re.IGNORECASE)
YES_NO = {"yes": True, "true": True, "no": False, "false": False}


def normalise(text: str) -> str:
    r"""Lower case, one space between words, without \text{}, dollar signs and punctuation at the ends."""
    text = WRAPPER.sub(r"\1", text).replace("$", " ")
    return " ".join(text.casefold().split()).strip(" .,:;!?\"'`*()[]{}")


def exact(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    return Score(value=float(normalise(answer) == normalise(final.text)))


def contains(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """The truth stands in the answer as whole words. For evaluation: as a reward it pays for listing everything."""
    return Score(value=float(bool(re.search(rf"(?<!\w){re.escape(normalise(answer))}(?!\w)", normalise(final.text)))))


def choice(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """One letter A to J: alone, or after "answer is"; several different letters are a guess."""
    truth = _letter(answer)
    if truth is None:
        return Score(value=0.0, status="error", detail=f"the truth {answer!r} is not a letter A to J; use 'exact'")
    letter = _letter(final.text)
    if letter is None:
        named = {found.upper() for found in ANCHORED.findall(final.text)}
        letter = named.pop() if len(named) == 1 else None
    if letter is None:
        return Score(value=0.0, status="unparsable", detail="no single letter")
    return Score(value=float(letter == truth))


def yesno(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """The first word, yes (true) or no (false)."""
    truth, given = (YES_NO.get((normalise(text).split() or [""])[0].strip(".,:;!?")) for text in (answer, final.text))
    if truth is None:
        return Score(value=0.0, status="error", detail=f"the truth {answer!r} is neither yes nor no")
    if given is None:
        return Score(value=0.0, status="unparsable", detail="neither yes nor no")
    return Score(value=float(truth == given))


def anls(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """Average normalised Levenshtein similarity (DocVQA): 1 - distance / length, 0 below one half."""
    truth, given = (" ".join(text.casefold().split()) for text in (answer, final.text))
    similarity = 1 - levenshtein(truth, given) / max(len(truth), len(given), 1)
    return Score(value=similarity if similarity >= 0.5 else 0.0)


def levenshtein(a: str, b: str) -> int:
    """Fewest insertions, deletions and replacements that make `a` into `b`."""
    previous = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        current = [i]
        for j, right in enumerate(b, start=1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (left != right)))
        previous = current
    return previous[-1]


def _letter(text: str) -> str | None:
    stripped = WRAPPER.sub(r"\1", text).strip(" ()[]{}.:*$\n\t").upper()
    return stripped if re.fullmatch("[A-J]", stripped) else None
