"""Writing conversations as webdataset shards, with the same bytes for the same samples.

A shard is written under a temporary name, synced and renamed: one that can be seen is whole.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from sail_train.data.tar import READ
from sail_train.types import Conversation

_MAGIC = ((b"\xff\xd8\xff", "jpg"), (b"\x89PNG\r\n\x1a\n", "png"))
_MOV_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_KEY = re.compile(r"[^./\\\0]+(/[^./\\\0]+)*")


def write_shards(
    samples: Iterable[Conversation | Mapping[str, Any]],
    directory: str | Path,
    prefix: str,
    samples_per_shard: int,
    *,
    overwrite: bool = False,
) -> list[Path]:
    """Writes `directory`/`prefix`-000000.tar and so on, and returns their paths.

    A sample is a conversation, or its files as webdataset takes them: {"__key__": key, extension: bytes, ...}.

    Raises:
        ValueError: shards of that prefix are there already (and not `overwrite`), or a sample that our own reader
            would refuse.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples_per_shard={samples_per_shard} must be at least 1")
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    # a longer earlier set would leave shards behind that a glob then mixes in
    before = sorted(directory.glob(f"{prefix}-[0-9]*.tar"))
    if before and not overwrite:
        raise ValueError(f"{before[0]} is there already; choose another prefix or folder, or overwrite")
    paths: list[Path] = []
    remaining = iter(samples)
    while batch := list(itertools.islice(remaining, samples_per_shard)):
        paths.append(directory / f"{prefix}-{len(paths):06d}.tar")
        write_shard(batch, paths[-1])
    for stale in set(before) - set(paths):
        stale.unlink()
    return paths


def files_of(sample: Conversation) -> dict[str, str | bytes]:
    """The files of a sample by extension: images and videos as they are, its .json, and webdataset's key."""
    images = {f"{place}.{image_extension(image)}": image for place, image in enumerate(sample.images)}
    videos = {f"{place}.{video_extension(video)}": video for place, video in enumerate(sample.videos)}
    record = json.dumps(_record(sample), ensure_ascii=False, separators=(",", ":"))
    return {"__key__": sample.key, **images, **videos, "json": record.encode()}


def image_extension(image: bytes) -> str:
    """By its first bytes: "jpg", "png" or "webp"; ValueError for anything else."""
    for magic, extension in _MAGIC:
        if image.startswith(magic):
            return extension
    if image[:4] == b"RIFF" and image[8:12] == b"WEBP":
        return "webp"
    raise ValueError(f"an image beginning with {image[:12]!r} is neither JPEG, PNG nor WebP")


def video_extension(video: bytes) -> str:
    """By its first bytes: "mp4" (mov too), "mkv" (webm too) or "avi"; ValueError for anything else."""
    if video[4:8] in _MOV_BOXES:
        return "mp4"
    if video.startswith(b"\x1a\x45\xdf\xa3"):
        return "mkv"
    if video[:4] == b"RIFF" and video[8:12] == b"AVI ":
        return "avi"
    raise ValueError(f"a video beginning with {video[:12]!r} is neither MP4, MOV, WebM, MKV nor AVI")


def _record(sample: Conversation) -> dict[str, Any]:
    messages = [
        {"role": message.role, "content": [_part(part.type, part.text) for part in message.content]}
        for message in sample.messages
    ]
    optional = {"answer": sample.answer, "verifier": sample.verifier, "mode": sample.mode}
    record = {"messages": messages, **{name: value for name, value in optional.items() if value is not None}}
    return {**record, "source": sample.source, **({"meta": sample.meta} if sample.meta else {})}


def _part(kind: str, text: str) -> dict[str, str]:
    return {"type": kind, "text": text} if kind == "text" else {"type": kind}


def _check(files: Mapping[str, Any], keys: set[str], shard: str) -> None:
    """ValueError for what the reader would refuse, and for what would not be the same bytes everywhere."""
    key = files["__key__"]
    if not _KEY.fullmatch(key):
        raise ValueError(f"key {key!r} must be a relative name without dots")
    if key in keys:
        raise ValueError(f"key {key!r} is used twice in {shard}")
    keys.add(key)
    for extension, content in files.items():
        if extension == "__key__":
            continue
        if extension.rpartition(".")[2] not in READ or not isinstance(content, bytes):
            raise ValueError(f"key {key!r}: {extension!r} must be bytes of a {', '.join(sorted(READ))} file")


def write_shard(samples: Iterable[Conversation | Mapping[str, Any]], path: Path) -> None:
    """Writes one shard, taking one sample after the other; raises as `write_shards`, and then leaves no file."""
    from webdataset import TarWriter  # imports torch

    keys: set[str] = set()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            # a plain file object: given a name, webdataset would open pipes
            with TarWriter(file, user="", group="", mtime=0, encoder=False) as writer:
                for sample in samples:
                    files = files_of(sample) if isinstance(sample, Conversation) else sample
                    _check(files, keys, path.name)
                    writer.write(files)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
