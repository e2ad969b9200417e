"""Pieces of a rendered conversation -> token ids, and which of them are trained on.

Text of a sample never becomes a control token: "<|im_end|>" in a question is spelled out, byte by byte. That is a
setting of the tokenizer, as padding is, and transformers changes both on each of its own calls; so the encoder has a
tokenizer of its own, which the stream's background thread and an evaluation may use at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from tokenizers import Tokenizer

from sail_train.processor.template import Piece
from sail_train.processor.tokenizer import IMAGE_END, IMAGE_START, IMAGE_TOKEN
from sail_train.types import BadSample

_CACHED_TEXTS = 16_384
"""Tokenised texts kept: headers, questions and short answers come again and again."""


class PieceEncoder:
    def __init__(self, backend: Tokenizer, ids: Mapping[str, int]) -> None:
        """`ids` are those of the control tokens."""
        self._backend = backend
        self._ids = ids
        self._texts: dict[str, list[int]] = {}

    def encode(self, pieces: Sequence[Piece], image_tokens: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """((T,) int32 ids, (T,) bool trained); `image_tokens` are the numbers of tokens of the images, in order.

        BadSample: "image_count" (images and image pieces differ), "bad_text" (not Unicode).
        """
        if (found := sum(piece.kind == "image" for piece in pieces)) != len(image_tokens):
            raise BadSample("image_count", f"{found} image parts for {len(image_tokens)} images")
        remaining = iter(image_tokens)
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
                new = [self._ids[IMAGE_START], *[self._ids[IMAGE_TOKEN]] * next(remaining), self._ids[IMAGE_END]]
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
