"""Decontamination: which training samples show an image, or repeat a question, of an evaluation set.

Evaluation sets are small: their image hashes and the n-grams of their questions are held in memory. A training image
is compared by perceptual hash, colour and shape; a training text by 13-grams of its messages, and a message shorter
than that as a whole. Questions shorter than `MIN_WORDS` words, and n-grams that many questions of a set share
("answer with the letter of the option"), say nothing and are left out.
The column `contaminated` holds the findings of every set that was ever compared: a run replaces those of the sets that
it names and keeps the others, so that it is empty only where no set holds the sample.
"""

from __future__ import annotations

import functools
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_train.data.index import add_columns, ensure_index
from sail_train.data.listing import expand
from sail_train.data.tools.near import block_pairs, hash_keys, near_images
from sail_train.data.tools.reading import conversations
from sail_train.data.tools.signature_files import IMAGE_FIELDS, signature_path
from sail_train.data.tools.signatures import ngram_hashes, sign_image, words
from sail_train.types import BadSample, Conversation

NGRAM = 13
MIN_WORDS = 8
"""A shorter question is compared by its images alone: "What colour is it?" stands in every set."""
COLUMN = "contaminated"
COMMON = 10
"""Questions of a set that may share an n-gram; beyond, it is wording and not content."""

_NAME = re.compile(r"[\w.-]+")


def parse_against(text: str) -> tuple[str, list[str]]:
    """ "NAME=SHARDS" -> (name, shards); without a name that of the shards' folder.

    Raises:
        ValueError: no such shards, or a name that could not be told from others in the column.
    """
    name, equals, pattern = text.partition("=")
    pattern = pattern if equals else text
    paths = list(expand("--against", [pattern]))
    name = name if equals else Path(paths[0]).resolve().parent.name
    if not _NAME.fullmatch(name):
        raise ValueError(f"--against: the set's name {name!r} should be letters, digits, '_', '-' and '.'; NAME=SHARDS")
    return name, paths


