"""Pieces of a rendered conversation -> images and videos in their places -> token ids, and which are trained on.

Text of a sample never becomes a control token: "<|im_end|>" in a question is spelled out, byte by byte. That is a
setting of the tokenizer, as padding is, and transformers changes both on each of its own calls; so the encoder has a
tokenizer of its own, which the stream's background thread and an evaluation may use at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from sail_train.processor.style import IMAGE_TOKEN, ChatStyle
from sail_train.processor.template import Piece
from sail_train.types import BadSample, Visual

_CACHED_TEXTS = 16_384
"""Tokenised texts kept: headers, questions and short answers come again and again."""


def place(pieces: Sequence[Piece], visuals: Sequence[Visual], style: ChatStyle, *, merge_size: int) -> list[Piece]:
    """Pieces with the tokens of `visuals`, in order, where the images and videos stand.

    BadSample "image_count" or "video_count" where they differ in number.
    """
    for kind in ("image", "video"):
        found, given = sum(piece.kind == kind for piece in pieces), sum(visual.kind == kind for visual in visuals)
        if found != given:
            raise BadSample(f"{kind}_count", f"{found} {kind} parts for {given} {kind}s")
    waiting = iter(visuals)
    placed: list[Piece] = []
    for piece in pieces:
        if piece.kind in ("image", "video"):
            visual = next(waiting)
            assert visual.kind == piece.kind, "visuals come in the order of their parts"
            placed += visual_pieces(visual, style, merge_size=merge_size)
        else:
            placed.append(piece)
    return placed


def visual_pieces(visual: Visual, style: ChatStyle, *, merge_size: int) -> Iterator[Piece]:
    """An image's placeholders in one pair of control tokens; those of a video frame by frame, each with its label."""
    tokens = [rows * cols // merge_size**2 for rows, cols in visual.grids]
    if visual.kind == "image":
        yield from _picture(sum(tokens), style)
        return
    for number, (count, seconds) in enumerate(zip(tokens, visual.seconds, strict=True), start=1):
        if label := style.label_frame(number, seconds):
            yield Piece("text", label)
        yield from _picture(count, style)
        if style.after_frame:
            yield Piece("text", style.after_frame)


def _picture(count: int, style: ChatStyle) -> Iterator[Piece]:
    start, end = style.image_tokens
    yield Piece("control", start)
    yield Piece("context", count=count)
    yield Piece("control", end)


class PieceEncoder:
    def __init__(self, backend: Tokenizer, ids: Mapping[str, int]) -> None:
        """`ids` are those of the control tokens."""
        self._backend = backend
        self._ids = ids
        self._texts: dict[str, list[int]] = {}

    def encode(self, pieces: Sequence[Piece]) -> tuple[np.ndarray, np.ndarray]:
        """((T,) int32 ids, (T,) bool trained) of placed pieces; BadSample "bad_text" for what is not Unicode."""
        pieces = _join_texts(pieces)
        texts = self._encode_texts([piece.text for piece in pieces if piece.kind == "text"])
        ids: list[int] = []
        trained: list[bool] = []
        for piece in pieces:
            if piece.kind == "text":
                new = texts[piece.text]
            elif piece.kind == "control":
                new = [self._ids[piece.text]]
            else:
                assert piece.kind == "context", f"{piece.kind} without its tokens"
                new = [self._ids[IMAGE_TOKEN]] * piece.count
            ids += new
            trained += [piece.trained] * len(new)
        return np.asarray(ids, dtype=np.int32), np.asarray(trained, dtype=bool)

    def _encode_texts(self, texts: Sequence[str]) -> dict[str, list[int]]:
        """The ids of each of `texts`, with one call of the tokenizer for those that are not in the cache."""
        found = {text: self._texts.get(text) for text in texts}
        if new := [text for text, ids in found.items() if ids is None]:
            try:
                encodings = self._own.encode_batch(new, add_special_tokens=False)
            except (UnicodeError, TypeError) as error:  # a lone surrogate
                raise BadSample("bad_text", f"not Unicode: {error}") from error
            found |= zip(new, (encoding.ids for encoding in encodings), strict=True)
            if len(self._texts) > _CACHED_TEXTS:
                self._texts = {}
            self._texts.update(found)  # type: ignore[arg-type]
        return found  # type: ignore[return-value]

    @cached_property
    def _own(self) -> Tokenizer:
        own = Tokenizer.from_str(self._backend.to_str())
        own.encode_special_tokens = True
        own.no_padding()
        own.no_truncation()
        return own


def _join_texts(pieces: Sequence[Piece]) -> list[Piece]:
    """Consecutive texts that are trained on alike become one: tokens may cross from a header into a question."""
    joined = []
    for (kind, trained), group in itertools.groupby(pieces, key=lambda piece: (piece.kind, piece.trained)):
        if kind == "text":
            joined.append(Piece("text", "".join(piece.text for piece in group), trained))
        else:
            joined += group
    return joined
