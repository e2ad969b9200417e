"""Accuracy by stage and task: a line a task over the stages, and under it a table on the same columns.

The figure is as wide as the table, so that a point stands above the cell that says its value.
"""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from sail_train.eval.tally import paired
from sail_train.report.names import Pass, by_suite, passes
from sail_train.report.reading import Recipe, Run, mapping
from sail_train.report.svg import SERIES_COLOURS, Frame, Scale, element, path_data, short, ticks

LABELS = 150
"""Width of the table's first column in pixels; the figure's margin."""

NARROWEST, WIDEST, WIDTH = 64, 130, 1080
"""Least and greatest width of a stage's column, and width of the whole where there is room."""

HEIGHT = 270

SIGNIFICANT = 2.0
"""Standard errors from which a change is written into its cell."""


def build(recipe: Recipe) -> dict[str, Any] | None:
    runs = [run for run in recipe.runs if passes(run.result())]
    if not runs:
        return None
    suites = by_suite(one for run in runs for one in passes(run.result()))
    column = min(WIDEST, max(NARROWEST, (WIDTH - LABELS) / len(runs)))
    return {
        "runs": [run.name for run in runs],
        "width": round(LABELS + column * len(runs)),
        "labels_share": round(100 * LABELS / (LABELS + column * len(runs)), 3),
        "chart": chart(runs, suites, column),
        "groups": [group(runs, suite, modes, number) for number, (suite, modes) in enumerate(suites.items())],
        "answers": int(max(count(run) for run in runs)),
    }


def count(run: Run) -> float:
    """Most prompts that any pass of the run graded."""
    result = run.result()
    return max((result.get(f"{one.metric}_n", 0.0) for one in passes(result)), default=0.0)


def group(runs: list[Run], suite: str, modes: list[Pass], colour: int) -> dict[str, Any]:
    """The rows of one suite: its modes and, where answers have digits, the digits read right in the first of them."""
    rows = [{"mode": one.mode, "cells": [cell(run, one.metric, one) for run in runs]} for one in modes]
    digits = [cell(run, f"{modes[0].metric}_digits") for run in runs]
    if any(one["value"] is not None for one in digits):
        rows.insert(1, {"mode": "single digits", "cells": digits})
    return {"suite": suite, "colour": colour % SERIES_COLOURS, "rows": rows}


def cell(run: Run, metric: str, one: Pass | None = None) -> dict[str, Any]:
    """One figure of the table; `value` is None where the run was not asked."""
    result = run.result()
    value = result.get(metric)
    return {
        "value": value,
        "se": result.get(f"{metric}_se"),
        "change": change(run, one) if one is not None and value is not None else None,
        "shade": None if value is None else round(100 * min(1.0, max(0.0, value))),
    }


def change(run: Run, one: Pass) -> tuple[float, bool] | None:
    """(difference to the stage's start, whether it is more than chance); None without an evaluation before."""
    before, after = run.result("before"), run.result("after")
    if one.metric not in before:
        return None
    asked = [mapping(mapping(run.evaluation.get(phase)).get("passes")).get(one.metric) for phase in ("before", "after")]
    first, second = (mapping(phase) for phase in asked)
    if first.get("asked") == second.get("asked") and first.get("scores") and second.get("scores"):
        pair = paired(first["scores"], second["scores"])
        if pair is not None:
            return pair.difference, abs(pair.difference) > SIGNIFICANT * pair.se
    difference = after[one.metric] - before[one.metric]
    error = math.hypot(after.get(f"{one.metric}_se", 0.0), before.get(f"{one.metric}_se", 0.0))
    return difference, abs(difference) > SIGNIFICANT * error


def chart(runs: list[Run], suites: dict[str, list[Pass]], column: float) -> Markup:
    """The most telling mode of each suite, stage by stage, with standard errors."""
    frame = Frame(width=LABELS + column * len(runs), height=HEIGHT, left=LABELS, right=0, top=12, bottom=12)
    x = Scale(low=0, high=max(1, len(runs)), start=frame.left + column / 2, end=frame.width + column / 2)
    y = Scale(low=0, high=1, start=frame.height - frame.bottom, end=frame.top)
    body = _grid(y, frame)
    for number, modes in enumerate(suites.values()):
        values = [(x(at), *read(run, modes)) for at, run in enumerate(runs)]
        body += _series(modes[0].suite, number, [(at, value, se) for at, value, se in values if value is not None], y)
    view = f"0 0 {frame.width:g} {frame.height:g}"
    title = element("title", "Accuracy of each task after each stage")
    return element("svg", title, *body, class_="chart wide", role="img", viewBox=view)


def read(run: Run, modes: list[Pass]) -> tuple[float | None, float]:
    """(accuracy, standard error) in the most telling mode that the run was asked in."""
    result = run.result()
    metric = next((one.metric for one in modes if one.metric in result), None)
    return (None, 0.0) if metric is None else (result[metric], result.get(f"{metric}_se", 0.0))


def _grid(y: Scale, frame: Frame) -> list[Markup]:
    parts = []
    for value in ticks(0.0, 1.0, wanted=5):
        at = y(value)
        parts.append(element("line", x1=frame.left, x2=frame.width, y1=at, y2=at, class_="grid"))
        label = short(value, percent=True)
        parts.append(element("text", label, x=frame.left - 10, y=at + 4, class_="tick", text_anchor="end"))
    return parts


def _series(suite: str, number: int, points: list[tuple[float, float, float]], y: Scale) -> list[Markup]:
    colour = f"s{number % SERIES_COLOURS}"
    parts = [element("path", d=path_data([(at, y(value)) for at, value, _ in points]), class_=f"line {colour}")]
    for at, value, se in points:
        low, high = y(max(0.0, value - se)), y(min(1.0, value + se))
        parts.append(element("line", x1=at, x2=at, y1=low, y2=high, class_=f"whisker {colour}"))
        told = element("title", f"{suite}: {100 * value:.1f}% ± {100 * se:.1f}")
        parts.append(element("circle", told, cx=at, cy=y(value), r=4.5, class_=f"dot {colour}"))
    return parts if points else []
