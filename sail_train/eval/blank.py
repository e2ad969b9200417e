"""Blank images: what is left of an accuracy when the pictures hold nothing is what the text alone gives away."""

from __future__ import annotations

import dataclasses

import numpy as np

from sail_train.types import Prompt

GREY = 128


def blank(prompt: Prompt) -> Prompt:
    """`prompt` with every picture in mid-grey, as a grey file of its size would be cut; lengths stay."""
    return dataclasses.replace(prompt, patches=np.full_like(prompt.patches, GREY))
