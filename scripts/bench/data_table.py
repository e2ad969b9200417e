"""What was measured, as markdown: medians with the distance of the quartiles behind, and ratios of rounds in pairs."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from data_rounds import Round


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the distance between the quartiles."""
    if len(values) < 2:
        return f"{values[0]:.{digits}f}"
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:.{digits}f} ± {high - low:.{digits}f}"


def rate(rounds: Sequence[Round], what: str) -> list[float]:
    """Samples in a second of wall clock ("seconds") or CPU time ("cpu")."""
    return [each["samples"] / each[what] for each in rounds]


def ratios(ours: Sequence[Round], peer: Sequence[Round], what: str) -> list[float]:
    """How many times as fast we are, round by round: what slows the machine down for a while slows both."""
    return [mine / theirs for mine, theirs in zip(rate(ours, what), rate(peer, what), strict=True)]


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison(told: Mapping[str, Sequence[Round]], ours: str, what: str) -> str:
    """A row for each contender: what a sample costs, how many a second, and ours against it."""
    unit = "CPU µs a sample" if what == "cpu" else "ms a sample"
    scale = 1e6 if what == "cpu" else 1e3
    rows = []
    for name, rounds in told.items():
        cost = [scale * each[what] / each["samples"] for each in rounds]
        against = "" if name == ours else f"{spread(ratios(told[ours], rounds, what), 2)} x"
        rows.append([name, spread(cost), spread(rate(rounds, what), 0), against])
    per_second = "samples a CPU second" if what == "cpu" else "samples a second"
    return markdown(["", unit, per_second, f"{ours} against it"], rows)
