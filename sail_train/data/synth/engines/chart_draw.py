"""Charts drawn with matplotlib, the same pixels for the same chart and style.

Neither pyplot nor the user's matplotlibrc takes part. Legends stand outside the axes, so that they cover nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sail_train.data.synth.engines.chart_data import Chart
from sail_train.data.synth.engines.fonts import chinese, latin
from sail_train.data.synth.engines.item import Request, pick, whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PALETTES = (
    ("#3366cc", "#dc3912", "#ff9900", "#109618", "#990099", "#0099c6", "#dd4477", "#66aa00"),
    ("#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#9c755f"),
    ("#1b9e77", "#d95f02", "#7570b3", "#e7298a", "#66a61e", "#e6ab02", "#a6761d", "#666666"),
)
FONTS = {"sans": "DejaVu Sans", "serif": "DejaVu Serif", "mono": "DejaVu Sans Mono"}
DPI = 100


@dataclass(frozen=True, kw_only=True)
class Style:
    palette: tuple[str, ...]
    font: str
    width: float
    """Inches, of 100 pixels."""
    height: float
    ground: str
    grid: str


def draw_style(rng: np.random.Generator, request: Request) -> Style:
    latin("sans")  # says what to install, where there is no matplotlib
    zh = request.language == "zh"
    return Style(
        palette=pick(rng, PALETTES),
        font=_chinese_family() if zh else FONTS[pick(rng, list(FONTS))],
        width=whole(rng, 48, 72) / 10,
        height=whole(rng, 36, 50) / 10,
        ground=pick(rng, ("#ffffff", "#ffffff", "#f7f7f2", "#f4f8fb")),
        grid=pick(rng, ("#c8c8c8", "#b4b4b4", "#d0d4dc")),
    )


@lru_cache(maxsize=1)
def _chinese_family() -> str:
    """The family name under which matplotlib knows our Chinese font."""
    from matplotlib.font_manager import fontManager

    wanted = chinese()
    fontManager.addfont(wanted.path)
    # versions before 3.11 know the first face of a collection only
    known = {getattr(entry, "index", 0): entry.name for entry in fontManager.ttflist if entry.fname == wanted.path}
    return known.get(wanted.index, next(iter(known.values())))


def draw(chart: Chart, style: Style) -> tuple[Image.Image, dict[str, Any]]:
    """(the picture, where things are in it: pixels of zero and of `top` along the value axis, RGB of each series)."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings: dict[Any, Any] = {
        "font.family": style.font,
        "font.size": 11,
        "axes.unicode_minus": False,
        "axes.axisbelow": True,
    }
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(settings)
        figure = Figure(figsize=(style.width, style.height), dpi=DPI, layout="constrained", facecolor=style.ground)
        canvas = FigureCanvasAgg(figure)
        axes = figure.add_subplot(facecolor=style.ground)
        DRAW[chart.kind](axes, chart, style)
        axes.set_title(chart.title, pad=10)
        if chart.kind in ("grouped", "stacked") or (chart.kind == "line" and not chart.is_single):
            figure.legend(loc="outside lower center", ncols=len(chart.series), frameon=False)
        canvas.draw()
        pixels = np.asarray(canvas.buffer_rgba())[:, :, :3].copy()
        place = _places(axes, chart, style, len(pixels))
    return Image.fromarray(pixels), place


def _places(axes: Axes, chart: Chart, style: Style, height: int) -> dict[str, Any]:
    place: dict[str, Any] = {"colours": [_rgb(colour) for colour in style.palette]}
    if chart.kind not in ("pie", "table", "heatmap"):
        ends = axes.transData.transform(((0, 0), (chart.top, chart.top)))
        along = ends[:, 0] if chart.horizontal else height - ends[:, 1]
        place["axis"] = [round(float(value), 2) for value in along]
    return place


def _rgb(colour: str) -> list[int]:
    return [int(colour[i : i + 2], 16) for i in (1, 3, 5)]


