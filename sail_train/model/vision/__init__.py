"""Vision encoders: patches of all pictures in one sequence -> one feature per patch, one module each."""

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


def build_encoder(config: SailVLVisionConfig, merge_size: int) -> nn.Module:
    """The encoder of `config.type`: (P, patch_dim) uint8 patches and their grids -> (P, hidden_size) features."""
    module, _, name = choice("vision_config.type", config.type, ENCODERS).partition(":")
    return getattr(importlib.import_module(module), name)(config, merge_size)
