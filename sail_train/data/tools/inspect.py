"""`sail-train data inspect`: the first samples of some shards as the model will see them.

Images and videos as the vision encoder gets them, every token with its id, and which tokens are trained on: on the
terminal, or as one HTML page.
The samples are strangers' text: all of it is escaped.
"""

from __future__ import annotations

import argparse
import base64
import html
import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from rich.console import Console
from rich.text import Text

from sail_train.data.config import SourceConfig
from sail_train.data.measure import parsers
from sail_train.data.shards import ShardFile, expand
from sail_train.data.tools.processors import open_processor
from sail_train.processor.images import image_size
from sail_train.processor.patches import unpatchify
from sail_train.processor.video import probe
from sail_train.types import IGNORE_INDEX, BadSample, Visual

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor


_ACROSS = 8
"""Pictures in a row."""
_GAP = 4


@dataclass(frozen=True, kw_only=True)
class SeenToken:
    """One token, or a run of a picture's placeholders."""

    text: str
    id: int
    trained: bool
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class SeenVisual:
    """One image or video as the vision encoder gets it: its tiles or frames side by side."""

    kind: str
    png: bytes
    size: tuple[int, int]
    """(height, width) in the shard."""
    resized: tuple[int, int]
    """Of one picture."""
    num_pictures: int
    num_tokens: int

    @property
    def caption(self) -> str:
        (height, width), (rows, cols) = self.size, self.resized
        times = f"{self.num_pictures} x " if self.num_pictures > 1 else ""
        return f"{self.kind} {width}x{height} -> {times}{cols}x{rows}, {self.num_tokens} tokens"


@dataclass(frozen=True, kw_only=True)
class SeenSample:
    """One sample, or why it is none."""

    key: str
    shard: str
    problem: str = ""
    visuals: tuple[SeenVisual, ...] = ()
    tokens: tuple[SeenToken, ...] = ()
    facts: str = ""
    """Answer, verifier, mode and the numbers of tokens."""


def seen_samples(
    patterns: list[str], processor: SailVLProcessor, *, sample_format: str = "messages"
) -> Iterator[SeenSample]:
    """Every sample in the order of the shards, bad ones with their reason."""
    parse = parsers({"inspect": SourceConfig(format=sample_format)})["inspect"]
    for path in expand("inspect", patterns):
        file = ShardFile(path, source="inspect")
        index = file.index()
        for place in range(len(index)):
            key = index.bad[place][0] if place in index.bad else ""
            try:
                raw = file.sample(index, place)
                key = raw.key
                conversation = parse(raw)
                encoded = processor.encode(conversation)
                yield SeenSample(
                    key=key,
                    shard=path,
                    visuals=tuple(_seen(visual, processor) for visual in encoded.visuals),
                    tokens=tuple(_tokens(encoded.input_ids.tolist(), encoded.labels.tolist(), processor)),
                    facts=f"{encoded.num_tokens} tokens, {encoded.num_trained} trained, {encoded.num_patches} patches; "
                    f"answer={conversation.answer!r}, verifier={conversation.verifier!r}, mode={conversation.mode!r}",
                )
            except BadSample as error:
                yield SeenSample(key=key, shard=path, problem=str(error))
        file.close()


def _seen(visual: Visual, processor: SailVLProcessor) -> SeenVisual:
    spec, grid, patches = processor.image_spec, visual.grids[0], processor.pixels(visual)
    info = probe(visual.data) if visual.kind == "video" else None
    buffer = io.BytesIO()
    pictures = [unpatchify(part, grid, spec) for part in np.split(patches, len(visual.grids))]
    Image.fromarray(_sheet(pictures)).save(buffer, "PNG")
    return SeenVisual(
        kind=visual.kind,
        png=buffer.getvalue(),
        size=(info.height, info.width) if info else image_size(visual.data),
        resized=(grid[0] * spec.patch_size, grid[1] * spec.patch_size),
        num_pictures=len(pictures),
        num_tokens=spec.tokens_of(visual.grids),
    )


