"""Keeps the images of some evaluated samples in the run directory, so that the report needs no shard.

Of each suite: the first prompts, which are the same after every stage, and some right and some wrong answers.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sail_train.types import Conversation

FOLDER = "eval_images"

SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp"}
"""File name ending by the first bytes of the formats that the processor takes."""


def keep_images(
    run_dir: Path, samples: Sequence[Mapping[str, Any]], suites: Mapping[str, Sequence[Conversation]], *, show: int
) -> dict[tuple[str, int], list[str]]:
    """Writes the image files of the chosen prompts; their names within `run_dir` by (suite, prompt number)."""
    folder = run_dir / FOLDER
    if folder.exists():
        shutil.rmtree(folder)
    kept = {}
    for suite, index in chosen(samples, show=show):
        images = suites[suite][index].images
        if images:
            folder.mkdir(parents=True, exist_ok=True)
            kept[suite, index] = [_write(folder, f"{suite}-{index:06d}.{i}", image) for i, image in enumerate(images)]
    return kept


def chosen(samples: Sequence[Mapping[str, Any]], *, show: int) -> list[tuple[str, int]]:
    """(suite, prompt number): the first `show`, and of each mode the first `show` right and `show` wrong ones."""
    counts: dict[tuple[str, str, bool], int] = {}
    found: dict[tuple[str, int], None] = {}
    for record in samples:
        suite, index = record["suite"], record["index"]
        verdict = (suite, record["mode"], (record["score"] or 0.0) >= 1.0)
        counts[verdict] = counts.get(verdict, 0) + 1
        if index < show or counts[verdict] <= show:
            found[suite, index] = None
    return list(found)


def _write(folder: Path, name: str, image: bytes) -> str:
    suffix = next((suffix for start, suffix in SUFFIXES.items() if image.startswith(start)), ".bin")
    path = folder / f"{name.replace('/', '-')}{suffix}"
    path.write_bytes(image)
    return f"{FOLDER}/{path.name}"
