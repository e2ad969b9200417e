"""Measuring: a candidate's files -> its conversation -> token ids and patch counts, from image headers alone.

What could not be trained on is refused here, before it takes room in a row.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from sail_train.config import choice
from sail_train.data import FORMATS
from sail_train.data.candidate import Candidate
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.draw import uniform
from sail_train.data.split import split
from sail_train.processor.images import image_size
from sail_train.processor.video import probe
from sail_train.types import BadSample, Conversation, Encoded, RawSample

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

Parse = Callable[[RawSample], Conversation]


def parsers(sources: Mapping[str, SourceConfig]) -> dict[str, Parse]:
    """The function that reads each source's format, and puts the source's limits on what it read."""
    return {
        name: _limited(
            importlib.import_module(choice(f"data.sources.{name}.format", source.format, FORMATS)).parse, source
        )
        for name, source in sources.items()
    }


def _limited(parse: Parse, source: SourceConfig) -> Parse:
    if source.max_tiles is None and source.fps is None:
        return parse
    return lambda raw: dataclasses.replace(parse(raw), max_tiles=source.max_tiles, fps=source.fps)


def check_headers(conversation: Conversation) -> None:
    """BadSample if an image or video is, by its header, none that may be decoded."""
    for image in conversation.images:
        image_size(image)
    for video in conversation.videos:
        probe(video)


class Measure:
    """Candidate -> Encoded."""

    def __init__(self, config: DataConfig, processor: SailVLProcessor, *, seed: int) -> None:
        self._config = config
        self._processor = processor
        self._seed = seed
        self._parsers = parsers(config.sources)

    def __call__(self, candidate: Candidate) -> Encoded:
        """Raises BadSample: what the format, the image headers or the template refuse, "too_long",
        "too_many_patches"."""
        raw = candidate.raw
        conversation = self._parsers[raw.source](raw)
        encoded = self._processor.encode(conversation, flag=self._flag(candidate))
        check_capacity(encoded.num_tokens, encoded.num_patches, self._config)
        return encoded

    def pieces(self, candidate: Candidate) -> list[Encoded]:
        """The sample, or several pieces of one that is too long where `data.overlong` is "split"."""
        try:
            return [self(candidate)]
        except BadSample as error:
            if error.reason != "too_long" or self._config.overlong != "split":
                raise
        flag = self._flag(candidate)
        conversation = self._parsers[candidate.raw.source](candidate.raw)
        return split(conversation, lambda part: self._processor.encode(part, flag=flag), self._config.seq_length)

    def _flag(self, candidate: Candidate) -> bool:
        """Drawn by the sample's place and epoch, so that measuring it again gives the same."""
        name = candidate.raw.source
        rate = self._config.sources[name].think_flag
        if rate in (0.0, 1.0):
            return bool(rate)
        return uniform(self._seed, "flag", name, candidate.shard, candidate.raw.offset, candidate.epoch) < rate


def check_capacity(num_tokens: int, num_patches: int, config: DataConfig) -> None:
    """BadSample for a sample that no row holds."""
    if num_tokens > config.seq_length:
        raise BadSample("too_long", f"{num_tokens} tokens, seq_length={config.seq_length}")
    if num_patches > config.max_patches:
        raise BadSample("too_many_patches", f"{num_patches} patches, max_patches={config.max_patches}")
