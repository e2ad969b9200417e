"""Checking one shard: every sample read, decoded and measured -> its findings, in a file for whoever asked."""

from __future__ import annotations

import functools
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.measure import check_capacity, check_headers, parsers
from sail_train.data.shard_file import ShardFile
from sail_train.data.tools.processors import open_processor
from sail_train.processor.images import open_image
from sail_train.processor.visuals import measure_video, pixels
from sail_train.types import BadSample, Conversation
from sail_train.visual import ImageSpec, VideoSpec

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

EXAMPLES = 3
"""Bad samples of each reason that are named."""
MEASURES = ("tokens", "trained tokens", "patches")
"""What is measured of a sample."""
DIGEST = np.dtype("S16")
"""Of a key, a sample or an image."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What samples are held against."""

    source: SourceConfig
    """Format, `max_tiles` and `fps`."""
    seq_length: int
    max_patches: int


@dataclass(kw_only=True)
class Findings:
    """Of one shard; fields as in `CheckReport`, and digests in the order of the samples."""

    samples: int = 0
    images: int = 0
    videos: int = 0
    modes: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    keys: np.ndarray = field(default_factory=lambda: np.zeros(0, DIGEST))
    contents: np.ndarray = field(default_factory=lambda: np.zeros(0, DIGEST))
    image_contents: np.ndarray = field(default_factory=lambda: np.zeros(0, DIGEST))
    measured: np.ndarray = field(default_factory=lambda: np.zeros((0, len(MEASURES)), np.int64))
    """(samples, MEASURES); no row without a processor."""

    def save(self, path: Path) -> None:
        arrays = {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}
        rest = {name: value for name, value in vars(self).items() if name not in arrays}
        with open(path, "wb") as file:
            np.savez(file, **arrays, rest=np.frombuffer(json.dumps(rest).encode(), np.uint8))  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Findings:
        with np.load(path, allow_pickle=False) as arrays:
            rest = json.loads(arrays["rest"].tobytes())
            return cls(**rest, **{name: arrays[name] for name in arrays.files if name != "rest"})


def check_answers(conversation: Conversation) -> None:
    """BadSample if an assistant's turn says nothing, or there is neither such a turn nor a truth to grade by."""
    turns = [message.text for message in conversation.messages if message.role == "assistant"]
    if empty := [place for place, text in enumerate(turns) if not text.strip()]:
        raise BadSample("empty_answer", f"answer {empty[0] + 1} of {len(turns)} has no text")
    if not turns and not (conversation.answer or "").strip():
        raise BadSample("no_answer", "no assistant's turn to train on, and no 'answer' to grade by")


def findings_path(folder: Path, shard: str) -> Path:
    """Where the findings of a shard are put, and looked for."""
    return folder / f"{hashlib.blake2b(shard.encode(), digest_size=16).hexdigest()}.npz"


def check_shard(path: str, folder: str, limits: Limits, processor: SailVLProcessor | Path | None) -> dict[str, int]:
    """Reads one shard and writes its findings into `folder`; counts."""
    opened = _opened(processor) if isinstance(processor, Path) else processor
    findings = _ShardCheck(path, limits, opened).findings()
    findings.save(findings_path(Path(folder), path))
    return {"samples": findings.samples, "bad": findings.bad.total()}


@functools.lru_cache(maxsize=1)
def _opened(folder: Path) -> SailVLProcessor:
    """Once in a process."""
    return open_processor(folder)


class _ShardCheck:
    def __init__(self, path: str, limits: Limits, processor: SailVLProcessor | None) -> None:
        self._path = path
        self._processor = processor
        self._parse = parsers({"check": limits.source})["check"]
        self._capacity = DataConfig(seq_length=limits.seq_length, max_patches=limits.max_patches)
        self._found = Findings()
        self._contents: list[bytes] = []
        self._images: list[bytes] = []
        self._measured: list[tuple[int, int, int]] = []

    def findings(self) -> Findings:
        keys: dict[bytes, None] = {}
        for key, sample in self._samples():
            keys[_digest(key.encode())] = None
            if isinstance(sample, BadSample):
                self._bad(key, sample)
            else:
                self._good(sample)
        found = self._found
        found.keys = np.array(list(keys), DIGEST)
        found.contents, found.image_contents = np.array(self._contents, DIGEST), np.array(self._images, DIGEST)
        found.measured = np.array(self._measured, np.int64).reshape(-1, len(MEASURES))
        return found

    def _samples(self) -> Iterator[tuple[str, Conversation | BadSample]]:
        file = ShardFile(self._path, source="check")
        index = file.index()
        for place in range(len(index)):
            key = index.bad[place][0] if place in index.bad else ""
            try:
                raw = file.sample(index, place)
                key = raw.key
                conversation = self._parse(raw)
                check_answers(conversation)
                measured = self._measure(conversation)
                self._decode(conversation)
                self._measured += [] if measured is None else [measured]
                yield key, conversation
            except BadSample as error:
                yield key, error
        file.close()

    def _decode(self, conversation: Conversation) -> None:
        """Images to their last pixel; of videos the frames that the model, or else a usual one, looks at."""
        for image in conversation.images:
            open_image(image)
        image_spec = self._processor.image_spec if self._processor else ImageSpec()
        video_spec = self._processor.video_spec if self._processor else VideoSpec()
        for video in conversation.videos:
            pixels(measure_video(video, image_spec, video_spec, fps=conversation.fps), image_spec)

    def _measure(self, conversation: Conversation) -> tuple[int, int, int] | None:
        check_headers(conversation)
        if self._processor is None:
            return None
        encoded = self._processor.encode(conversation)
        check_capacity(encoded.num_tokens, encoded.num_patches, self._capacity)
        return encoded.num_tokens, encoded.num_trained, encoded.num_patches

    def _bad(self, key: str, error: BadSample) -> None:
        self._found.bad[error.reason] += 1
        examples = self._found.examples.setdefault(error.reason, [])
        if len(examples) < EXAMPLES:
            examples.append(f"{self._path} {key!r}: {error.detail}")

    def _good(self, conversation: Conversation) -> None:
        self._found.samples += 1
        self._found.images += len(conversation.images)
        self._found.videos += len(conversation.videos)
        self._found.modes[conversation.mode or "none"] += 1
        images = [_digest(image) for image in conversation.images]
        videos = [_digest(video) for video in conversation.videos]
        self._images += images
        self._contents.append(_digest(repr(conversation.messages).encode() + b"".join(images + videos)))


def _digest(content: bytes) -> bytes:
    """16 bytes, the last of them none that numpy would cut off as padding."""
    return hashlib.blake2b(content, digest_size=15).digest() + b"."
