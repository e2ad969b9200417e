"""Model soups: each member and the average on the metric that decides, with the line that the soup had to reach."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from sail_train.report.reading import Recipe, is_number, mapping
from sail_train.report.svg import Frame, Scale, element, short, ticks

ROW = 34


def build(recipe: Recipe) -> dict[str, Any] | None:
    """One block a soup, from its soup.json."""
    blocks = []
    for run in recipe.runs:
        rows = [row(str(role), mapping(member)) for role, member in mapping(run.soup.get("members")).items()]
        rows += [row("soup", mapping(run.soup.get("soup")), soup=True)] if run.soup.get("soup") else []
        rows = [one for one in rows if one["value"] is not None]
        if rows:
            floor = run.soup.get("floor")
            blocks.append(
                {
                    "run": run.name,
                    "accepted": bool(run.soup.get("accepted")),
                    "kept": str(run.soup.get("kept", "")),
                    "metrics": [str(metric) for metric in run.soup.get("metrics", [])],
                    "floor": floor if is_number(floor) else None,
                    "rows": rows,
                    "chart": chart(rows, floor if is_number(floor) else None),
                }
            )
    return {"blocks": blocks} if blocks else None


def row(role: str, member: dict[str, Any], *, soup: bool = False) -> dict[str, Any]:
    value, se = member.get("value"), member.get("se")
    return {
        "name": str(member.get("name", role)),
        "soup": soup,
        "value": value if is_number(value) else None,
        "se": se if is_number(se) else 0.0,
    }


def chart(rows: list[dict[str, Any]], floor: float | None) -> Markup:
    """A dot with its standard error for each, above a common axis."""
    frame = Frame(width=560, height=ROW * len(rows) + 36, left=120, right=64, top=8, bottom=28)
    ends = [edge for one in rows for edge in (one["value"] - one["se"], one["value"] + one["se"])]
    ends += [] if floor is None else [floor]
    x = Scale(low=min(ends) - 0.01, high=max(ends) + 0.01, start=frame.left, end=frame.width - frame.right)
    base = frame.height - frame.bottom
    parts = []
    for value in ticks(x.low, x.high, wanted=6):
        parts.append(element("line", x1=x(value), x2=x(value), y1=frame.top, y2=base, class_="grid"))
        label = short(100 * value) + "%"
        parts.append(element("text", label, x=x(value), y=base + 16, class_="tick", text_anchor="middle"))
    if floor is not None:
        told = element("title", f"accepted from {100 * floor:.1f}% on")
        parts.append(element("line", told, x1=x(floor), x2=x(floor), y1=frame.top, y2=base, class_="floor"))
    for number, one in enumerate(rows):
        parts += _dot(one, frame.top + ROW * (number + 0.5), x, frame)
    view = f"0 0 {frame.width:g} {frame.height:g}"
    title = element("title", "Members and soup on the metric that decides")
    return element("svg", title, *parts, class_="chart soup", role="img", viewBox=view)


def _dot(one: dict[str, Any], at: float, x: Scale, frame: Frame) -> list[Markup]:
    colour = "s2" if one["soup"] else "s5"
    low, high = x(one["value"] - one["se"]), x(one["value"] + one["se"])
    name = "name soup" if one["soup"] else "name"
    return [
        element("text", one["name"], x=frame.left - 14, y=at + 4, class_=name, text_anchor="end"),
        element("line", x1=low, x2=high, y1=at, y2=at, class_=f"whisker {colour}"),
        element("circle", cx=x(one["value"]), cy=at, r=7 if one["soup"] else 5.5, class_=f"dot {colour}"),
        element("text", f"{100 * one['value']:.1f}", x=frame.width - frame.right + 12, y=at + 4, class_="value"),
    ]
