"""The recipe as a picture: one row a run with its lineage drawn beside it, its figures, gate and loss."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from sail_train.report.lineage import Edge, Map, Track, edges, layout
from sail_train.report.names import gate, headline
from sail_train.report.reading import Recipe, Run, is_number, mapping
from sail_train.report.svg import Axes, Frame, Line, element, line_chart, smooth

ROW = 76
"""Height of a row in pixels; the style sheet's rows have the same."""

LANE = 26
MARGIN = 18

LOOPS = ("supervised", "rl", "soup", "sample")
"""Loops with a colour of their own in the style sheet; another one gets the neutral one."""

SPARKS = ("rollout/reward", "loss")
"""Metrics by which a run is drawn small; the first that it has."""


def build(recipe: Recipe) -> dict[str, Any]:
    links = edges(recipe)
    plan = layout(len(recipe.runs), links)
    return {
        "picture": picture(recipe, plan),
        "lanes_width": 2 * MARGIN + (plan.width - 1) * LANE,
        "rows": [row(recipe, index, links) for index in range(len(recipe.runs))],
        "loops": sorted({run.loop for run in recipe.runs if run.loop}, key=_loop_order),
    }


def _loop_order(loop: str) -> tuple[int, str]:
    return (LOOPS.index(loop) if loop in LOOPS else len(LOOPS), loop)


def loop_class(loop: str) -> str:
    return f"loop-{loop}" if loop in LOOPS else "loop-other"


def row(recipe: Recipe, index: int, links: list[Edge]) -> dict[str, Any]:
    """What one row says."""
    run = recipe.runs[index]
    metric = headline(run)
    before, after = run.result("before"), run.result("after")
    return {
        "name": run.name,
        "loop": run.loop,
        "loop_class": loop_class(run.loop),
        "status": run.status,
        "done": run.done,
        "trains": trained_parts(run),
        "parents": [(edge.role, recipe.runs[edge.parent].name) for edge in links if edge.child == index],
        "steps": run.summary.get("steps"),
        "data_ended": data_ended(run),
        "tokens": run.summary.get("tokens"),
        "seconds": run.summary.get("seconds"),
        "metric": metric,
        "before": before.get(metric) if metric else None,
        "after": after.get(metric) if metric else None,
        "se": after.get(f"{metric}_se") if metric else None,
        "gate": gate(run),
        "spark": spark(run),
    }


def trained_parts(run: Run) -> list[str]:
    """Parts with a learning rate."""
    rates = mapping(mapping(run.config.get("optim")).get("lr"))
    return [str(part) for part, rate in rates.items() if is_number(rate) and rate > 0]


def data_ended(run: Run) -> float | None:
    """The steps that were asked for, if the data ended before."""
    asked = [event.get("max_steps") for event in run.events if event.get("event") == "data_exhausted"]
    return next((steps for steps in reversed(asked) if is_number(steps)), None)


def spark(run: Run) -> Markup:
    """Loss or reward over the run, small and without axes."""
    for name in SPARKS:
        points = run.column(name)
        if len(points) > 1:
            frame = Frame(width=120, height=34, left=2, right=2, top=3, bottom=3)
            lines = [Line(label=name, points=smooth(points, max(2, len(points) // 12)))]
            chart = line_chart(lines, title=f"{name} of {run.name}", axes=Axes(frame=frame, bare=True))
            return Markup('<figure class="spark {}">{}<figcaption>{}</figcaption></figure>').format(
                loop_class(run.loop), chart, name.rpartition("/")[2]
            )
    return Markup("")


def picture(recipe: Recipe, plan: Map) -> Markup:
    """The lanes: tracks below, stations above."""
    height = ROW * len(recipe.runs)
    drawn = [_track(track, recipe.runs[track.edge.child]) for track in plan.tracks]
    drawn += [_station(recipe.runs[row], row, lane) for row, lane in enumerate(plan.lanes)]
    width = 2 * MARGIN + (plan.width - 1) * LANE
    told = "; ".join(f"{recipe.runs[t.edge.parent].name} to {recipe.runs[t.edge.child].name}" for t in plan.tracks)
    title = element("title", f"Lineage: {told}" if told else "Lineage")
    return element("svg", title, *drawn, class_="lanes", width=width, height=height, role="img",
                   viewBox=f"0 0 {width} {height}")  # fmt: skip


def _x(lane: int) -> float:
    return MARGIN + LANE * lane


def _y(row: int) -> float:
    return ROW * (row + 0.5)


def _track(track: Track, child: Run) -> Markup:
    first, last = track.edge.parent, track.edge.child
    rows = [first, last] if last == first + 1 else [first, first + 1, last - 1, last]
    lanes = [track.start, track.end] if last == first + 1 else [track.start, track.lane, track.lane, track.end]
    path = f"M{_x(lanes[0]):g} {_y(rows[0]):g}"
    for lane_0, lane_1, row_0, row_1 in zip(lanes, lanes[1:], rows, rows[1:], strict=False):
        middle = (_y(row_0) + _y(row_1)) / 2
        bend = f"C{_x(lane_0):g} {middle:g} {_x(lane_1):g} {middle:g} {_x(lane_1):g} {_y(row_1):g}"
        path += bend if lane_0 != lane_1 else f"L{_x(lane_1):g} {_y(row_1):g}"
    style = f"track {loop_class(child.loop)}" + (" data" if track.edge.role == "data" else "")
    return element("path", d=path, class_=style)


def _station(run: Run, row: int, lane: int) -> Markup:
    style = f"station {loop_class(run.loop)}" + " done" * run.done + " failed" * (run.status == "gate")
    return element("circle", cx=_x(lane), cy=_y(row), r=7, class_=style)
