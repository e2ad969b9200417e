"""A sample as the model will see it: pictures rebuilt from their patches, tokens, and which of them are trained on."""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sail_train.data.config import SourceConfig
from sail_train.data.listing import expand
from sail_train.data.measure import parsers
from sail_train.data.shard_file import ShardFile
from sail_train.processor.images import image_size
from sail_train.processor.patches import unpatchify
from sail_train.processor.video import probe
from sail_train.types import IGNORE_INDEX, BadSample, Conversation, Encoded, Visual

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

ACROSS = 8
"""Frames side by side."""
LOSSLESS = 512 * 512
"""Pixels of a sheet beyond which it is kept as JPEG: a page of large PNGs is slow to open."""


@dataclass(frozen=True, kw_only=True)
class SeenToken:
    """One token, or a run of a picture's placeholders."""

    text: str
    id: int
    trained: bool
    visual: bool = False
    """Whether it stands for a piece of a picture."""
    count: int = 1


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """Pictures of one size laid out as they were cut: the tiles of one cut, frames in their order, or one image."""

    data: bytes
    """PNG, or JPEG where it is large."""
    rows: int
    cols: int
    cell: tuple[int, int]
    """(height, width) of one picture in pixels."""
    unit: int
    """Side in pixels of what becomes one token."""
    labels: tuple[str, ...] = ()
    """Of each picture; frames have the time at which they are shown."""

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.rows * self.cell[0], self.cols * self.cell[1]


@dataclass(frozen=True, kw_only=True)
class SeenVisual:
    """One image or video as the vision encoder gets it."""

    kind: str
    sheets: tuple[Sheet, ...]
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
    source: str = ""
    problem: str = ""
    visuals: tuple[SeenVisual, ...] = ()
    tokens: tuple[SeenToken, ...] = ()
    facts: str = ""
    """Answer, verifier, mode and the numbers of tokens."""


Read = tuple[str, str, tuple[Conversation, Encoded] | BadSample]
"""(shard, key, what was read and measured)."""


def measured_samples(
    patterns: list[str], processor: SailVLProcessor, config: SourceConfig, source: str = "inspect"
) -> Iterator[Read]:
    """Every sample in the order of the shards, measured by its headers; bad ones with their reason."""
    parse = parsers({source: config})[source]
    for path in expand(source, patterns):
        file = ShardFile(path, source=source)
        index = file.index()
        for place in range(len(index)):
            key = index.bad[place][0] if place in index.bad else ""
            try:
                raw = file.sample(index, place)
                key = raw.key
                conversation = parse(raw)
                yield path, key, (conversation, processor.encode(conversation))
            except BadSample as error:
                yield path, key, error
        file.close()


def seen_samples(
    patterns: list[str], processor: SailVLProcessor, *, sample_format: str = "messages"
) -> Iterator[SeenSample]:
    """Every sample in the order of the shards, decoded; bad ones with their reason."""
    for found in measured_samples(patterns, processor, SourceConfig(format=sample_format)):
        yield seen(found, processor)


def seen(found: Read, processor: SailVLProcessor, source: str = "") -> SeenSample:
    """A measured sample, its pictures decoded."""
    shard, key, read = found
    try:
        if isinstance(read, BadSample):
            raise read
        conversation, encoded = read
        return SeenSample(
            key=key,
            shard=shard,
            source=source,
            visuals=tuple(_visual(visual, processor) for visual in encoded.visuals),
            tokens=tuple(_tokens(encoded.input_ids.tolist(), encoded.labels.tolist(), processor)),
            facts=f"{encoded.num_tokens} tokens, {encoded.num_trained} trained, {encoded.num_patches} patches; "
            f"answer={conversation.answer!r}, verifier={conversation.verifier!r}, mode={conversation.mode!r}",
        )
    except BadSample as error:
        return SeenSample(key=key, shard=shard, source=source, problem=str(error))


def pixel_size(visual: Visual) -> tuple[int, int]:
    """(height, width) of an image or a video as it is stored."""
    if visual.kind == "image":
        return image_size(visual.data)
    info = probe(visual.data)
    return info.height, info.width


def _visual(visual: Visual, processor: SailVLProcessor) -> SeenVisual:
    spec, grid, patches = processor.image_spec, visual.grids[0], processor.pixels(visual)
    pictures = [unpatchify(part, grid, spec) for part in np.split(patches, len(visual.grids))]
    return SeenVisual(
        kind=visual.kind,
        sheets=tuple(_sheets(visual, pictures, spec.unit)),
        size=pixel_size(visual),
        resized=(grid[0] * spec.patch_size, grid[1] * spec.patch_size),
        num_pictures=len(pictures),
        num_tokens=spec.tokens_of(visual.grids),
    )


def _sheets(visual: Visual, pictures: list[np.ndarray], unit: int) -> Iterator[Sheet]:
    """One for each cut of a tiled image; all frames of a film on one; an image at its own shape alone."""
    if visual.tiles:
        rest = iter(pictures)
        for rows, cols in visual.tiles:
            yield _sheet(list(itertools.islice(rest, rows * cols)), cols, unit, ())
    else:
        labels = tuple(f"{seconds:.1f} s" for seconds in visual.seconds)
        yield _sheet(pictures, min(len(pictures), ACROSS), unit, labels)


def _sheet(pictures: list[np.ndarray], cols: int, unit: int, labels: tuple[str, ...]) -> Sheet:
    height, width, _ = pictures[0].shape
    rows = -(-len(pictures) // cols)
    sheet = np.full((rows * height, cols * width, 3), 255, dtype=np.uint8)
    for number, picture in enumerate(pictures):
        top, left = number // cols * height, number % cols * width
        sheet[top : top + height, left : left + width] = picture
    buffer = io.BytesIO()
    large = sheet.shape[0] * sheet.shape[1] > LOSSLESS
    Image.fromarray(sheet).save(buffer, "JPEG" if large else "PNG", quality=92)
    return Sheet(data=buffer.getvalue(), rows=rows, cols=cols, cell=(height, width), unit=unit, labels=labels)


def _tokens(ids: list[int], labels: list[int], processor: SailVLProcessor) -> Iterator[SeenToken]:
    # labels are those of the next token: a token is trained on if the label before it is not ignored
    trained = [False, *(label != IGNORE_INDEX for label in labels[:-1])]
    for (token, is_trained), group in itertools.groupby(zip(ids, trained, strict=True)):
        count = len(list(group))
        content = processor.tokenizer.decode([token], skip_special_tokens=False)
        if token == processor.image_token_id:
            yield SeenToken(text=content, id=token, trained=is_trained, visual=True, count=count)
        else:
            yield from [SeenToken(text=content, id=token, trained=is_trained)] * count
