"""What a rank's optimizer holds, by parameter: fp32 weights and both moments, as named pieces of parameters.

At every ZeRO stage a rank holds a run of elements of some flattened parameters. Named by (parameter, first element),
such a fragment can be saved and restored without DeepSpeed's checkpoint files: no pickle, and a checkpoint fits any
stage and any number of ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from sail_train import dist

MOMENTS = ("exp_avg", "exp_avg_sq")
KINDS = ("weight", *MOMENTS)
"""The tensors of a fragment."""


@dataclass(frozen=True, kw_only=True)
class Fragment:
    """Elements `start` to `start + length` of flattened parameter `name`, where this rank's optimizer has them."""

    name: str
    start: int
    length: int
    numel: int
    """Elements of the whole parameter."""
    owner: torch.Tensor
    """The tensor that the optimizer steps: the parameter itself, or a flat fp32 partition."""
    offset: int
    """First element of the fragment in `owner`."""

    def view(self, kind: str, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        """(length,) fp32, a view: writing to it writes to the optimizer's tensor."""
        tensor = self.owner if kind == "weight" else optimizer.state[self.owner][kind]
        return tensor.detach().view(-1).narrow(0, self.offset, self.length)


def fragments_of(engine: Any, names: Mapping[Any, str], *, zero_stage: int) -> list[Fragment]:
    """This rank's fragments of the trained parameters of a DeepSpeed engine."""
    if zero_stage == 0:
        return _whole(engine, names)
    if zero_stage == 3:
        return _sharded(engine.optimizer, names)
    return _partitioned(engine.optimizer, names)


def _whole(engine: Any, names: Mapping[Any, str]) -> list[Fragment]:
    return [
        Fragment(name=names[p], start=0, length=p.numel(), numel=p.numel(), owner=p, offset=0)
        for group in engine.optimizer.param_groups
        for p in group["params"]
    ]


def _partitioned(optimizer: Any, names: Mapping[Any, str]) -> list[Fragment]:
    if hasattr(optimizer, "fp32_groups_flat_partition"):  # BF16_Optimizer
        groups, owners = optimizer.bf16_groups, optimizer.fp32_groups_flat_partition
    else:
        groups, owners = optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups
    fragments = []
    for group, owner in zip(groups, owners, strict=True):
        for parameter in group:
            if parameter._hp_mapping is None:  # lies wholly in other ranks' partitions
                continue
            inside, flat = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
            assert inside.numel == flat.numel
            fragments.append(
                Fragment(
                    name=names[parameter],
                    start=inside.start,
                    length=flat.numel,
                    numel=parameter.numel(),
                    owner=owner,
                    offset=flat.start,
                )
            )
    return fragments


def _sharded(optimizer: Any, names: Mapping[Any, str]) -> list[Fragment]:
    fragments = []
    for parameter in (p for group in optimizer.fp16_groups for p in group):
        index, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
        start = dist.rank() * size
        length = min(size, parameter.ds_numel - start)  # the last partitions are padded or empty
        if length > 0:
            fragments.append(
                Fragment(
                    name=names[parameter],
                    start=start,
                    length=length,
                    numel=parameter.ds_numel,
                    owner=optimizer.fp32_partitioned_groups_flat[index],
                    offset=offset,
                )
            )
    return fragments


def torch_optimizer(engine: Any, *, zero_stage: int) -> torch.optim.Optimizer:
    """The torch optimizer inside a DeepSpeed engine."""
    return engine.optimizer if zero_stage == 0 else engine.optimizer.optimizer


def set_steps(optimizer: torch.optim.Optimizer, owners: list[torch.Tensor], steps: int) -> None:
    """Gives each owner AdamW state that has seen `steps` updates, moments zero where there were none yet."""
    for owner in owners:
        state = optimizer.state[owner]
        for kind in MOMENTS:
            if kind not in state:
                state[kind] = torch.zeros_like(owner, requires_grad=False)
        state["step"] = torch.tensor(float(steps))


def publish(engine: Any, *, zero_stage: int) -> None:
    """Carries restored fp32 weights over into the weights that the module computes with, on every rank."""
    optimizer = engine.optimizer
    if zero_stage in (1, 2):
        optimizer.update_lp_params()
    elif zero_stage == 3:
        for index in range(len(optimizer.fp16_groups)):
            optimizer._reassign_or_swap_out_partitioned_parameters(index)
        persistent = optimizer.persistent_parameters
        if persistent:  # small weights that are kept whole on every rank
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)