def _scale(axes: Axes, chart: Chart, style: Style) -> None:
    """The value axis with a grid line at every step, and the categories along the other."""
    ticks = range(0, chart.top + 1, chart.step)
    places = range(len(chart.categories))
    if chart.horizontal:
        axes.set_xlim(0, chart.top)
        axes.set_xticks(ticks)
        axes.set_yticks(places, chart.categories)
        axes.invert_yaxis()
    else:
        axes.set_ylim(0, chart.top)
        axes.set_yticks(ticks)
        long = sum(len(name) for name in chart.categories) > style.width * 7
        axes.set_xticks(places, chart.categories, rotation=30 if long else 0)
    axes.grid(axis="x" if chart.horizontal else "y", color=style.grid, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def _bar(axes: Axes, chart: Chart, style: Style) -> None:
    _scale(axes, chart, style)
    places, colours = range(len(chart.categories)), style.palette[0]
    draw_bars = axes.barh if chart.horizontal else axes.bar
    bars = draw_bars(places, chart.values[0], 0.6, color=colours)
    if chart.labelled:
        axes.bar_label(bars, padding=2)


def _grouped(axes: Axes, chart: Chart, style: Style) -> None:
    _scale(axes, chart, style)
    width = 0.8 / len(chart.series)
    for i, (name, values) in enumerate(zip(chart.series, chart.values, strict=True)):
        places = np.arange(len(values)) + (i - (len(chart.series) - 1) / 2) * width
        bars = axes.bar(places, values, width * 0.92, color=style.palette[i], label=name)
        if chart.labelled:
            axes.bar_label(bars, padding=1, fontsize=8)


def _stacked(axes: Axes, chart: Chart, style: Style) -> None:
    _scale(axes, chart, style)
    below = np.zeros(len(chart.categories))
    for i, (name, values) in enumerate(zip(chart.series, chart.values, strict=True)):
        axes.bar(range(len(values)), values, 0.6, bottom=below, color=style.palette[i], label=name)
        below += values


def _line(axes: Axes, chart: Chart, style: Style) -> None:
    _scale(axes, chart, style)
    for i, (name, values) in enumerate(zip(chart.series, chart.values, strict=True)):
        axes.plot(range(len(values)), values, marker="os^D"[i], color=style.palette[i], label=name, linewidth=2)


def _pie(axes: Axes, chart: Chart, style: Style) -> None:
    labels = [f"{name}\n{value}%" for name, value in zip(chart.categories, chart.values[0], strict=True)]
    axes.pie(chart.values[0], labels=labels, colors=style.palette, startangle=90, counterclock=False,
             wedgeprops={"edgecolor": style.ground})  # fmt: skip


def _table(axes: Axes, chart: Chart, style: Style) -> None:
    from matplotlib.transforms import Bbox

    axes.set_axis_off()
    cells = [[str(row[i]) for row in chart.values] for i in range(len(chart.categories))]
    place = Bbox.from_bounds(0.2, 0, 0.78, 1)
    drawn = axes.table(cells, rowLabels=chart.categories, colLabels=chart.series, bbox=place,
                       cellLoc="center", rowLoc="center", colColours=["#e4e8ee"] * len(chart.series))  # fmt: skip
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(11)


def _scatter(axes: Axes, chart: Chart, style: Style) -> None:
    _scale(axes, chart, style)
    axes.set_xlim(0, 11)
    axes.set_xticks(range(12), [str(x) for x in range(12)], rotation=0)
    axes.grid(axis="x", color=style.grid, linewidth=0.8)
    axes.set_xlabel("x")
    axes.set_ylabel("y")
    axes.scatter([int(x) for x in chart.categories], chart.values[0], s=44, color=style.palette[0], zorder=3)


def _histogram(axes: Axes, chart: Chart, style: Style) -> None:
    _scale(axes, chart, style)
    edges = [chart.categories[0].partition("–")[0], *(name.partition("–")[2] for name in chart.categories)]
    bars = axes.bar(range(len(chart.categories)), chart.values[0], 1.0, color=style.palette[0], edgecolor=style.ground)
    axes.set_xticks(np.arange(len(edges)) - 0.5, edges, rotation=0)
    if chart.labelled:
        axes.bar_label(bars, padding=2)


def _heatmap(axes: Axes, chart: Chart, style: Style) -> None:
    values = np.array(chart.values)
    axes.imshow(values, cmap="YlGnBu", aspect="auto", vmin=0, vmax=values.max())
    axes.set_xticks(range(len(chart.categories)), chart.categories, rotation=30 if len(chart.categories) > 5 else 0)
    axes.set_yticks(range(len(chart.series)), chart.series)
    for (row, col), value in np.ndenumerate(values):
        axes.text(col, row, str(value), ha="center", va="center", color="w" if value > values.max() * 0.55 else "k")


def _box(axes: Axes, chart: Chart, style: Style) -> None:
    names = ("whislo", "q1", "med", "q3", "whishi")
    stats = [dict(zip(names, five, strict=True), fliers=[]) for five in zip(*chart.values, strict=True)]
    axes.bxp(stats, positions=range(len(stats)), widths=0.5, patch_artist=True, showfliers=False,
             boxprops={"facecolor": style.palette[0]}, medianprops={"color": "black", "linewidth": 2})  # fmt: skip
    _scale(axes, chart, style)


DRAW: dict[str, Callable[[Any, Chart, Style], None]] = {
    "bar": _bar,
    "grouped": _grouped,
    "stacked": _stacked,
    "line": _line,
    "pie": _pie,
    "table": _table,
    "scatter": _scatter,
    "histogram": _histogram,
    "heatmap": _heatmap,
    "box": _box,
}
"""How each kind is drawn onto axes."""
