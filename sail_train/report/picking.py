"""Which answers the page shows, out of samples.jsonl files that may hold millions.

One pass over a file keeps a bounded number: of each suite and mode some right, some wrong and the first few prompts
(the same after every stage, so that one picture can be followed through the recipe), and of rollouts the last groups.
"""

from __future__ import annotations

import base64
import io
import warnings
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from sail_train.report.reading import Run, is_number, read_lines

FOLLOWED = 12
"""Prompts of each suite, from the first, whose answers are kept to be followed through the stages."""

KEPT = 4
"""Right and wrong answers kept of each suite and mode."""

ROLLOUTS = 64
"""Last rollouts kept."""

MAX_SIDE = 448
"""Longer side in pixels of an image on the page; a larger one is reduced."""

MAX_BYTES = 40_000
"""An image file up to this size goes into the page as it is."""

MIME = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
"""By the first bytes of the formats that the processor takes."""

RIGHT = 0.999
"""Score from which an answer counts as right."""


@dataclass(kw_only=True)
class Picked:
    """What is kept of one run's samples."""

    right: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    """(suite, mode) -> answers."""
    wrong: dict[tuple[str, str], list[dict[str, Any]]] = field(default_factory=dict)
    followed: dict[tuple[str, str, int], dict[str, Any]] = field(default_factory=dict)
    """(suite, mode, prompt) -> answer; the latest evaluation of the run wins."""
    rollouts: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=ROLLOUTS))
    answers: int = 0
    rollouts_by_source: Counter[str] = field(default_factory=Counter)
    pass_rates: list[float] = field(default_factory=list)
    """Share of right answers of each prompt that a sampling run asked."""


def is_right(record: dict[str, Any]) -> bool:
    score: Any = record.get("score")
    return is_number(score) and score >= RIGHT


def pick(lines: Iterable[dict[str, Any]]) -> Picked:
    """Keeps what the page can show of the records `lines`; of repeated evaluations the last."""
    picked = Picked()
    for record in lines:
        if record.get("kind") == "eval":
            picked.answers += 1
            _keep(picked, record)
        elif record.get("phase") == "rollout":
            picked.rollouts_by_source[str(record.get("source"))] += 1
            picked.rollouts.append(record)
        elif is_number(record.get("pass_rate")):
            picked.pass_rates.append(float(record["pass_rate"]))
    return picked


def _keep(picked: Picked, record: dict[str, Any]) -> None:
    suite, mode, index = str(record.get("suite")), str(record.get("mode")), record.get("index")
    if isinstance(index, int) and index < FOLLOWED and record.get("sample") == 0:
        picked.followed[suite, mode, index] = record
    kept = (picked.right if is_right(record) else picked.wrong).setdefault((suite, mode), [])
    if len(kept) < KEPT and (record.get("image_files") or not record.get("images")):
        kept.append(record)


def pick_run(run: Run) -> Picked:
    """`pick` for a run, once; without samples.jsonl there is nothing to show, which is no fault."""
    path = run.path / "samples.jsonl"
    if run.picked is None:
        run.picked = pick(read_lines(path, run.missing) if path.is_file() else ())
    return run.picked


def image_uris(run_dir: Path, record: dict[str, Any]) -> list[str]:
    """The record's images as data URIs; one that is gone or broken is left out."""
    names = record.get("image_files")
    uris = [image_uri(run_dir, name) for name in names if isinstance(name, str)] if isinstance(names, list) else []
    return [uri for uri in uris if uri is not None]


def image_uri(run_dir: Path, name: str) -> str | None:
    """A data URI of an image inside `run_dir`; None for one that is missing, no image, or elsewhere."""
    path = (run_dir / name).resolve()
    if not path.is_relative_to(run_dir.resolve()) or not path.is_file():
        return None
    return data_uri(path.read_bytes())


def data_uri(data: bytes) -> str | None:
    """A data URI of an image file, reduced if it is large; None if it cannot be read."""
    mime = next((mime for start, mime in MIME.items() if data.startswith(start)), None)
    if mime is None or len(data) > MAX_BYTES:
        mime, small = "image/jpeg", _reduced(data)
        if small is None:
            return None
        data = small
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def _reduced(data: bytes) -> bytes | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            file = Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP"))
            file.draft("RGB", (MAX_SIDE, MAX_SIDE))
            image = file.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    image.thumbnail((MAX_SIDE, MAX_SIDE))
    reduced = io.BytesIO()
    image.save(reduced, format="JPEG", quality=85)
    return reduced.getvalue()
