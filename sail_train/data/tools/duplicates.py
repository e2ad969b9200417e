"""The second pass of dedupe: signatures -> pairs -> for each sample the earlier one that it repeats. On disk.

One key at a time (and several in processes): (sample, key) records go to bucket files by their key, a bucket is
sorted in memory, samples of one key are compared, and pairs are written down. Then the pairs are put into the order
of their later sample and walked through once: a sample is a duplicate if an earlier one that stays is its pair.
So the first copy in the order of the sources stays, and whatever goes has a copy near it that stays.

What is in memory is a bucket (`rows` records) and 8 bytes a sample; everything else is mapped or read in pieces.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sail_train.data.tools.near import NearOptions, fingerprints, keys, near
from sail_train.data.tools.signature_files import Signatures

ROWS = 4_000_000
"""Records of a bucket: some 500 MB while it is compared."""
CROWD = 128
"""Samples of one key that are compared each with each; of more, each is compared with its 128 nearest in order and
with the first 128 of the key, and counted as crowded."""

Pairs = np.ndarray
"""(n, 3) int64: later sample, earlier sample, and 1 where the two are the same in every pixel and word."""


def find_pairs(number: str, folder: str, work: str, options: NearOptions, rows: int) -> Mapping[str, Any]:
    """Writes the pairs that share the number-th key: the work of one key."""
    signatures, place = Signatures(Path(folder)), int(number)
    buckets = Path(work) / f"key{place:03}"
    shutil.rmtree(buckets, ignore_errors=True)
    buckets.mkdir(parents=True)
    records = (keys(signatures, *span, place, options) for span in spans(len(signatures), rows))
    count = math.ceil(len(signatures) / rows)
    files = scatter(records, buckets, lambda part: part[:, 1] % np.uint64(count), count)
    found, crowded = 0, 0
    with open(pairs_path(work, place), "wb") as out:
        for file in files:
            pairs, crowd = pairs_of(np.fromfile(file, dtype=np.uint64).reshape(-1, 2), signatures, options)
            pairs.tofile(out)
            found, crowded = found + len(pairs), crowded + crowd
    shutil.rmtree(buckets)
    return {"pairs": found, "crowded": crowded}


def pairs_path(work: str, number: int) -> Path:
    return Path(work) / f"pairs{number:03}.bin"


def spans(total: int, size: int) -> Iterator[tuple[int, int]]:
    for start in range(0, total, size):
        yield start, min(total, start + size)


def scatter(
    parts: Iterator[np.ndarray], folder: Path, bucket_of: Callable[[np.ndarray], np.ndarray], count: int
) -> list[Path]:
    """Appends the rows of each part to the file of their bucket; the files, in order, those that got something."""
    for part in parts:
        buckets = bucket_of(part).astype(np.int64)
        order = np.argsort(buckets, kind="stable")
        part, ends = part[order], np.searchsorted(buckets[order], np.arange(count + 1))
        for bucket in range(count):
            if ends[bucket] < ends[bucket + 1]:
                with open(folder / f"{bucket:06}.bin", "ab") as file:
                    part[ends[bucket] : ends[bucket + 1]].tofile(file)
    return sorted(folder.glob("*.bin"))


def pairs_of(records: np.ndarray, signatures: Signatures, options: NearOptions) -> tuple[Pairs, int]:
    """(pairs among records (n, 2) of sample and key, how many samples were crowded)."""
    samples, shared = records[:, 0].astype(np.int64), records[:, 1]
    prints = fingerprints(signatures, samples, options)
    order = np.lexsort((samples, prints, shared))
    samples, shared, prints = samples[order], shared[order], prints[order]
    again = np.zeros(len(samples), dtype=bool)
    again[1:] = (shared[1:] == shared[:-1]) & (prints[1:] == prints[:-1])
    # of samples that are the same, the first is compared with others for all of them
    leader = np.maximum.accumulate(np.where(again, 0, np.arange(len(samples))))
    found = [np.stack([samples[again], samples[leader[again]], np.ones(int(again.sum()), np.int64)], axis=1)]
    crowded = 0
    if not options.exact:
        samples, shared = samples[~again], shared[~again]
        order = np.lexsort((samples, shared))
        samples, shared = samples[order], shared[order]
        for later, earlier in _candidates(shared):
            hits = near(signatures, samples[later], samples[earlier], options)
            pair = (samples[later[hits]], samples[earlier[hits]], np.zeros(int(hits.sum()), np.int64))
            found.append(np.stack(pair, axis=1))
        crowded = sum(end - start for start, end in _crowds(shared))
    return np.unique(np.concatenate(found), axis=0), crowded


def _candidates(shared: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(later, earlier) places of one key in the sorted keys."""
    places = np.arange(len(shared))
    for shift in range(1, CROWD + 1):
        places = places[places + shift < len(shared)]
        places = places[shared[places] == shared[places + shift]]
        if not len(places):
            break
        yield places + shift, places
    for start, end in _crowds(shared):
        for first in range(start, start + CROWD):
            later = np.arange(first + CROWD + 1, end)
            yield later, np.full(len(later), first)


def _crowds(shared: np.ndarray) -> list[tuple[int, int]]:
    """(start, end) of keys that more than CROWD + 1 samples share."""
    starts = np.flatnonzero(np.concatenate([[True], shared[1:] != shared[:-1]])) if len(shared) else np.zeros(0, int)
    ends = np.append(starts[1:], len(shared))[: len(starts)]
    large = ends - starts > CROWD + 1
    return list(zip(starts[large].tolist(), ends[large].tolist(), strict=True))


def resolve(work: str, num_keys: int, total: int, rows: int) -> np.ndarray:
    """(samples,) int64, on disk: the sample that each repeats, or -1 for those that stay."""
    folder = Path(work) / "ordered"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    files = [pairs_path(work, number) for number in range(num_keys)]
    size = sum(file.stat().st_size for file in files) // 24
    count = max(1, math.ceil(size / rows))
    width = max(1, math.ceil(total / count))
    ranges = scatter(_read_pairs(files, rows), folder, lambda part: part[:, 0] // width, count)
    targets = np.lib.format.open_memmap(Path(work) / "targets.npy", mode="w+", dtype=np.int64, shape=(max(1, total),))
    targets[:] = -1
    for file in ranges:
        pairs = np.unique(np.fromfile(file, dtype=np.int64).reshape(-1, 3), axis=0)
        for later, earlier, same in pairs.tolist():
            if targets[later] < 0:
                if targets[earlier] < 0:
                    targets[later] = earlier
                elif same:
                    targets[later] = targets[earlier]
    targets.flush()
    shutil.rmtree(folder)
    return targets


def _read_pairs(files: list[Path], rows: int) -> Iterator[Pairs]:
    for file in files:
        start, size = 0, file.stat().st_size // 8
        while start < size:
            part = np.fromfile(file, dtype=np.int64, count=3 * rows, offset=8 * start)
            start += len(part)
            yield part.reshape(-1, 3)
