"""What `SailVLProcessor.__call__` does: rendered texts, images and videos -> the padded inputs of a model's `generate`.

Texts are taken as the chat template renders them, control tokens and all; strangers' text belongs into messages that
go through `SailVLProcessor.prompt`, where it can never become a control token.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from sail_train.processor.images import open_image, to_rgb
from sail_train.processor.jinja import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER
from sail_train.processor.pieces import visual_pieces
from sail_train.processor.style import IMAGE_TOKEN
from sail_train.processor.visuals import image_patches, join, lay_out, measure_video, pixels
from sail_train.types import Visual

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

_PLACEHOLDERS = re.compile(f"({re.escape(IMAGE_PLACEHOLDER)}|{re.escape(VIDEO_PLACEHOLDER)})")


def prepare(
    processor: SailVLProcessor,
    texts: Sequence[str],
    *,
    images: Any,
    videos: Any,
    padding: bool | str = True,
    truncation: bool | str | None = None,
    max_length: int | None = None,
    max_tiles: int | None = None,
    fps: float | None = None,
    add_special_tokens: bool = False,
) -> dict[str, Any]:
    """`input_ids` and `attention_mask` (lists), `patches` (P, patch_dim) uint8 and `grids` (pictures, 2) int64.

    `padding`, `truncation` and `max_length` are the tokenizer's; `max_tiles` and `fps` stand in for the model's.
    """
    waiting = {IMAGE_PLACEHOLDER: _flat(images), VIDEO_PLACEHOLDER: _flat(videos)}
    _check_counts(texts, waiting)
    files = {placeholder: iter(given) for placeholder, given in waiting.items()}
    expanded: list[str] = []
    patches: list[np.ndarray] = []
    grids: list[tuple[int, int]] = []
    for text in texts:
        count, pieces = text.count(IMAGE_PLACEHOLDER), []
        for piece in _PLACEHOLDERS.split(text):
            if piece in files:
                file = next(files[piece])
                if piece == IMAGE_PLACEHOLDER:
                    visual, found = _image(processor, file, count=count, max_tiles=max_tiles)
                else:
                    visual, found = _video(processor, file, fps=fps)
                piece = as_text(processor, visual)
                patches.append(found)
                grids += visual.grids
            pieces.append(piece)
        expanded.append("".join(pieces))
    tokens = processor.tokenizer(
        expanded, padding=padding, truncation=truncation, max_length=max_length, add_special_tokens=add_special_tokens
    )
    if truncation:
        _check_whole(processor, expanded, tokens["input_ids"], max_length)
    return {
        "input_ids": tokens["input_ids"],
        "attention_mask": tokens["attention_mask"],
        "patches": join(patches, processor.image_spec),
        "grids": np.asarray(grids, dtype=np.int64).reshape(-1, 2),
    }


def _image(processor: SailVLProcessor, file: Any, *, count: int, max_tiles: int | None) -> tuple[Visual, np.ndarray]:
    image = to_rgb(_as_image(file))
    visual = lay_out((image.height, image.width), processor.image_spec, count=count, max_tiles=max_tiles)
    return visual, image_patches(image, visual, processor.image_spec)


def _video(processor: SailVLProcessor, file: Any, *, fps: float | None) -> tuple[Visual, np.ndarray]:
    visual = measure_video(_as_bytes(file, "video"), processor.image_spec, processor.video_spec, fps=fps)
    return visual, pixels(visual, processor.image_spec)


def as_text(processor: SailVLProcessor, visual: Visual) -> str:
    """The tokens of a visual as text, which the tokenizer reads back as the same tokens."""
    pieces = visual_pieces(visual, processor.style, merge_size=processor.image_spec.merge_size)
    return "".join(IMAGE_TOKEN * piece.count if piece.kind == "context" else piece.text for piece in pieces)


def _check_counts(texts: Sequence[str], waiting: dict[str, list[Any]]) -> None:
    for placeholder, files in waiting.items():
        if (found := sum(text.count(placeholder) for text in texts)) != len(files):
            kind = placeholder.strip("<>")
            raise ValueError(f"the texts have {found} {placeholder} placeholders for {len(files)} {kind}s")


def _check_whole(
    processor: SailVLProcessor, texts: Sequence[str], ids: Sequence[Sequence[int]], max_length: int | None
) -> None:
    """ValueError if truncation took a placeholder, whose picture the model would then miss, or its closing token."""
    for text, row in zip(texts, ids, strict=True):
        for token in (IMAGE_TOKEN, *processor.style.image_tokens):
            kept = list(row).count(processor.tokenizer.convert_tokens_to_ids(token))
            if kept != (given := text.count(token)):
                limit = processor.tokenizer.model_max_length if max_length is None else max_length
                raise ValueError(
                    f"truncation to max_length={limit} tokens cuts an image: {kept} of {given} {token} are left; raise "
                    "max_length, or show fewer or smaller images"
                )


def _flat(files: Any) -> list[Any]:
    return list(_flatten(files))


def _flatten(files: Any) -> Iterator[Any]:
    if isinstance(files, (list, tuple)):
        for entry in files:
            yield from _flatten(entry)
    elif files is not None:
        yield files


def _as_image(image: Any) -> Image.Image:
    return image if isinstance(image, Image.Image) else open_image(_as_bytes(image, "image"))


def _as_bytes(file: Any, kind: str) -> bytes:
    if isinstance(file, bytes):
        return file
    if isinstance(file, (str, Path)) and len(str(file)) < 4096 and Path(file).is_file():
        return Path(file).read_bytes()
    hint = "a PIL image, bytes, or the path of a local file" if kind == "image" else "bytes or the path of a local file"
    raise ValueError(f"{str(file)[:100]!r} is no {kind}: give {hint}")
