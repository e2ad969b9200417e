"""The page of `data inspect`: samples, their tokens, packed rows and histograms, in one file of HTML.

Without scripts and outside references; whatever a sample says is escaped. What stands for what is told by the colour:
blue a picture's token, grey one that is read, yellow one that is trained on.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sail_train.data.tools.charts import colours, histogram
from sail_train.data.tools.seen import SeenSample, SeenToken, SeenVisual, Sheet
from sail_train.data.tools.survey import PackedSample, Survey

STYLE = Path(__file__).with_name("page.css")


@dataclass(kw_only=True)
class Page:
    """What is shown."""

    samples: Sequence[SeenSample]
    sources: Sequence[str] = ()
    survey: Survey | None = None
    rows: Sequence[Sequence[PackedSample]] = ()
    seq_length: int = 0
    max_patches: int = 0
    note: str = ""
    """Why there are no rows, if there are none."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """What the page was made from, by name."""


def render(page: Page) -> str:
    """The whole page."""
    paint = colours(page.sources)
    facts = "; ".join(f"{name}: {value}" for name, value in page.facts.items())
    samples = "\n".join(_sample(sample, paint) for sample in page.samples)
    return (
        "<!doctype html>\n<html lang=en><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width,initial-scale=1">'
        f"<title>Samples</title><style>{STYLE.read_text()}</style>\n<h1>Samples as the model will see them</h1>"
        f"<p class=soft>{html.escape(facts)}</p>"
        "<input type=checkbox id=tokens checked><label for=tokens> grid of tokens</label> "
        "<input type=checkbox id=tiles checked><label for=tiles> grid of tiles or frames</label>"
        "<span class='key k-picture'></span>token of a picture<span class='key k-read'></span>read"
        "<span class='key k-trained'></span>trained on; a token's number shows when the pointer rests on it"
        f"<main>{_survey(page)}{_rows(page, paint)}<h2>Samples</h2>{samples}</main></html>\n"
    )


def _survey(page: Page) -> str:
    if page.survey is None:
        return ""
    found, names = page.survey, page.sources
    by_source = {name: [each for each in found.samples if each.source == name] for name in names}
    charts = [
        histogram({name: [each.tokens for each in by_source[name]] for name in names}, "Tokens a sample"),
        histogram({name: [each.trained for each in by_source[name]] for name in names}, "Tokens trained on"),
        histogram({name: [each.patches for each in by_source[name]] for name in names}, "Patches a sample"),
        histogram(
            {name: [side for each in by_source[name] for side in each.sides] for name in names},
            "Resolution", unit="pixels, side of the square of equal area",
        ),
        histogram({name: [each.cost for each in by_source[name]] for name in names}, "Modelled cost",
                  unit=found.cost_unit),
    ]  # fmt: skip
    bad = "; ".join(f"{count} {reason}" for reason, count in found.bad.most_common())
    problem = f"<p class=bad>bad: {html.escape(bad)}</p>" if bad else ""
    legend = "".join(_name(name, colours(names)) for name in names)
    head = f"<h2>{len(found.samples)} samples measured</h2><p>{legend}</p>{problem}"
    return f"{head}<div class=charts>{''.join(charts)}</div>"


def _rows(page: Page, paint: Mapping[str, str]) -> str:
    if not page.rows and not page.note:
        return ""
    body = "".join(_row(number, row, page, paint) for number, row in enumerate(page.rows))
    note = f"<p class=bad>{html.escape(page.note)}</p>" if page.note else ""
    return (
        f"<h2>Packed rows of {page.seq_length} tokens and {page.max_patches} patches</h2><p class=soft>Above the "
        f"tokens of each sample in the row, below its patches; the sources mixed alike.</p>{note}{body}"
    )


def _row(number: int, row: Sequence[PackedSample], page: Page, paint: Mapping[str, str]) -> str:
    tokens, patches = sum(each.tokens for each in row), sum(each.patches for each in row)
    bars = [
        "".join(
            f'<span style="width:{100 * size / limit:.2f}%;background:{paint.get(each.source, "#999")}" '
            f'title="{html.escape(f"{each.source} {each.key}: {each.tokens} tokens, {each.patches} patches")}">'
            f"{html.escape(text)}</span>"
            for each, size, text in cells
        )
        for cells, limit in (
            ([(each, each.tokens, each.key) for each in row], page.seq_length),
            ([(each, each.patches, "") for each in row], page.max_patches),
        )
    ]
    return (
        f"<div class=row><span class=soft>row {number}, {len(row)} samples</span>"
        f"<div class=bars><div>{bars[0]}</div><div>{bars[1]}</div></div>"
        f"<span class=soft>{100 * tokens / page.seq_length:.1f}% tokens, "
        f"{100 * patches / page.max_patches:.1f}% patches</span></div>"
    )


def _name(name: str, paint: Mapping[str, str]) -> str:
    return f'<span class=source style="background:{paint.get(name, "#999")}">{html.escape(name)}</span>' if name else ""


def _sample(sample: SeenSample, paint: Mapping[str, str]) -> str:
    title = (
        f"<h3>{_name(sample.source, paint)}{html.escape(sample.key)}</h3>"
        f"<div class=soft>{html.escape(sample.shard)}</div>"
    )
    if sample.problem:
        return f"<section class=sample>{title}<p class=bad>{html.escape(sample.problem)}</p></section>"
    visuals = "".join(_figure(visual) for visual in sample.visuals)
    tokens = "".join(_token(token) for token in sample.tokens)
    return (
        f"<section class=sample>{title}<div class=soft>{html.escape(sample.facts)}</div>"
        f"<div class=visuals>{visuals}</div>{_strip(sample.tokens)}<pre>{tokens}</pre></section>"
    )


def _figure(visual: SeenVisual) -> str:
    sheets = "".join(_sheet(sheet) for sheet in visual.sheets)
    caption = html.escape(visual.caption.replace("->", "\N{RIGHTWARDS ARROW}"))
    return f"<figure><div class=sheets>{sheets}</div><figcaption>{caption}</figcaption></figure>"


def _sheet(sheet: Sheet) -> str:
    kind = "png" if sheet.data.startswith(b"\x89PNG") else "jpeg"
    height, width = sheet.size
    source = f"data:image/{kind};base64,{base64.b64encode(sheet.data).decode()}"
    tokens = _lines(width, height, sheet.unit, sheet.unit)
    tiles = _lines(width, height, sheet.cell[1], sheet.cell[0])
    # in pixels of the sheet, which is shown smaller: frames have some eight across
    size = max(10, sheet.cell[0] // 9)
    labels = "".join(
        f'<text font-size="{size}" x="{place % sheet.cols * sheet.cell[1] + size // 3}" '
        f'y="{place // sheet.cols * sheet.cell[0] + size}">{html.escape(label)}</text>'
        for place, label in enumerate(sheet.labels)
    )
    return (
        f'<div class=sheet><img src="{source}" alt=""><svg viewBox="0 0 {width} {height}" '
        f'preserveAspectRatio=none><path class=tokengrid d="{tokens}"/><path class=tilegrid d="{tiles}"/>'
        f"{labels}</svg></div>"
    )


def _lines(width: int, height: int, across: int, down: int) -> str:
    """Lines between cells of that size, none at the border."""
    upright = "".join(f"M{x} 0V{height}" for x in range(across, width, across))
    return upright + "".join(f"M0 {y}H{width}" for y in range(down, height, down))


def _strip(tokens: Sequence[SeenToken]) -> str:
    """The whole sample in one line, by what its tokens are."""
    runs: list[tuple[str, int]] = []
    for token in tokens:
        kind = "picture" if token.visual else "trained" if token.trained else "read"
        count = runs.pop()[1] if runs and runs[-1][0] == kind else 0
        runs.append((kind, count + token.count))
    total = sum(count for _, count in runs) or 1
    cells = "".join(
        f'<span class=k-{kind} style="width:{100 * count / total:.3f}%" title="{count} {kind}"></span>'
        for kind, count in runs
    )
    return f"<div class=strip>{cells}</div>"


def _token(token: SeenToken) -> str:
    content = html.escape(token.text)
    if token.count > 1:
        content = f"<i>{content}&times;{token.count}</i>"
    tag = "b" if token.trained else "span"
    return f'<{tag} title="{token.id}">{content}</{tag}>'
