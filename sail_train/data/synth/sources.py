"""Which source holds which tasks, how many samples, and from which side of the split.

Sample i of a source is a pure function of (seed, source, i): sources can be made alone, in any order, and are
the same bytes every time.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from sail_train.data.synth import text, visual
from sail_train.data.synth.visual import Options, Sample


@dataclass(frozen=True, kw_only=True)
class Source:
    tasks: tuple[str, ...]
    """Drawn from with equal odds."""
    num_samples: int
    think: bool = False
    hasty: bool = False
    """Whether this source's teacher is the hasty one."""


TRAIN = {
    "text_read": Source(tasks=("grid_read", "written_caption", "grid_lookup", "written_shapes"), num_samples=6000),
    "text_think": Source(tasks=("grid_count", "grid_sum"), num_samples=10000),
    "text_plain": Source(tasks=("arithmetic", "language"), num_samples=6000),
    "read": Source(tasks=("read",), num_samples=5000),
    "caption": Source(tasks=("grid_caption",), num_samples=1500),
    "basic": Source(tasks=("cell", "compare", "box"), num_samples=3000),
    "chart": Source(tasks=("chart",), num_samples=1500),
    "shapes": Source(tasks=("shapes",), num_samples=2000),
    "steps": Source(tasks=("count", "sum"), num_samples=4000),
    "frames": Source(tasks=("frames",), num_samples=1500),
    "thoughts": Source(tasks=("count", "sum"), num_samples=6000, think=True, hasty=True),
    "rl": Source(tasks=("count", "sum"), num_samples=3000, think=True),
}
"""Training sources. `thoughts` is what a teacher wrote; `rl` holds prompts and answers for RL and sampling."""

HELD_OUT = {
    name: Source(tasks=tasks, num_samples=512)
    for name, tasks in {
        "text_read": ("grid_read", "written_caption", "grid_lookup", "written_shapes"),
        "text_plain": ("arithmetic", "language"),
        "read": ("read",),
        "caption": ("grid_caption",),
        "basic": ("cell", "compare", "box"),
        "chart": ("chart",),
        "shapes": ("shapes",),
        "steps": ("count", "sum"),
        "frames": ("frames",),
    }.items()
} | {"text_think": Source(tasks=("grid_count", "grid_sum"), num_samples=512)}
"""Evaluation suites, drawn from scans that no training source shows."""

_TASKS = visual.TASKS | text.TASKS


def draw(name: str, source: Source, index: int, *, seed: int, hasty: float, held_out: bool) -> Sample:
    """Sample `index` of a source."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode()), int(held_out), index])
    task = source.tasks[int(rng.integers(len(source.tasks)))]
    options = Options(held_out=held_out, think=source.think, hasty=hasty if source.hasty else 0.0)
    return _TASKS[task](rng, options)


def members(name: str, source: Source, *, seed: int, hasty: float, held_out: bool) -> Iterator[dict[str, Any]]:
    """The files of each sample of a source, as a webdataset writer takes them."""
    for index in range(source.num_samples):
        sample = draw(name, source, index, seed=seed, hasty=hasty, held_out=held_out)
        files: dict[str, Any] = {"__key__": f"{name}_{index:06d}"}
        for number, image in enumerate(sample.images):
            files[f"{number}.png"] = _png(image)
        files["json"] = json.dumps(record(sample, name)).encode()
        yield files


def record(sample: Sample, source: str) -> dict[str, Any]:
    """The sample's JSON (design: the sample on disk)."""
    content: list[dict[str, str]] = [{"type": "image"} for _ in sample.images]
    content.append({"type": "text", "text": sample.question})
    return {
        "messages": [
            {"role": "user", "content": content},
            {"role": "assistant", "content": [{"type": "text", "text": sample.response}]},
        ],
        "answer": sample.answer,
        "verifier": sample.verifier,
        "mode": sample.mode,
        "source": source,
        "meta": sample.meta,
    }


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
