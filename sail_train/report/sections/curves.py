"""What happened inside each stage, step by step: a row of small charts for every run that left metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from markupsafe import Markup

from sail_train.report.reading import Recipe, Run
from sail_train.report.sections.stages import loop_class
from sail_train.report.svg import SERIES_COLOURS, Axes, Line, line_chart, smooth

Points = list[tuple[float, float]]

MAX_LINES = SERIES_COLOURS
"""Lines in one chart; further metrics are left out, the first in alphabetical order stay."""


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One small chart: the metrics that match go into it together."""

    title: str
    metrics: tuple[str, ...]
    axes: Axes = Axes()  # noqa: RUF009
    raw: bool = True
    """Whether the unsmoothed values stand behind a smoothed line."""


PANELS = (
    Panel(title="Loss", metrics=("loss",)),
    Panel(title="Validation loss", metrics=("valid/loss",), raw=False),
    Panel(title="Loss by source", metrics=("loss/*",)),
    Panel(title="Reward", metrics=("rollout/reward",)),
    Panel(title="Reward parts", metrics=("rollout/answer", "rollout/format", "rollout/think")),
    Panel(title="Tokens a response", metrics=("rollout/length",)),
    Panel(
        title="Shares of rollouts",
        metrics=("rollout/zero_variance", "rollout/truncated", "rollout/failed"),
        axes=Axes(percent=True, zero=True),
    ),
    Panel(title="Entropy", metrics=("update/entropy",), axes=Axes(zero=True)),
    Panel(title="Clipping and KL", metrics=("update/clipped", "update/kl_old", "update/kl_ref")),
    Panel(title="Gradient norm", metrics=("grad_norm",), axes=Axes(zero=True)),
    Panel(title="Learning rate", metrics=("lr/*",), axes=Axes(zero=True), raw=False),
    Panel(title="Tokens a second", metrics=("tokens_per_s",), axes=Axes(zero=True)),
    Panel(title="MFU", metrics=("mfu",), axes=Axes(percent=True, zero=True)),
)
"""In the order of the page; a panel whose metrics a run has not logged is left out."""


def build(recipe: Recipe) -> dict[str, Any] | None:
    runs = [
        {"name": run.name, "loop": run.loop, "loop_class": loop_class(run.loop), "panels": panels(run)}
        for run in recipe.runs
    ]
    runs = [run for run in runs if run["panels"]]
    return {"runs": runs} if runs else None


def panels(run: Run) -> list[dict[str, Any]]:
    names = sorted({name for line in run.metrics for name in line})
    drawn = []
    for panel in PANELS:
        matching = [name for pattern in panel.metrics for name in names if fnmatchcase(name, pattern)]
        series = {name: run.column(name) for name in dict.fromkeys(matching)}
        series = merged({short_name(name): points for name, points in series.items() if points})
        chart = draw(panel, series, run.name)
        if chart:
            legend = [(name, number) for number, name in enumerate(series)] if len(series) > 1 else []
            drawn.append({"title": panel.title, "chart": chart, "legend": legend[:MAX_LINES]})
    return drawn


def merged(series: Mapping[str, Points]) -> dict[str, Points]:
    """Metrics that are the same all along as one line with all their names: it would hide the others."""
    groups: list[tuple[list[str], Points]] = []
    for name, points in series.items():
        same = next((names for names, others in groups if others == points), None)
        if same is None:
            groups.append(([name], points))
        else:
            same.append(name)
    return {", ".join(names): points for names, points in groups}


def draw(panel: Panel, series: Mapping[str, Points], run: str) -> Markup:
    lines = []
    for number, (name, points) in enumerate(list(series.items())[:MAX_LINES]):
        span = max(1, len(points) // 16)
        if panel.raw and len(series) == 1 and span > 1:
            lines.append(Line(label=name, points=points, colour=number, faint=True))
        smoothed = smooth(points, span) if panel.raw else points
        lines.append(Line(label=name, points=smoothed, colour=number))
    return line_chart(lines, title=f"{panel.title} of {run}", axes=panel.axes)


def short_name(name: str) -> str:
    """A metric's name without the family that the chart's title says."""
    return name.rpartition("/")[2]
