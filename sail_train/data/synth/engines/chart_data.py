"""The numbers behind a chart: kind, names and values, so chosen that all of them can be read off the picture.

Either every value is written on its mark (`labelled`), or every value lies on a grid line, `step` apart.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from sail_train.data.synth.engines.item import Request, pick, sample, whole

KINDS = {
    "basic": ("bar", "line", "pie", "table"),
    "simple": ("bar", "grouped", "line", "pie", "table", "scatter", "histogram", "heatmap"),
    "complex": ("grouped", "stacked", "line", "table", "scatter", "histogram", "heatmap", "box"),
}
SIZES = {"basic": (3, 5), "simple": (4, 6), "complex": (6, 8)}
"""Fewest and most categories."""
QUARTILES = (("minimum", "最小值"), ("lower quartile", "下四分位数"), ("median", "中位数"),
             ("upper quartile", "上四分位数"), ("maximum", "最大值"))  # fmt: skip
MOST_LINES = 10
"""Grid lines above zero."""

TOPICS = (
    ("Books sold", "图书销量"), ("Visitors", "游客人数"), ("Photos taken", "照片数量"), ("Orders", "订单数量"),
    ("Energy used", "用电量"), ("Trees planted", "植树数量"), ("Members", "会员人数"), ("Trips", "出行次数"),
)  # fmt: skip
CATEGORIES = (
    (("Jan", "一月"), ("Feb", "二月"), ("Mar", "三月"), ("Apr", "四月"), ("May", "五月"), ("Jun", "六月"),
     ("Jul", "七月"), ("Aug", "八月")),
    (("Oslo", "奥斯陆"), ("Lima", "利马"), ("Cairo", "开罗"), ("Kyoto", "京都"), ("Paris", "巴黎"), ("Quito", "基多"),
     ("Delhi", "德里"), ("Bern", "伯尔尼")),
    (("Maths", "数学"), ("Music", "音乐"), ("Art", "美术"), ("Sports", "体育"), ("History", "历史"),
     ("Biology", "生物"), ("Physics", "物理"), ("Chess", "象棋")),
    (("Apples", "苹果"), ("Pears", "梨"), ("Plums", "李子"), ("Grapes", "葡萄"), ("Lemons", "柠檬"),
     ("Figs", "无花果"), ("Cherries", "樱桃"), ("Melons", "甜瓜")),
)  # fmt: skip
IN_ORDER = (0,)
"""Which of CATEGORIES are a course of time."""
SERIES = (
    (("North", "北区"), ("South", "南区"), ("East", "东区"), ("West", "西区")),
    (("Team A", "甲队"), ("Team B", "乙队"), ("Team C", "丙队"), ("Team D", "丁队")),
    (("2021", "2021年"), ("2022", "2022年"), ("2023", "2023年"), ("2024", "2024年")),
)


@dataclass(frozen=True, kw_only=True)
class Chart:
    kind: str
    title: str
    categories: list[str]
    series: list[str]
    """Of a box plot its five numbers, of a heat map its rows, of a table its columns."""
    values: list[list[int]]
    """[series][category]."""
    labelled: bool
    step: int
    """Distance of two grid lines."""
    top: int
    """End of the value axis."""
    horizontal: bool = False

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_single(self) -> bool:
        return len(self.series) == 1


def draw_data(rng: np.random.Generator, request: Request) -> Chart:
    kind = pick(rng, KINDS[request.level])
    count = whole(rng, *SIZES[request.level])
    number = _num_series(rng, kind, request.level)
    labelled = kind in ("pie", "table", "heatmap") or (
        kind in ("bar", "grouped", "histogram") and rng.random() < (0.6 if request.level == "basic" else 0.35)
    )
    step = pick(rng, (1, 2, 5, 10, 20, 50))
    values = _values(rng, kind, number, count, labelled, step)
    top = _above(max(max(row) for row in values)) if labelled else step * MOST_LINES
    topic = pick(rng, TOPICS)
    return Chart(
        kind=kind,
        title=request.say(*topic),
        categories=_categories(rng, request, kind, count),
        series=_series(rng, request, kind, number, request.say(*topic)),
        values=values,
        labelled=labelled,
        step=_above(top) // 10 if labelled else step,
        top=top,
        horizontal=kind == "bar" and request.level != "basic" and rng.random() < 0.3,
    )


def _num_series(rng: np.random.Generator, kind: str, level: str) -> int:
    if kind == "box":
        return len(QUARTILES)
    if kind in ("grouped", "stacked"):
        return whole(rng, 2, 3)
    if kind == "heatmap":
        return whole(rng, 3, 4)
    if kind == "table":
        return {"basic": 1, "simple": 2, "complex": 3}[level]
    return whole(rng, 2, 3) if kind == "line" and level != "basic" else 1


def _above(value: int) -> int:
    """A round number somewhat above `value`: room for what is written on the highest mark."""
    return next(top for top in (10, 20, 50, 100, 200, 500, 1000, 2000) if top >= value * 1.1)


def _values(rng: np.random.Generator, kind: str, number: int, count: int, labelled: bool, step: int) -> list[list[int]]:
    if kind == "pie":
        return [_shares(rng, count)]
    if kind == "box":
        five = [sorted(sample(rng, range(MOST_LINES + 1), 5)) for _ in range(count)]
        return [[row[i] * step for row in five] for i in range(5)]
    if labelled:
        scale = pick(rng, (20, 90, 450))
        return [[whole(rng, max(2, scale // 20), scale) for _ in range(count)] for _ in range(number)]
    if kind == "stacked":
        room = MOST_LINES // number
        return [[step * whole(rng, 1, room) for _ in range(count)] for _ in range(number)]
    columns = [sample(rng, range(1, MOST_LINES), number) for _ in range(count)]  # no two marks on one spot
    return [[column[i] * step for column in columns] for i in range(number)]


def _shares(rng: np.random.Generator, count: int) -> list[int]:
    """Per cents, each at least 5, that are 100 together."""
    cuts = sorted(sample(rng, range(1, 100 - 5 * count), count - 1))
    edges = [0, *cuts, 100 - 5 * count]
    return [5 + right - left for left, right in zip(edges, edges[1:], strict=False)]


def _categories(rng: np.random.Generator, request: Request, kind: str, count: int) -> list[str]:
    if kind == "histogram":
        width = pick(rng, (5, 10, 20))
        return [f"{i * width}–{(i + 1) * width}" for i in range(count)]
    if kind == "scatter":
        return [str(x) for x in sorted(sample(rng, range(1, 11), count))]
    # a line over something that has no order says nothing
    of = 0 if kind == "line" else whole(rng, 0, len(CATEGORIES) - 1)
    names = [request.say(*pair) for pair in CATEGORIES[of]]
    return names[:count] if of in IN_ORDER else sample(rng, names, count)


def _series(rng: np.random.Generator, request: Request, kind: str, number: int, topic: str) -> list[str]:
    if kind == "box":
        return [request.say(*pair) for pair in QUARTILES]
    if number == 1:
        return [topic]
    return [request.say(*pair) for pair in pick(rng, SERIES)][:number]
