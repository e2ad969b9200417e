"""Histograms as inline SVG, without scripts: bars stacked by source, round ticks, a title for screen readers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

COLOURS = ("#7d9bea", "#efb118", "#ff725c", "#3ca951", "#a463f2", "#6cc5b0", "#ff8ab7", "#9c6b4e")
"""Of the sources, in their order."""

WIDTH, HEIGHT = 300, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 8, 30
BINS = 24


def colours(names: Sequence[str]) -> dict[str, str]:
    """One for each source."""
    return {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}


def histogram(values: Mapping[str, Sequence[float]], title: str, *, unit: str = "") -> str:
    """Counts of the values of each source, stacked; an empty text without values. Wide ranges are drawn by powers."""
    every = [value for each in values.values() for value in each]
    if not every:
        return ""
    edges = bin_edges(min(every), max(every))
    counts = {name: _counts(each, edges) for name, each in values.items()}
    totals = [sum(column) for column in zip(*counts.values(), strict=True)]
    highest = max(totals)
    across, up = (WIDTH - _LEFT - _RIGHT) / (len(edges) - 1), (HEIGHT - _TOP - _BOTTOM) / highest
    paint = colours(list(values))
    bars, heights = [], [0] * len(totals)
    for name, column in counts.items():
        for place, count in enumerate(column):
            if count:
                heights[place] += count
                x, y = _LEFT + place * across, HEIGHT - _BOTTOM - heights[place] * up
                tip = f"{name}: {count} from {short(edges[place])} to {short(edges[place + 1])}"
                bars.append(
                    f'<rect x="{x + 0.5:.1f}" y="{y:.1f}" width="{max(0.5, across - 1):.1f}" height="{count * up:.1f}" '
                    f'fill="{paint[name]}"><title>{html.escape(tip)}</title></rect>'
                )
    middle = sorted(every)[len(every) // 2]
    facts = f"median {short(middle)}, max {short(max(every))}{' ' + unit if unit else ''}"
    return (
        f'<figure class=chart><svg viewBox="0 0 {WIDTH} {HEIGHT}" role=img><title>{html.escape(title)}</title>'
        f"{''.join(bars)}{_axes(edges, highest)}</svg>"
        f"<figcaption><strong>{html.escape(title)}</strong> {html.escape(facts)}</figcaption></figure>"
    )


def bin_edges(low: float, high: float) -> list[float]:
    """Edges of the bins: by powers where the largest is over fifty times the smallest."""
    if high <= low:
        return [low - 0.5, low + 0.5]
    if low > 0 and high / low > 50:
        step = (math.log(high) - math.log(low)) / BINS
        return [*(math.exp(math.log(low) + place * step) for place in range(BINS)), high]
    return [*(low + place * (high - low) / BINS for place in range(BINS)), high]


def _counts(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts = [0] * (len(edges) - 1)
    for value in values:
        place = next((n for n, edge in enumerate(edges[1:]) if value < edge), len(counts) - 1)
        counts[place] += 1
    return counts


def _axes(edges: Sequence[float], highest: int) -> str:
    base, count = HEIGHT - _BOTTOM, len(edges) - 1
    across = (WIDTH - _LEFT - _RIGHT) / count
    marks = [f'<text x="{_LEFT - 4}" y="{_TOP + 8}" text-anchor=end>{highest}</text>',
             f'<text x="{_LEFT - 4}" y="{base}" text-anchor=end>0</text>']  # fmt: skip
    for place in sorted({0, count // 2, count}):
        anchor = "start" if place == 0 else "end" if place == count else "middle"
        x = _LEFT + place * across
        marks.append(f'<text x="{x:.1f}" y="{base + 14}" text-anchor={anchor}>{short(edges[place])}</text>')
    return f'<path d="M{_LEFT} {base}H{WIDTH - _RIGHT}" class=axis />{"".join(marks)}'


def short(value: float) -> str:
    """A number in few letters: 1500 -> 1.5k, 2e9 -> 2G."""
    for limit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= limit:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"
