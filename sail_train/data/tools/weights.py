"""How often samples should be seen: the arithmetic of balancing, and before-and-after charts.

`ratios` turns target shares of a mixture into the weights of its sources. `scale` and `clipped_mean` normalise
per-sample weights so that their mean stays 1 after clipping. `tail_copies` is Seed1.5-VL's long-tail duplication.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sail_train.data.index import MAX_WEIGHT

NUM_BINS = 4096
LOWEST, HIGHEST = -40.0, 40.0
"""Natural logarithms between which raw weights are counted."""
BAR = 40
"""Characters of the longest bar of a chart."""


def ratios(targets: Mapping[str, float], tokens_per_sample: Mapping[str, float]) -> dict[str, float]:
    """`data.sources.NAME.weight` for target shares of tokens: a weight is a share of samples, so that a source of long
    samples needs a smaller one. With 1 token a sample, shares of samples. Weights add up to 1.

    Raises:
        ValueError: a share below 0, all shares 0, or a source without tokens that should have a share.
    """
    for name, share in targets.items():
        if share < 0:
            raise ValueError(f"--target {name}={share:g} must be 0 or more")
        if share > 0 and tokens_per_sample[name] <= 0:
            raise ValueError(f"--target {name}={share:g}: the source holds no tokens to draw")
    raw = {name: share / tokens_per_sample[name] if share else 0.0 for name, share in targets.items()}
    total = sum(raw.values())
    if total <= 0:
        raise ValueError("--target: at least one share must be above 0")
    return {name: value / total for name, value in raw.items()}


def tail_copies(counts: Mapping[str, float], *, floor: float, most: float) -> dict[str, float]:
    """How often each sample of a domain should be seen: domains below `floor` of the mean count are brought up to it
    (Seed1.5-VL, arXiv 2505.07062, section 3.1.1: 0.5), at most `most` times (0: as often as a stream
    takes); the others once."""
    if not counts:
        return {}
    level = floor * sum(counts.values()) / len(counts)
    return {
        name: 1.0 if count >= level else min(level / count, most or MAX_WEIGHT)
        for name, count in counts.items()
        if count
    }


def log_histogram(raw: np.ndarray) -> np.ndarray:
    """(NUM_BINS,) int64 of log raw weights; histograms of shards add up."""
    edges = np.linspace(LOWEST, HIGHEST, NUM_BINS + 1)
    counts: np.ndarray = np.histogram(np.clip(np.log(raw), LOWEST, HIGHEST), edges)[0].astype(np.int64)
    return counts


def scale(histogram: np.ndarray, least: float, most: float) -> float:
    """The factor s for which the mean of clip(s * raw, least, most) is 1, by bisection."""
    centres = np.exp(np.linspace(LOWEST, HIGHEST, NUM_BINS + 1)[:-1] + (HIGHEST - LOWEST) / NUM_BINS / 2)
    low, high = -2 * HIGHEST, 2 * HIGHEST
    for _ in range(100):
        middle = (low + high) / 2
        mean = (np.clip(np.exp(middle) * centres, least, most) * histogram).sum() / max(1, histogram.sum())
        low, high = (middle, high) if mean < 1 else (low, middle)
    return float(np.exp((low + high) / 2))


@dataclass(frozen=True, kw_only=True)
class Chart:
    """Shares before and after, by label."""

    title: str
    labels: tuple[str, ...]
    before: tuple[float, ...]
    after: tuple[float, ...]


def chart(title: str, labels: Sequence[str], before: Sequence[float], after: Sequence[float]) -> Chart:
    """Of amounts, which become shares of their sums."""
    sums = [max(sum(values), 1e-12) for values in (before, after)]
    shares = [tuple(value / total for value in values) for values, total in zip((before, after), sums, strict=True)]
    return Chart(title=title, labels=tuple(labels), before=shares[0], after=shares[1])


def as_text(shown: Chart) -> str:
    """Two bars a label."""
    width = max((len(label) for label in shown.labels), default=0)
    largest = max((*shown.before, *shown.after), default=0.0) or 1.0
    lines = [shown.title]
    for label, before, after in zip(shown.labels, shown.before, shown.after, strict=True):
        for name, share, mark in ((label, before, "░"), ("", after, "█")):
            lines.append(f"  {name:<{width}} {share:7.2%} {mark * round(BAR * share / largest)}")
    return "\n".join([*lines, "  ░ before  █ after"])


def as_html(shown: Chart) -> str:
    """A page without scripts or outside references; labels are strangers' text and escaped."""
    largest = max((*shown.before, *shown.after), default=0.0) or 1.0
    rows = []
    for label, before, after in zip(shown.labels, shown.before, shown.after, strict=True):
        bars = "".join(
            f'<div class={kind} style="width:{60 * share / largest:.2f}%"></div><span>{share:.2%}</span><br>'
            for kind, share in (("before", before), ("after", after))
        )
        rows.append(f"<tr><th>{html.escape(label)}</th><td>{bars}</td></tr>")
    title = html.escape(shown.title)
    style = (
        "body{font:15px/1.4 system-ui,sans-serif;max-width:60rem;margin:2rem auto}table{width:100%}td{width:75%}"
        "th{text-align:right;font-weight:normal;padding-right:1rem}div{display:inline-block;height:.7rem}"
        ".before{background:#bbb}.after{background:#06c}span{color:#666;font-size:.8rem;margin-left:.4rem}"
    )
    return (
        f"<!doctype html>\n<meta charset=utf-8><title>{title}</title><style>{style}</style>\n<h1>{title}</h1>"
        f"<p>Grey: before. Blue: after.</p>\n<table>{''.join(rows)}</table>\n"
    )
