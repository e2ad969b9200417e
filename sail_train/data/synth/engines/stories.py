"""Word problems: a story in either language, what is given, the steps and the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from sail_train.data.synth.engines.item import Request, pick, whole

NAMES = (("Anna", "小红"), ("Ben", "小明"), ("Clara", "小丽"), ("David", "小刚"), ("Emma", "小芳"))
GOODS = (("notebooks", "笔记本", "本"), ("pencils", "铅笔", "支"), ("apples", "苹果", "个"), ("stickers", "贴纸", "张"))


@dataclass(frozen=True, kw_only=True)
class Story:
    name: str
    text: str
    given: dict[str, int]
    steps: list[str]
    answer: Fraction


def tell(rng: np.random.Generator, request: Request) -> Story:
    """One of the stories of a level."""
    return pick(rng, STORIES[request.level])(rng, request)


def _change(rng: np.random.Generator, request: Request) -> Story:
    (en, zh), (goods, good, unit) = pick(rng, NAMES), pick(rng, GOODS)
    count, price = whole(rng, 2, 9), whole(rng, 2, 9)
    paid = next(bill for bill in (20, 50, 100) if bill > count * price)
    text = request.say(
        f"{en} buys {count} {goods} at {price} dollars each and pays with {paid} dollars. How many dollars does {en} "
        "get back?",
        f"{zh}买了{count}{unit}{good}，每{unit}{price}元，付了{paid}元。应找回多少元？",
    )
    cost = count * price
    return Story(
        name="change",
        text=text,
        given={"count": count, "price": price, "paid": paid},
        steps=[
            request.say(f"Cost: {count} × {price} = {cost}", f"花费：{count} × {price} = {cost}"),
            request.say(f"Back: {paid} − {cost} = {paid - cost}", f"找回：{paid} − {cost} = {paid - cost}"),
        ],
        answer=Fraction(paid - cost),
    )


def _left_over(rng: np.random.Generator, request: Request) -> Story:
    goods, good, unit = pick(rng, GOODS)
    boxes, each = whole(rng, 3, 9), whole(rng, 4, 12)
    total = boxes * each + whole(rng, 1, 20)
    text = request.say(
        f"There are {total} {goods}. {boxes} boxes are filled with {each} {goods} each. How many {goods} are left?",
        f"一共有{total}{unit}{good}，装满了{boxes}盒，每盒{each}{unit}。还剩多少{unit}{good}？",
    )
    used = boxes * each
    return Story(
        name="left_over",
        text=text,
        given={"total": total, "boxes": boxes, "each": each},
        steps=[
            request.say(f"In the boxes: {boxes} × {each} = {used}", f"盒中：{boxes} × {each} = {used}"),
            request.say(f"Left: {total} − {used} = {total - used}", f"剩余：{total} − {used} = {total - used}"),
        ],
        answer=Fraction(total - used),
    )


def _journey(rng: np.random.Generator, request: Request) -> Story:
    v, w, s, t = whole(rng, 3, 9) * 10, whole(rng, 3, 9) * 10, whole(rng, 1, 4), whole(rng, 1, 4)
    text = request.say(
        f"A car drives at {v} km/h for {_hours(s)} and then at {w} km/h for {_hours(t)}. How many kilometres does it "
        "drive in all?",
        f"一辆汽车先以每小时{v}千米的速度行驶{s}小时，再以每小时{w}千米的速度行驶{t}小时。一共行驶了多少千米？",
    )
    steps = [f"{v} × {s} = {v * s}", f"{w} × {t} = {w * t}", f"{v * s} + {w * t} = {v * s + w * t}"]
    return Story(
        name="journey", text=text, given={"v": v, "w": w, "s": s, "t": t}, steps=steps, answer=Fraction(v * s + w * t)
    )


def _hours(count: int) -> str:
    return "1 hour" if count == 1 else f"{count} hours"


def _discount(rng: np.random.Generator, request: Request) -> Story:
    price, off = whole(rng, 2, 30) * 20, pick(rng, (10, 15, 20, 25, 30, 40))
    more = whole(rng, 1, 9)
    cheaper = price * (100 - off) // 100
    text = request.say(
        f"A coat costs {price} dollars. Its price is lowered by {off} percent, and sending it costs {more} dollars. "
        "How many dollars are paid in all?",
        f"一件大衣原价{price}元，降价{off}%后出售，另付运费{more}元。一共付多少元？",
    )
    return Story(
        name="discount",
        text=text,
        given={"price": price, "off": off, "more": more},
        steps=[f"{price} × (100 − {off}) ÷ 100 = {cheaper}", f"{cheaper} + {more} = {cheaper + more}"],
        answer=Fraction(cheaper + more),
    )


def _shares(rng: np.random.Generator, request: Request) -> Story:
    """One has `more` more than `times` as many as the other."""
    (one, eins), (other, zwei) = NAMES[whole(rng, 0, 2)], NAMES[whole(rng, 3, 4)]
    goods, good, unit = pick(rng, GOODS)
    small, times, more = whole(rng, 4, 25), whole(rng, 2, 4), whole(rng, 1, 9)
    total = small * (times + 1) + more
    text = request.say(
        f"{one} and {other} have {total} {goods} together. {one} has {more} more than {times} times as many as "
        f"{other}. How many {goods} does {other} have?",
        f"{eins}和{zwei}一共有{total}{unit}{good}，{eins}的数量比{zwei}的{times}倍还多{more}{unit}。"
        f"{zwei}有多少{unit}{good}？",
    )
    steps = [
        request.say(f"Let {other} have x {goods}.", f"设{zwei}有x{unit}。"),
        f"x + {times}x + {more} = {total}",
        f"{times + 1}x = {total - more}",
        f"x = {small}",
    ]
    return Story(
        name="shares",
        text=text,
        given={"total": total, "times": times, "more": more},
        steps=steps,
        answer=Fraction(small),
    )


def _meeting(rng: np.random.Generator, request: Request) -> Story:
    """Two who walk towards each other; the answer may be a fraction of an hour, asked in minutes."""
    v, w, minutes = whole(rng, 2, 9) * 10, whole(rng, 2, 9) * 10, whole(rng, 2, 9) * 6
    distance = (v + w) * minutes // 60
    text = request.say(
        f"Two trains {distance} km apart drive towards each other, one at {v} km/h, the other at {w} km/h. After how "
        "many minutes do they meet?",
        f"两列火车相距{distance}千米，相向而行，速度分别是每小时{v}千米和每小时{w}千米。多少分钟后相遇？",
    )
    steps = [f"{v} + {w} = {v + w}", f"{distance} ÷ {v + w} × 60 = {minutes}"]
    return Story(
        name="meeting",
        text=text,
        given={"v": v, "w": w, "distance": distance},
        steps=steps,
        answer=Fraction(minutes),
    )


STORIES: dict[str, tuple[Callable[[np.random.Generator, Request], Story], ...]] = {
    "simple": (_change, _left_over, _journey),
    "complex": (_discount, _shares, _meeting),
}