def _sheet(pictures: list[np.ndarray]) -> np.ndarray:
    """Pictures of one size in rows of at most `_ACROSS`, with white gaps."""
    height, width, _ = pictures[0].shape
    cols = min(len(pictures), _ACROSS)
    rows = -(-len(pictures) // cols)
    sheet = np.full((rows * (height + _GAP) - _GAP, cols * (width + _GAP) - _GAP, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // cols * (height + _GAP), number % cols * (width + _GAP)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def _tokens(ids: list[int], labels: list[int], processor: SailVLProcessor) -> Iterator[SeenToken]:
    # labels are those of the next token: a token is trained on if the label before it is not ignored
    trained = [False, *(label != IGNORE_INDEX for label in labels[:-1])]
    for (token, is_trained), group in itertools.groupby(zip(ids, trained, strict=True)):
        count = len(list(group))
        content = processor.tokenizer.decode([token], skip_special_tokens=False)
        if token == processor.image_token_id:
            yield SeenToken(text=content, id=token, trained=is_trained, count=count)
        else:
            yield from [SeenToken(text=content, id=token, trained=is_trained)] * count


def render_html(samples: list[SeenSample]) -> str:
    """One page without scripts or outside references."""
    legend = "<p>Shaded tokens are trained on. A token's number shows when the pointer rests on it.</p>"
    body = "\n".join(_section(sample) for sample in samples)
    return f"<!doctype html>\n<meta charset=utf-8><title>Samples</title><style>{_STYLE}</style>\n{legend}\n{body}\n"


_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}
section{border-top:1px solid #ccc;padding:1rem 0}h2{font-size:1rem;margin:0}
img{image-rendering:pixelated;min-width:84px;margin:.5rem .5rem 0 0;border:1px solid #ccc}
figure{display:inline-block;margin:0}figcaption,.facts{color:#666;font-size:.85rem}
pre{white-space:pre-wrap;background:#f6f6f6;padding:.7rem}b{font-weight:normal;background:#ffe08a}
i{font-style:normal;color:#06c}.bad{color:#b00}
"""


def _section(sample: SeenSample) -> str:
    title = f"<h2>{html.escape(sample.key)}</h2><div class=facts>{html.escape(sample.shard)}</div>"
    if sample.problem:
        return f"<section>{title}<p class=bad>{html.escape(sample.problem)}</p></section>"
    visuals = "".join(_figure(visual) for visual in sample.visuals)
    tokens = "".join(_span(token) for token in sample.tokens)
    facts = f"<div class=facts>{html.escape(sample.facts)}</div>"
    return f"<section>{title}{facts}{visuals}<pre>{tokens}</pre></section>"


def _figure(visual: SeenVisual) -> str:
    source = f"data:image/png;base64,{base64.b64encode(visual.png).decode()}"
    caption = html.escape(visual.caption.replace("->", "\N{RIGHTWARDS ARROW}"))
    return f'<figure><img src="{source}" alt=""><figcaption>{caption}</figcaption></figure>'


def _span(token: SeenToken) -> str:
    content = html.escape(token.text)
    if token.count > 1:
        content = f"<i>{content}&times;{token.count}</i>"
    tag = "b" if token.trained else "span"
    return f'<{tag} title="{token.id}">{content}</{tag}>'


def show(sample: SeenSample, console: Console) -> None:
    """Prints one sample: trained tokens in reverse."""
    console.print(f"{sample.key}  {sample.shard}", style="bold", markup=False)
    if sample.problem:
        console.print(sample.problem, style="red", markup=False)
        return
    console.print(sample.facts, style="dim", markup=False)
    for visual in sample.visuals:
        console.print(visual.caption, style="dim")
    line = Text()
    for token in sample.tokens:
        content = token.text if token.count == 1 else f"{token.text}x{token.count}"
        line.append(_printable(content), style="reverse" if token.trained else "")
    console.print(line)


def _printable(content: str) -> str:
    """Without what a terminal would obey."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else "\N{REPLACEMENT CHARACTER}" for letter in content
    )


def run(argv: list[str]) -> int:
    """The command; 1 if one of the samples shown is bad."""
    parser = argparse.ArgumentParser(
        prog="sail-train data inspect",
        description="Show the first samples of some shards as the model will see them: images, tokens, loss mask.",
        epilog="example: sail-train data inspect 'data/tiny/train/digits/*.tar' --processor data/tiny/tokenizer "
        "--limit 8 --html samples.html",
    )
    parser.add_argument("shards", nargs="+", help="paths, globs or brace patterns of .tar files")
    parser.add_argument("--processor", type=Path, required=True, help="model, run or tokenizer folder")
    parser.add_argument("--format", default="messages", help="how samples are read: messages (default) or caption")
    parser.add_argument("--limit", type=int, default=4, help="samples shown (default 4)")
    parser.add_argument("--html", type=Path, help="write a page instead of printing")
    args = parser.parse_args(argv)
    console = Console(soft_wrap=True, highlight=False)
    try:
        every = seen_samples(args.shards, open_processor(args.processor), sample_format=args.format)
        samples = list(itertools.islice(every, args.limit))
    except ValueError as error:
        parser.error(str(error))
    if args.html is not None:
        args.html.write_text(render_html(samples), encoding="utf-8")
        console.print(f"{len(samples)} samples in {args.html}")
    else:
        for sample in samples:
            show(sample, console)
    return 1 if any(sample.problem for sample in samples) else 0
