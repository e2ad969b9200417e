"""One response against its ground truth, by the verifier that its sample names.

response -> thought stripped, box opened (`format.final_answer`) -> the named function -> `Score`. A response can only
ever score; what raises inside a verifier is reported as a failed score, never passed on and never counted as wrong.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

from sail_train import rewards
from sail_train.config import choice
from sail_train.rewards.config import VerifierConfig
from sail_train.rewards.format import FinalAnswer, final_answer
from sail_train.rewards.numeric import digit_share
from sail_train.types import Score

Verifier = Callable[[str, FinalAnswer, VerifierConfig], Score]


class Request(NamedTuple):
    """What `verify` takes, for many at once."""

    name: str
    answer: str
    response: str


@cache
def verifier(name: str) -> Verifier:
    """The function behind `name`. Raises ValueError on a name that is not in the table."""
    module, function = choice("verifier", name, rewards.VERIFIERS).split(":")
    return getattr(importlib.import_module(module), function)


def verify(name: str, answer: str, response: str, config: VerifierConfig | None = None) -> Score:
    """Score of `response` (its thought included) against the truth `answer`."""
    return _score(Request(name, answer, response), config or VerifierConfig())


def verify_all(requests: Sequence[Request], config: VerifierConfig | None = None) -> list[Score]:
    """Scores in the order of `requests`; verifiers in processes of their own run `config.workers` at a time."""
    config = config or VerifierConfig()
    if config.workers == 1:
        return [_score(request, config) for request in requests]
    with ThreadPoolExecutor(config.workers) as threads:
        return list(threads.map(lambda request: _score(request, config), requests))


def partial(name: str, answer: str, response: str) -> float | None:
    """Share of the parts that are right where an answer has parts (the digits of a grid), else None; for figures."""
    if name != "grid":
        return None
    return digit_share(answer, final_answer(response).text)


def _score(request: Request, config: VerifierConfig) -> Score:
    compare = verifier(request.name)
    final = final_answer(request.response)
    if final.problem:
        return Score(value=0.0, status="unparsable", detail=final.problem)
    try:
        return compare(request.answer, final, config)
    except Exception as error:  # a bug or a broken truth must not grade a response as wrong
        return Score(value=0.0, status="error", detail=f"{request.name}: {type(error).__name__}: {error}"[:300])
