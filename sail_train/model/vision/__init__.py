"""Vision encoders: patches of all pictures in one sequence -> one feature per patch, one module each.

Patches come and features go in merge-block order (`visual.ImageSpec`). "native" and "aimv2" share their layers
(`layer`) and their way through a packed sequence (`encoder`) and differ in how a patch learns its place; "foreign"
calls any vision model of transformers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from sail_train.config import choice
from sail_train.model import ENCODERS

if TYPE_CHECKING:
    from torch import nn

    from sail_train.model.hf_config import SailVLVisionConfig

Grids = tuple[tuple[int, int], ...]
"""(patch rows, patch columns) of each picture."""


def build_encoder(config: SailVLVisionConfig, merge_size: int, *, attention: str = "auto") -> nn.Module:
    """The encoder of `config.type`: (P, patch_dim) uint8 patches and their grids -> (P, hidden_size) features.

    It also has `blank_grid`, the smallest picture it takes: what a batch without images passes through it.
    `attention` names the backend of packed attention.
    """
    module, _, name = choice("vision_config.type", config.type, ENCODERS).partition(":")
    return getattr(importlib.import_module(module), name)(config, merge_size, attention=attention)
