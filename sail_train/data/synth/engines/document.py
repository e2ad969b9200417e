"""Documents: pages, forms, receipts and tables, to read, to look things up in, and to find places on.

basic     a form or a short page, clean
simple    receipts and tables too; turned by up to 1.5 degrees, a little blurred and noisy
complex   two columns, longer receipts and tables; turned by up to 5 degrees, blurred, noisy, with the bands of a
          photographed screen

Asked is a transcription, the text of a field or a cell, the sum of a receipt, the box of a text that stands on the page
once, or words with their boxes; transcriptions are graded by edit distance.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction

import numpy as np
from PIL import Image

from sail_train.data.synth.engines import document_words as vocabulary
from sail_train.data.synth.engines.document_page import WEAR, Page, Word, around, distort, thousandths
from sail_train.data.synth.engines.item import Item, Request, pick, sample, whole
from sail_train.data.synth.engines.scene import bbox
from sail_train.data.synth.engines.text import joined

WRITES = True


@dataclass(kw_only=True)
class Sheet:
    """A page that was written, and what can be asked about it."""

    page: Page
    kind: str
    paragraphs: list[tuple[int, str]] = field(default_factory=list)
    """(block, text) of what is worth transcribing."""
    fields: list[tuple[tuple[str, ...], int, str]] = field(default_factory=list)
    """(what it is looked up by, block, text) of values, prices and cells."""


def make(rng: np.random.Generator, request: Request) -> Item:
    sheet = pick(rng, SHEETS[request.level])(rng, request)
    image, words = distort(sheet.page, rng, WEAR[request.level])
    options = [ask for ask, fits in TASKS if fits(sheet)]
    item = pick(rng, options)(rng, request, sheet, words, image)
    seen = [{"text": word.text, "box": thousandths(word.box, image), "block": word.block} for word in words]
    item.facts.update(kind=sheet.kind, words=seen)
    return item


def _sentence(rng: np.random.Generator, request: Request) -> str:
    parts = [request.say(*pick(rng, getattr(vocabulary, name))) for name in ("SUBJECTS", "VERBS", "OBJECTS", "WHENS")]
    number = whole(rng, 2, 98)
    if request.language == "zh":
        subject, verb, thing, when = parts
        return f"{when}{subject}{verb}{thing}，{pick(rng, vocabulary.ENDINGS)[1]}，共有{number}人到场。"
    subject, verb, thing, when = parts
    return f"{subject} {verb} {thing} {when}, {pick(rng, vocabulary.ENDINGS)[0]}; {number} people came."


def _text(rng: np.random.Generator, request: Request) -> Sheet:
    """Headings and paragraphs, in two columns at the complex level."""
    columns = 2 if request.level == "complex" else 1
    width = whole(rng, 640, 760) if columns == 2 else whole(rng, 440, 560)
    page = Page(rng, request, width, 1000)
    sheet = Sheet(page=page, kind="text")
    room = (width - page.margin * (columns + 1)) / columns
    headings = sample(rng, vocabulary.HEADINGS, columns + 1)
    _, top = page.write(request.say(*headings[0]), (page.margin, page.margin), width, bold=True, scale=1.5)
    ends = []
    for column in range(columns):
        left, y = page.margin + column * (room + page.margin), top + 8
        if columns == 2:
            _, y = page.write(request.say(*headings[column + 1]), (left, y), room, bold=True)
        for _ in range(whole(rng, 1, 2)):
            text = joined([_sentence(rng, request) for _ in range(whole(rng, 1, 2))], request.language)
            block, y = page.write(text, (left, y + 6), room)
            sheet.paragraphs.append((block, text))
        ends.append(y)
    page.cut(max(ends))
    return sheet


def _person(rng: np.random.Generator, request: Request) -> str:
    if request.language == "zh":
        return pick(rng, vocabulary.ZH_LAST) + pick(rng, vocabulary.ZH_FIRST)
    return f"{pick(rng, vocabulary.FIRST)} {pick(rng, vocabulary.LAST)}"


def _value(rng: np.random.Generator, request: Request, key: str) -> str:
    if key == "name":
        return _person(rng, request)
    if key == "city":
        return request.say(*pick(rng, vocabulary.CITIES))
    if key == "date":
        return f"{whole(rng, 1990, 2024)}-{whole(rng, 1, 12):02d}-{whole(rng, 1, 28):02d}"
    if key == "phone":
        return "".join(str(whole(rng, 0, 9)) for _ in range(9))
    return f"{whole(rng, 10, 999)}.{whole(rng, 0, 99):02d}" if key == "amount" else f"K{whole(rng, 1000, 9999)}"


def _form(rng: np.random.Generator, request: Request) -> Sheet:
    page = Page(rng, request, whole(rng, 400, 520), 700)
    sheet = Sheet(page=page, kind="form")
    title = request.say(*pick(rng, vocabulary.FORM_TITLES))
    _, y = page.write(title, (page.margin, page.margin), 900, bold=True, scale=1.4)
    for key in sample(rng, list(vocabulary.KEYS), whole(rng, 3, len(vocabulary.KEYS))):
        name = request.say(*vocabulary.KEYS[key])
        value = _value(rng, request, key)
        page.write(f"{name}{request.say(':', '：')}", (page.margin, y + 8), 200)
        block, y = page.write(value, (page.margin + page.size * 7, y + 8), 400)
        page.rule(page.margin + page.size * 7, y - 2, page.image.width - page.margin, y - 2)
        sheet.fields.append(((name,), block, value))
    page.cut(y)
    return sheet


def _receipt(rng: np.random.Generator, request: Request) -> Sheet:
    """Goods and prices; the total is left for the reader."""
    page = Page(rng, request, whole(rng, 320, 400), 900)
    sheet = Sheet(page=page, kind="receipt")
    _, y = page.write(request.say(*pick(rng, vocabulary.SHOPS)), (page.margin, page.margin), 900, bold=True, scale=1.2)
    page.rule(page.margin, y, page.image.width - page.margin, y)
    count = whole(rng, 3, 5) if request.level == "simple" else whole(rng, 5, 8)
    for goods in sample(rng, vocabulary.GOODS, count):
        name, price = request.say(*goods), f"{whole(rng, 1, 30)}.{whole(rng, 0, 19) * 5:02d}"
        page.write(name, (page.margin, y + 6), 300)
        right = page.image.width - page.margin - page.font().getlength(price)
        block, y = page.write(price, (right, y + 6), 300)
        sheet.fields.append(((name,), block, price))
    page.rule(page.margin, y + 4, page.image.width - page.margin, y + 4)
    page.cut(y + 8)
    return sheet


def _table(rng: np.random.Generator, request: Request) -> Sheet:
    columns = whole(rng, 2, 3) if request.level == "simple" else whole(rng, 3, 4)
    rows = whole(rng, 3, 4) if request.level == "simple" else whole(rng, 5, 7)
    names = [request.say(*pair) for pair in sample(rng, vocabulary.GOODS, rows)]
    heads = [request.say(*pair) for pair in vocabulary.COLUMNS[:columns]]
    page = Page(rng, request, 20 * 8 * (columns + 1) + 100, 20 * 2 * (rows + 1) + 160)
    cell, high = page.size * 8, page.size * 2
    sheet = Sheet(page=page, kind="table")
    _, top = page.write(request.say(*pick(rng, vocabulary.TABLE_TITLES)), (40, 36), 900, bold=True, scale=1.3)
    for col, head in enumerate(heads):
        page.write(head, (40 + cell * (col + 1) + 6, top + 6), 900, bold=True)
    for row, name in enumerate(names):
        y = top + high * (row + 1)
        page.write(name, (46, y + 6), 900)
        for col, head in enumerate(heads):
            value = str(whole(rng, 10, 999))
            block, _ = page.write(value, (40 + cell * (col + 1) + 6, y + 6), 900)
            sheet.fields.append(((name, head), block, value))
    for row in range(rows + 2):
        page.rule(40, top + high * row, 40 + cell * (columns + 1), top + high * row)
    for col in range(columns + 2):
        page.rule(40 + cell * col, top, 40 + cell * col, top + high * (rows + 1))
    page.cut(top + high * (rows + 1))
    return sheet


SHEETS: dict[str, tuple[Callable[[np.random.Generator, Request], Sheet], ...]] = {
    "basic": (_text, _form),
    "simple": (_text, _form, _receipt, _table),
    "complex": (_text, _receipt, _table),
}

Ask = Callable[[np.random.Generator, Request, Sheet, list[Word], Image.Image], Item]


def _transcribe(
    rng: np.random.Generator, request: Request, sheet: Sheet, words: list[Word], image: Image.Image
) -> Item:
    block, text = pick(rng, sheet.paragraphs)
    box = bbox(thousandths(around([word for word in words if word.block == block]), image))
    return Item(
        task="transcribe",
        images=(image,),
        question=request.say(f"Transcribe the text in {box}.", f"转写{box}中的文字。"),
        answer=text,
        verifier="anls",
        facts={"block": block},
    )


def _lookup(rng: np.random.Generator, request: Request, sheet: Sheet, words: list[Word], image: Image.Image) -> Item:
    names, block, text = pick(rng, sheet.fields)
    box = bbox(thousandths(around([word for word in words if word.block == block]), image))
    en, zh = {
        "form": (f'What is written under "{names[0]}"?', f"“{names[0]}”一栏写的是什么？"),
        "receipt": (f'What does "{names[0]}" cost?', f"“{names[0]}”的价格是多少？"),
        "table": (f'What stands in the row "{names[0]}" and the column "{names[-1]}"?',
                  f"“{names[0]}”一行、“{names[-1]}”一列的内容是什么？"),
    }[sheet.kind]  # fmt: skip
    thought = request.say(f'I look for {", ".join(names)}: at {box} stands "{text}".',
                          f"我来找{'、'.join(names)}：{box}处写着“{text}”。")  # fmt: skip
    return Item(
        task="lookup",
        images=(image,),
        question=request.say(en, zh),
        thought=thought,
        answer=text,
        verifier="exact" if sheet.kind == "form" else "number",
        facts={"names": list(names), "block": block},
    )


def _sum(rng: np.random.Generator, request: Request, sheet: Sheet, words: list[Word], image: Image.Image) -> Item:
    """Of all goods, or of two."""
    everything = rng.random() < 0.5
    picked = sheet.fields if everything else sample(rng, sheet.fields, 2)
    total = sum((Fraction(price) for _, _, price in picked), Fraction(0))
    answer = f"{float(total):.2f}"
    names = [name for (name,), _, _ in picked]
    question = (
        request.say("What is the sum of all prices on the receipt?", "小票上所有商品的总价是多少？")
        if everything
        else request.say(f"What do {names[0]} and {names[1]} cost together?", f"{names[0]}和{names[1]}一共多少钱？")
    )
    listed = "\n".join(f"{name}: {price}" for (name,), _, price in picked)
    return Item(
        task="sum",
        images=(image,),
        question=question,
        thought=f"{listed}\n{' + '.join(price for *_, price in picked)} = {answer}",
        answer=answer,
        verifier="number",
        facts={"blocks": [block for _, block, _ in picked]},
    )


def _once(sheet: Sheet) -> list[tuple[int, str]]:
    """Values whose text stands nowhere else on the page."""
    everything = " ".join(word.text for word in sheet.page.words)
    return [(block, text) for _, block, text in sheet.fields if everything.count(text) == 1]


def _find(rng: np.random.Generator, request: Request, sheet: Sheet, words: list[Word], image: Image.Image) -> Item:
    block, text = pick(rng, _once(sheet))
    box = thousandths(around([word for word in words if word.block == block]), image)
    return Item(
        task="find",
        images=(image,),
        question=request.say(
            f'Where does "{text}" stand? Give its box as <bbox>x1 y1 x2 y2</bbox>, in thousandths (0-999).',
            f"“{text}”在哪里？请用<bbox>x1 y1 x2 y2</bbox>（0-999的相对坐标）给出边界框。",
        ),
        answer=bbox(box),
        verifier="box",
        facts={"block": block, "text": text},
    )


def _boxed_words(
    rng: np.random.Generator, request: Request, sheet: Sheet, words: list[Word], image: Image.Image
) -> Item:
    """The words of one line of the page, each with its box."""
    line = pick(rng, sorted({word.line for word in words if word.block in dict(sheet.paragraphs)}))
    members = [word for word in words if word.line == line]
    place = bbox(thousandths(around(members), image))
    return Item(
        task="words",
        images=(image,),
        question=request.say(
            f"Read the line in {place}: every word, then its box as <bbox>x1 y1 x2 y2</bbox>.",
            f"读出{place}中的一行：每个字后面用<bbox>x1 y1 x2 y2</bbox>给出它的位置。",
        ),
        answer=" ".join(f"{word.text} {bbox(thousandths(word.box, image))}" for word in members),
        verifier="boxes",
        facts={"places": [place for place, word in enumerate(words) if word.line == line]},
    )


TASKS: tuple[tuple[Ask, Callable[[Sheet], bool]], ...] = (
    (_transcribe, lambda sheet: bool(sheet.paragraphs)),
    (_boxed_words, lambda sheet: bool(sheet.paragraphs)),
    (_lookup, lambda sheet: bool(sheet.fields)),
    (_sum, lambda sheet: sheet.kind == "receipt"),
    (_find, lambda sheet: bool(_once(sheet))),
)
"""What is asked, and of which sheets it can be."""
