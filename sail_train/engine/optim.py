"""Which parameters train, with what learning rate: parts are frozen or become groups of one torch AdamW."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sail_train.config import nearest
from sail_train.engine.config import OptimConfig
from sail_train.engine.gather import whole_shape

Parts = Mapping[str, Sequence[tuple[str, torch.nn.Parameter]]]
"""Named parameters of each part of the model; names as in `module.named_parameters()`."""

log = logging.getLogger(__name__)


def freeze(parts: Parts, config: OptimConfig) -> None:
    """Sets requires_grad: on in the parts with a learning rate above 0, off in the others."""
    for part in config.lr:
        if part not in parts:
            hint = nearest(part, parts)
            meant = f"did you mean {hint!r}?" if hint else f"there are {', '.join(sorted(parts))}"
            raise ValueError(f"optim.lr.{part}: the model has no such part; {meant}")
        if config.lr[part] > 0 and not parts[part]:
            raise ValueError(f"optim.lr.{part}={config.lr[part]}: this part has no parameters; leave it out")
    if not any(lr > 0 for lr in config.lr.values()):
        raise ValueError(f"optim.lr={config.lr} freezes every part; give one of them a learning rate above 0")
    for part, named in parts.items():
        for _, parameter in named:
            parameter.requires_grad_(config.lr.get(part, 0) > 0)


def build_optimizer(parts: Parts, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with a group per trained part, its `name`; split in two where weight decay applies to matrices only."""
    groups: list[dict[str, Any]] = []
    for part, named in parts.items():
        parameters = [parameter for _, parameter in named if parameter.requires_grad]
        for decay in (config.weight_decay, 0.0) if config.weight_decay else (0.0,):
            members = [p for p in parameters if not config.weight_decay or (len(whole_shape(p)) >= 2) == (decay > 0)]
            if members:
                groups.append({"params": members, "lr": config.lr[part], "weight_decay": decay, "name": part})
        log.info("%s: %d parameters %s", part, _count(named), "train" if parameters else "are frozen")
    return torch.optim.AdamW(groups, betas=(config.betas[0], config.betas[1]), eps=config.eps)


def _count(named: Sequence[tuple[str, torch.nn.Parameter]]) -> int:
    return sum(whole_shape(parameter).numel() for _, parameter in named)
