"""The first pass of dedupe: signatures of every shard in a file of its own, then all of them as arrays on disk.

A shard's signatures are plain arrays (.npz, read with allow_pickle=False), made in parallel and kept while the shard
stays the same. `Signatures` lays them end to end in files that are mapped, not read: 240M samples with one image each
take some 75 GB on disk, and of memory what is looked at.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_train.data.tools import jobs
from sail_train.data.tools.reading import all_text, conversations
from sail_train.data.tools.signatures import NUM_PERMUTATIONS, minhash, sign_image, text_digest
from sail_train.types import BadSample, Conversation

VERSION = 1
"""Of how signatures are made; raise it when they change."""

SAMPLE_FIELDS: Mapping[str, tuple[Any, tuple[int, ...]]] = {
    "good": (np.bool_, ()),
    "images": (np.int32, ()),
    "videos": (np.uint64, ()),
    "text": (np.uint64, ()),
    "minhash": (np.uint32, (NUM_PERMUTATIONS,)),
}
"""Type and shape by name, one a sample: readable; images; a digest of its videos (0: none); of its text; MinHash."""
IMAGE_FIELDS: Mapping[str, tuple[Any, tuple[int, ...]]] = {
    "pixels": (np.uint64, ()),
    "perceptual": (np.uint64, ()),
    "colour": (np.uint8, (3,)),
    "aspect": (np.float32, ()),
}
"""Likewise, one an image."""


def signature_path(shard: str, work: str) -> Path:
    """Where a shard's signatures are: its whole path may be long, its digest is not."""
    absolute = os.path.abspath(shard)
    return Path(work) / "signatures" / f"{hashlib.blake2b(absolute.encode(), digest_size=12).hexdigest()}.npz"


def sign_shard(shard: str, work: str, sample_format: str) -> Mapping[str, Any]:
    """Writes a shard's signatures, unless they are there: the work of one shard."""
    path = signature_path(shard, work)
    status = os.stat(shard)
    origin = np.array([VERSION, status.st_size, status.st_mtime_ns, len(sample_format)], dtype=np.int64)
    if _origin(path) == origin.tolist():
        return {jobs.SKIPPED: 1}
    rows, bad = [], Counter[str]()
    for sample in conversations(shard, sample_format):
        try:
            rows.append(_sign(sample))
        except BadSample as error:
            bad[error.reason] += 1
            rows.append(_sign_nothing())
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with open(temporary, "wb") as file:
        np.savez(file, origin=origin, **_arrays(rows))  # type: ignore[arg-type]
    os.replace(temporary, path)
    return {"signed": len(rows) - bad.total(), "bad": dict(bad)}


def _origin(path: Path) -> list[int] | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            origin: list[int] = arrays["origin"].tolist()
            return origin
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def _sign(sample: Conversation | BadSample) -> dict[str, Any]:
    if isinstance(sample, BadSample):
        raise sample
    text, videos = all_text(sample), 0
    if sample.videos:
        digest = hashlib.blake2b(digest_size=8)
        for video in sample.videos:
            digest.update(hashlib.blake2b(video, digest_size=16).digest())
        videos = int.from_bytes(digest.digest(), "little") or 1
    signed = [sign_image(image) for image in sample.images]
    return {
        "good": True, "images": len(signed), "videos": videos, "text": text_digest(text), "minhash": minhash(text),
        "signed": signed,
    }  # fmt: skip


def _sign_nothing() -> dict[str, Any]:
    return {"good": False, "images": 0, "videos": 0, "text": 0, "minhash": minhash(""), "signed": []}


def _arrays(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    signed = [signature for row in rows for signature in row["signed"]]
    arrays = {name: _array([row[name] for row in rows], *form) for name, form in SAMPLE_FIELDS.items()}
    for name, form in IMAGE_FIELDS.items():
        arrays[name] = _array([getattr(signature, name) for signature in signed], *form)
    return arrays


def _array(values: Sequence[Any], kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    return np.array(values, dtype=kind).reshape(len(values), *shape)


class Signatures:
    """The signatures of many shards, in the order of the shards: sample i of all, mapped from disk."""

    def __init__(self, folder: Path) -> None:
        self.starts = np.load(folder / "starts.npy", allow_pickle=False)
        """(shards + 1,) int64: number of each shard's first sample, and of all samples."""
        self.first_image = np.load(folder / "first_image.npy", mmap_mode="r", allow_pickle=False)
        """(samples + 1,) int64: number of each sample's first image, and of all images."""
        self.fields: dict[str, np.ndarray] = {
            name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)
            for name in (*SAMPLE_FIELDS, *IMAGE_FIELDS)
        }
        """(samples or images, ...) by name."""

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, name: str) -> np.ndarray:
        return self.fields[name]


def lay_out(shards: Sequence[str], work: str, name: str) -> Signatures:
    """Lays the shards' signatures end to end in `work`/`name`; one shard's are in memory at a time.

    Raises:
        ValueError: a shard has none: its part of the first pass is missing.
    """
    paths = [signature_path(shard, work) for shard in shards]
    folder = Path(work) / name
    folder.mkdir(parents=True, exist_ok=True)
    counts = np.array([_sizes(shard, path) for shard, path in zip(shards, paths, strict=True)]).reshape(-1, 2)
    starts, image_starts = (np.concatenate([[0], np.cumsum(column)]) for column in counts.T)
    np.save(folder / "starts.npy", starts.astype(np.int64))
    first_image = _map(folder / "first_image.npy", np.int64, (int(starts[-1]) + 1,))
    fields = {
        field: _map(folder / f"{field}.npy", kind, (int(of[-1]), *shape))
        for forms, of in ((SAMPLE_FIELDS, starts), (IMAGE_FIELDS, image_starts))
        for field, (kind, shape) in forms.items()
    }
    for number, path in enumerate(paths):
        with np.load(path, allow_pickle=False) as arrays:
            for forms, of in ((SAMPLE_FIELDS, starts), (IMAGE_FIELDS, image_starts)):
                for field in forms:
                    fields[field][of[number] : of[number + 1]] = arrays[field]
            ends = image_starts[number] + np.cumsum(arrays["images"], dtype=np.int64)
            first_image[starts[number] + 1 : starts[number + 1] + 1] = ends
    for array in (first_image, *fields.values()):
        if isinstance(array, np.memmap):
            array.flush()
    return Signatures(folder)


def _sizes(shard: str, path: Path) -> tuple[int, int]:
    """(samples, images) of a shard."""
    if _origin(path) is None:
        raise ValueError(f"{shard} has no signatures in {path.parent}; run every --part with --sign-only first")
    with np.load(path, allow_pickle=False) as arrays:
        return len(arrays["good"]), len(arrays["pixels"])


def _map(path: Path, kind: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Zeros on disk; nothing can be mapped of an empty array."""
    if 0 in shape:
        np.save(path, np.zeros(shape, dtype=kind))
        return np.zeros(shape, dtype=kind)
    return np.lib.format.open_memmap(path, mode="w+", dtype=kind, shape=shape)
