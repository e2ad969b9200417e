"""The verifier of bounding boxes: [x1, y1, x2, y2] in thousandths of the image's width and height."""

from __future__ import annotations

import re

from sail_train.rewards.config import VerifierConfig
from sail_train.rewards.format import FinalAnswer
from sail_train.types import Score

NUMBER = r"\s*(-?\d{1,6}(?:\.\d{1,6})?)\s*"
BOX = re.compile(rf"\[{NUMBER},{NUMBER},{NUMBER},{NUMBER}\]")

Box = tuple[float, float, float, float]


def parse_box(text: str) -> Box | None:
    """The last box of `text` that is not empty, or None."""
    found = BOX.findall(text)
    if not found:
        return None
    x1, y1, x2, y2 = (float(value) for value in found[-1])
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
