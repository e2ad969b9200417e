"""From graded answers to figures: means with standard errors, and differences between two askings of the same prompts.

A prompt may have several answers (mean@k): its value is their mean, and the error is that between prompts, so that
answers to one prompt never count as independent. For one answer of 0 or 1 this is the binomial sqrt(p (1 - p) / n).
An answer whose grading failed (score None) is left out of every mean over scores and counted as failed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIGURES = ("tokens", "truncated", "thinks", "followed", "format", "digits")
"""Fields of a record that are averaged beside the score; None where a figure does not apply."""

WITH_ERROR = ("digits",)
"""Figures that stand in gates and tables like an accuracy and so carry their standard error."""


@dataclass(frozen=True, kw_only=True)
class Paired:
    """How the same prompts fared in two askings."""

    n: int
    """Prompts graded in both."""
    difference: float
    """Mean of second - first."""
    se: float
    """Standard error of the difference: over prompts, so much smaller than that of two separate means."""
    better: int
    """Prompts that scored higher in the second."""
    worse: int


def mean_and_error(values: Iterable[float]) -> tuple[float, float]:
    """Mean and its standard error (population form, so that 0/1 values give the binomial one); at least one value."""
    kept = list(values)
    mean = math.fsum(kept) / len(kept)
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in kept)) / len(kept)


def by_prompt(records: Iterable[Mapping[str, Any]], figure: str) -> dict[int, float]:
    """Value of `figure` for each prompt, by its index in the suite: the mean over its answers that have one."""
    values: dict[int, list[float]] = {}
    for record in records:
        if record[figure] is not None:
            values.setdefault(record["index"], []).append(float(record[figure]))
    return {index: math.fsum(found) / len(found) for index, found in sorted(values.items())}


def summarise(prefix: str, records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The metrics of one pass: `prefix` is the accuracy, `prefix_se` its standard error, `prefix_tokens` ..."""
    metrics: dict[str, float] = {}
    scores = by_prompt(records, "score")
    if scores:
        metrics[prefix], metrics[f"{prefix}_se"] = mean_and_error(scores.values())
    metrics[f"{prefix}_n"] = float(len(scores))
    for figure in FIGURES:
        values = by_prompt(records, figure)
        if values:
            mean, error = mean_and_error(values.values())
            metrics[f"{prefix}_{figure}"] = mean
            if figure in WITH_ERROR:
                metrics[f"{prefix}_{figure}_se"] = error
    metrics[f"{prefix}_failed"] = sum(record["score"] is None for record in records) / max(1, len(records))
    return metrics


def paired(first: Sequence[float | None], second: Sequence[float | None]) -> Paired | None:
    """Second against first, prompt by prompt (position = prompt); None if no prompt was graded in both."""
    pairs = [(a, b) for a, b in zip(first, second, strict=False) if a is not None and b is not None]
    if not pairs:
        return None
    mean, error = mean_and_error(b - a for a, b in pairs)
    better, worse = sum(b > a for a, b in pairs), sum(b < a for a, b in pairs)
    return Paired(n=len(pairs), difference=mean, se=error, better=better, worse=worse)