def gather(sets: Sequence[tuple[str, Sequence[str]]], path: Path, sample_format: str) -> dict[str, int]:
    """Writes what is known of the evaluation sets to `path`; the number of samples of each."""
    images: list[tuple[int, Any]] = []
    grams, owners, sizes = [], [], Counter[str]()
    for number, (name, shards) in enumerate(sets):
        counts: Counter[int] = Counter()
        for sample in _good(shards, sample_format):
            sizes[name] += 1
            images.extend((number, sign_image(image)) for image in sample.images)
            question = words("\n".join(message.text for message in sample.prompt if message.role == "user"))
            if len(question) >= MIN_WORDS:
                counts.update(set(ngram_hashes(question, NGRAM).tolist()))
        rare = sorted(gram for gram, count in counts.items() if count <= COMMON)
        grams.extend(rare)
        owners.extend([number] * len(rare))
    fields = {
        name: np.array([getattr(image, name) for _, image in images], dtype=kind).reshape(len(images), *shape)
        for name, (kind, shape) in IMAGE_FIELDS.items()
    }
    order = np.argsort(np.array(grams, dtype=np.uint64), kind="stable")
    arrays = {
        **fields,
        "image_owner": np.array([number for number, _ in images], dtype=np.int64),
        "grams": np.array(grams, dtype=np.uint64)[order],
        "gram_owner": np.array(owners, dtype=np.int64)[order],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    path.with_suffix(".json").write_text(json.dumps([name for name, _ in sets]))
    return dict(sizes)


def _good(shards: Sequence[str], sample_format: str) -> Iterator[Conversation]:
    for shard in shards:
        for sample in conversations(shard, sample_format):
            if not isinstance(sample, BadSample):
                yield sample


@functools.lru_cache(maxsize=2)
def _read(path: str, modified: int) -> tuple[list[str], dict[str, np.ndarray]]:
    with np.load(path, allow_pickle=False) as arrays:
        return json.loads(Path(path).with_suffix(".json").read_text()), dict(arrays)


def mark_shard(shard: str, work: str, against: str, sample_format: str, distance: int) -> Mapping[str, Any]:
    """Writes the column `contaminated`: "SET:image", "SET:text", "SET:image+text", several with commas, or nothing.

    What it says of other sets stays; how many samples of a set's were replaced, and kept, is counted.
    """
    import pyarrow

    names, known = _read(against, os.stat(against).st_mtime_ns)
    with np.load(signature_path(shard, work), allow_pickle=False) as arrays:
        signed = dict(arrays)
    by_image = matched_images(signed, known, distance)
    before, values = _findings(shard), list[str | None]()
    counts: dict[str, dict[str, int]] = {name: {"image": 0, "text": 0} for name in names}
    for place, sample in enumerate(conversations(shard, sample_format)):
        if isinstance(sample, BadSample) or not signed["good"][place]:
            values.append(None)
            continue
        found = {"image": by_image.get(place, set()), "text": matched_texts(sample, known)}
        for kind, owners in found.items():
            for owner in owners:
                counts[names[owner]][kind] += 1
        values.append(_described({**_others(before[place], names), **_by_set(names, found)}))
    add_columns(shard, {COLUMN: pyarrow.array(values, pyarrow.string())})
    told = {"samples": len(values), "contaminated": sum(bool(value) for value in values), "contaminated by": counts}
    sets = Counter(name for each in before for name in each)
    replaced = {name: count for name, count in sets.items() if name in names}
    kept = {name: count for name, count in sets.items() if name not in names}
    told |= {"replaced of an earlier run": replaced} if replaced else {}
    return told | ({"kept of other sets": kept} if kept else {})


def _findings(shard: str) -> list[dict[str, str]]:
    """What the column says of each sample so far: by set, how it was found."""
    table = ensure_index(shard)
    texts = table.column(COLUMN).to_pylist() if COLUMN in table.column_names else [None] * len(table)
    return [dict(entry.partition(":")[::2] for entry in text.split(",")) if text else {} for text in texts]


def _others(before: Mapping[str, str], names: Sequence[str]) -> dict[str, str]:
    return {name: how for name, how in before.items() if name not in names}


def _by_set(names: Sequence[str], found: Mapping[str, set[int]]) -> dict[str, str]:
    owners = sorted(set().union(*found.values()))
    return {names[owner]: "+".join(kind for kind in found if owner in found[kind]) for owner in owners}


def _described(found: Mapping[str, str]) -> str:
    return ",".join(f"{name}:{how}" for name, how in found.items())


def matched_texts(sample: Conversation, known: Mapping[str, np.ndarray]) -> set[int]:
    """Numbers of the sets one of whose questions a message of the sample repeats."""
    grams, owners = known["grams"], known["gram_owner"]
    mine = np.unique(np.concatenate([ngram_hashes(words(message.text), NGRAM) for message in sample.messages]))
    start, end = np.searchsorted(grams, mine, "left"), np.searchsorted(grams, mine, "right")
    return {int(owners[place]) for a, b in zip(start, end, strict=True) for place in range(int(a), int(b))}


def matched_images(signed: dict[str, np.ndarray], known: dict[str, np.ndarray], distance: int) -> dict[int, set[int]]:
    """Numbers of the sets one of whose images is near one of a sample's, by the sample's place."""
    sample_of = np.repeat(np.arange(len(signed["images"])), signed["images"])
    found: dict[int, set[int]] = {}
    for number in range(len(block_pairs(distance))):
        theirs = hash_keys(known["perceptual"], distance, number)
        order = np.argsort(theirs, kind="stable")
        mine = hash_keys(signed["perceptual"], distance, number)
        start, end = (np.searchsorted(theirs[order], mine, side) for side in ("left", "right"))
        # every image with each of its candidates
        one = np.repeat(np.arange(len(mine)), end - start)
        step = np.arange(len(one)) - np.repeat(np.cumsum(end - start) - (end - start), end - start)
        other = order[np.repeat(start, end - start) + step]
        hits = near_images(signed, one, other, distance=distance, others=known)
        for image, owner in zip(one[hits].tolist(), known["image_owner"][other[hits]].tolist(), strict=True):
            found.setdefault(int(sample_of[image]), set()).add(owner)
    return found
