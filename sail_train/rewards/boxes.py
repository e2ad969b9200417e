"""The verifiers of bounding boxes, one or several, in thousandths of the image's width and height.

A box is written [x1, y1, x2, y2] or, as Seed1.5-VL has it, <bbox>x1 y1 x2 y2</bbox>.
"""

from __future__ import annotations

import itertools
import re

from sail_train.rewards.config import VerifierConfig
from sail_train.rewards.format import FinalAnswer
from sail_train.types import Score

NUMBER = r"(-?\d{1,6}(?:\.\d{1,6})?)"
COMMAS = rf"\[\s*{NUMBER}\s*,\s*{NUMBER}\s*,\s*{NUMBER}\s*,\s*{NUMBER}\s*\]"
SPACES = rf"<bbox>\s*{NUMBER}\s+{NUMBER}\s+{NUMBER}\s+{NUMBER}\s*</bbox>"
BOX = re.compile(f"{COMMAS}|{SPACES}")
MAX_BOXES = 100
"""Boxes read from one response; what follows is left."""

Box = tuple[float, float, float, float]


def parse_box(text: str) -> Box | None:
    """The last box of `text` that is not empty, or None."""
    matches = list(BOX.finditer(text))
    return _box(matches[-1]) if matches else None


def parse_boxes(text: str) -> list[Box]:
    """All boxes of `text` that are not empty, in order."""
    found = (_box(match) for match in itertools.islice(BOX.finditer(text), MAX_BOXES))
    return [one for one in found if one is not None]


def _box(match: re.Match[str]) -> Box | None:
    x1, y1, x2, y2 = (float(value) for value in match.groups() if value is not None)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two areas, without the extra pixel of some old scripts."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def box(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """1 if the last box overlaps the true one by at least `config.box_iou`."""
    truth, given = parse_box(answer), parse_box(final.text)
    if truth is None:
        return Score(value=0.0, status="error", detail=f"the truth {answer!r} is not a box [x1, y1, x2, y2]")
    if given is None:
        return Score(value=0.0, status="unparsable", detail="no box [x1, y1, x2, y2] with x1 < x2 and y1 < y2")
    overlap = iou(truth, given)
    return Score(value=float(overlap >= config.box_iou), detail=f"iou {overlap:.3f}")


def boxes(answer: str, final: FinalAnswer, config: VerifierConfig) -> Score:
    """F1 of the boxes given: one is right if it overlaps a true one, that no other has taken, as `box` wants it.

    Missing and added boxes both cost, so that neither silence nor a carpet of boxes pays.
    """
    truth, given = parse_boxes(answer), parse_boxes(final.text)
    if not truth:
        return Score(value=0.0, status="error", detail=f"the truth {answer!r:.80} holds no box")
    if not given:
        return Score(value=0.0, status="unparsable", detail="no box")
    matched = _matched(truth, given, config.box_iou)
    detail = f"{matched} of {len(truth)} found with {len(given)}"
    return Score(value=2 * matched / (len(truth) + len(given)), detail=detail)


def _matched(truth: list[Box], given: list[Box], least: float) -> int:
    """How many pairs overlap enough, the closest first, each box in one pair at most."""
    pairs = sorted(((iou(a, b), i, j) for i, a in enumerate(truth) for j, b in enumerate(given)), reverse=True)
    rows: set[int] = set()
    cols: set[int] = set()
    for overlap, i, j in pairs:
        if overlap >= least and i not in rows and j not in cols:
            rows.add(i)
            cols.add(j)
    return len(rows)
