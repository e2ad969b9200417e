"""Charts: ten kinds, with questions whose answers come out of the data, captions, and the data themselves.

basic     bars, a line, a pie or a small table of one series, 3 to 5 categories; read a value, find an extreme, count
simple    two or three series, scatter plots, histograms and heat maps too; differences, comparisons, sums of two
complex   6 to 8 categories, stacked bars and box plots too, values on grid lines more than on labels; sums, means,
          shares of a total, largest gaps, how often a line rises

Of every level a share asks for a caption or for the data as JSON, so that with the facts of a sample the triplet of
SAIL-VL2 (arXiv 2509.14033, section 3: data, caption, question and answer) is complete. Both are graded by edit
distance.
"""

from __future__ import annotations

import json

import numpy as np

from sail_train.data.synth.engines.chart_ask import Asked, ask
from sail_train.data.synth.engines.chart_data import Chart, draw_data
from sail_train.data.synth.engines.chart_draw import draw, draw_style
from sail_train.data.synth.engines.item import Item, Request

WRITES = True

NAMES = {
    "bar": ("bar chart", "柱状图"), "grouped": ("grouped bar chart", "分组柱状图"),
    "stacked": ("stacked bar chart", "堆叠柱状图"), "line": ("line chart", "折线图"), "pie": ("pie chart", "饼图"),
    "table": ("table", "表格"), "scatter": ("scatter plot", "散点图"), "histogram": ("histogram", "直方图"),
    "heatmap": ("heat map", "热力图"), "box": ("box plot", "箱线图"),
}  # fmt: skip
CAPTION, TABLE = 0.12, 0.12
"""Shares of the samples that ask for a caption, and for the data."""


def make(rng: np.random.Generator, request: Request) -> Item:
    chart = draw_data(rng, request)
    image, places = draw(chart, draw_style(rng, request))
    kind = rng.random()
    if kind < CAPTION:
        asked = _caption(chart, request)
    elif kind < CAPTION + TABLE:
        asked = _table(chart, request)
    else:
        asked = ask(rng, chart, request)
    return Item(
        task=asked.task,
        images=(image,),
        question=asked.question,
        thought="\n".join(asked.steps),
        answer=asked.answer,
        verifier=asked.verifier,
        facts={"chart": chart.facts(), "asked": asked.given, "caption": caption(chart, request), **places},
    )


def caption(chart: Chart, request: Request) -> str:
    """What kind of chart it is, its title, and every value."""
    en, zh = NAMES[chart.kind]
    article = "A" if en[0] not in "aeiou" else "An"
    lines = [request.say(f'{article} {en} titled "{chart.title}".', f"一张题为“{chart.title}”的{zh}。")]
    for name, values in zip(chart.series, chart.values, strict=True):
        listed = ", ".join(f"{at} {value}" for at, value in zip(chart.categories, values, strict=True))
        lines.append(listed + "." if chart.is_single else f"{name}: {listed}.")
    return " ".join(lines)


def data(chart: Chart) -> str:
    """The data as JSON."""
    series = dict(zip(chart.series, chart.values, strict=True))
    record = {"title": chart.title, "categories": chart.categories, "series": series}
    return json.dumps(record, ensure_ascii=False)


def _caption(chart: Chart, request: Request) -> Asked:
    question = request.say("Describe the chart with all its values.", "描述这张图，包括所有数值。")
    return Asked(task="caption", question=question, answer=caption(chart, request), steps=[], verifier="anls")


def _table(chart: Chart, request: Request) -> Asked:
    question = request.say(
        'Give the data of the chart as JSON: {"title": ..., "categories": [...], "series": {name: [values]}}.',
        '以JSON给出图中的数据：{"title": ..., "categories": [...], "series": {名称: [数值]}}。',
    )
    return Asked(task="table", question=question, answer=data(chart), steps=[], verifier="anls")
