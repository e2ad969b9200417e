"""Thinking asked for, forbidden and left to the model: what each costs in tokens and brings in accuracy."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from sail_train.report.names import Pass, by_suite, passes
from sail_train.report.reading import Recipe, Run
from sail_train.report.svg import Frame, Scale, element, short, ticks

FLAGS = ("on", "off", "auto")

FIGURES = ("", "_se", "_thinks", "_followed", "_tokens", "_truncated", "_format")

BAR = Frame(width=360, height=76, left=40, right=14, top=8, bottom=20)


def build(recipe: Recipe) -> dict[str, Any] | None:
    """One block a suite of the runs that were asked with both flags."""
    blocks = []
    for run in recipe.runs:
        for suite, modes in by_suite(passes(run.result())).items():
            asked = {one.mode: figures(run, one) for one in modes if one.mode in FLAGS}
            if {"on", "off"} <= set(asked):
                result = run.result()
                blocks.append(
                    {
                        "run": run.name,
                        "suite": suite,
                        "flags": {flag: asked[flag] for flag in FLAGS if flag in asked},
                        "gain": result.get(f"{suite}/on_minus_off", result[f"{suite}/on"] - result[f"{suite}/off"]),
                        "gain_se": result.get(f"{suite}/on_minus_off_se"),
                        "bar": bar({flag: asked[flag] for flag in FLAGS if flag in asked}),
                    }
                )
    return {"blocks": blocks} if blocks else None


def figures(run: Run, one: Pass) -> dict[str, float | None]:
    """Figures of one pass by their last word; "value" is the accuracy."""
    result = run.result()
    return {(figure or "_value")[1:]: result.get(f"{one.metric}{figure}") for figure in FIGURES}


def bar(asked: dict[str, dict[str, Any]]) -> Markup:
    """The accuracies on one line, off to on joined by a bar."""
    values = [flag["value"] for flag in asked.values()]
    low, high = max(0.0, min(values) - 0.1), min(1.0, max(values) + 0.1)
    x = Scale(low=low, high=high, start=BAR.left, end=BAR.width - BAR.right)
    middle = (BAR.top + BAR.height - BAR.bottom) / 2
    ends = {"x1": x(asked["off"]["value"]), "x2": x(asked["on"]["value"])}
    parts = [element("line", **ends, y1=middle, y2=middle, class_="gap")]
    for value in ticks(low, high, wanted=6):
        base = BAR.height - BAR.bottom
        parts.insert(0, element("line", x1=x(value), x2=x(value), y1=BAR.top, y2=base, class_="grid"))
        label = short(value, percent=True)
        parts.append(element("text", label, x=x(value), y=base + 15, class_="tick", text_anchor="middle"))
    for flag, number in asked.items():
        told = element("title", f"{flag}: {100 * number['value']:.1f}%")
        parts.append(element("circle", told, cx=x(number["value"]), cy=middle, r=6.5, class_=f"flag {flag}"))
    view = f"0 0 {BAR.width:g} {BAR.height:g}"
    return element("svg", element("title", "Accuracy by flag"), *parts, class_="chart bar", role="img", viewBox=view)
