"""A process that compares mathematics: one JSON line in, one JSON line out, until its input ends.

It parses what a model wrote, which may take for ever or all memory: whoever asks holds the clock and kills it.
Run as a file, not imported, so that it needs nothing of ours. LaTeX only: math-verify's reader of plain expressions
goes through sympy's `parse_expr`, which evaluates Python.
"""

import json
import logging
import resource
import sys
from typing import Any

MEMORY = 4 * 2**30
"""Bytes of address space: a tower of powers ends in MemoryError rather than on a swapping machine."""


def build_compare() -> Any:
    """Import math-verify and return compare(gold, pred) -> bool | None, None for a gold that cannot be parsed."""
    from latex2sympy2_extended.latex2sympy2 import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse, verify

    normalization = NormalizationConfig(
        basic_latex=True, units=True, malformed_operators=False, nits=False, boxed="all", equations=False
    )
    latex = LatexExtractionConfig(
        normalization_config=normalization, boxed_match_priority=0, try_extract_without_anchor=False
    )

    def read(text: str) -> Any:
        return parse(
            f"\\boxed{{{text}}}",
            extraction_config=[latex],
            extraction_mode="first_match",
            fallback_mode="no_fallback",
            parsing_timeout=None,
        )

    def compare(gold: str, pred: str) -> bool | None:
        gold_parsed = read(gold)
        if not gold_parsed:
            return None
        # Gold first: the comparison is not symmetric.
        return bool(verify(gold_parsed, read(pred), timeout_seconds=None))

    return compare


def answer(compare: Any, request: dict[str, list[str]]) -> dict[str, Any]:
    verdicts = [compare(gold, pred) for gold in request["golds"] for pred in request["preds"]]
    if None in verdicts:
        return {"error": f"the truth {request['golds'][0]!r} cannot be parsed"}
    return {"value": any(verdicts)}


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.WARNING)  # math-verify warns that nobody but us holds the clock
    compare = build_compare()
    replies = sys.stdout
    sys.stdout = sys.stderr  # whatever a library prints must not be read as a verdict
    replies.write('{"ready": true}\n')
    replies.flush()
    for line in sys.stdin:
        try:
            reply = answer(compare, json.loads(line))
        except Exception as error:
            reply = {"error": f"{type(error).__name__}: {error}"[:200]}
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


if __name__ == "__main__":
    main()
