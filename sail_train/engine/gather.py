"""Whole weights from sharded ones: for generation, evaluation and saving; and checksums of those that are frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from sail_train import dist
from sail_train.engine import memory

CHECKSUM_BITS = 40
"""Of a checksum: exact in float64 when summed over up to 8192 ranks."""


@contextmanager
def unsharded(engine: Any, *, zero_stage: int) -> Iterator[None]:
    """All weights whole and DeepSpeed's per-module hooks off: ranks may differ in what they call, and how often.

    One gather for everything: faster than gathering layer by layer for every token, at the price of whole weights in
    each rank's memory for the time being. ValueError on all ranks if a device has no room for them.
    """
    if zero_stage < 3:
        yield
        return
    import deepspeed

    offload = engine.optimizer.parameter_offload
    _check_room(list(engine.module.parameters()))
    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        for hook in (*offload.forward_hooks, *offload.backward_hooks):
            hook.remove()
        offload.fwd_pre_hook.remove()
        offload.forward_hooks, offload.backward_hooks = [], []
        try:
            yield
        finally:
            _restore_hooks(engine, offload)


@contextmanager
def gathered(module: torch.nn.Module) -> Iterator[None]:
    """The same for a module without an engine, to be read alone; one that is not in shares is as it is."""
    shared = [parameter for parameter in module.parameters() if hasattr(parameter, "ds_id")]
    if not shared:
        yield
        return
    import deepspeed

    _check_room(shared)
    with deepspeed.zero.GatheredParameters(shared):
        yield


def whole_shape(parameter: torch.nn.Parameter) -> torch.Size:
    """Of a parameter of which this rank may hold a share alone."""
    shape: torch.Size = parameter.ds_shape if hasattr(parameter, "ds_shape") else parameter.shape
    return shape


def _check_room(parameters: Sequence[Any]) -> None:
    memory.check_fits(
        memory.gather_bytes(parameters),
        memory.free_bytes(dist.device()),
        what="generation and evaluation under ZeRO 3 gather all weights",
        remedy="take devices with more memory or a smaller model; a supervised stage can do without (eval.modes={})",
    )


def _restore_hooks(engine: Any, offload: Any) -> None:
    from deepspeed.runtime.zero import parameter_offload

    for module in engine.module.modules():  # a call without backward leaves its count behind
        for parameter in module.parameters(recurse=False):
            parameter.ds_active_sub_modules.clear()
    offload.setup_zero_stage3_hooks()
    parameter_offload.FWD_MODULE_STACK.pop()  # the line above pushes the root a second time


def full_state_dict(module: torch.nn.Module, *, zero_stage: int) -> dict[str, torch.Tensor]:
    """`module.state_dict()` on rank 0's CPU, tied names sharing a tensor; empty on other ranks. Collective."""
    gathered: dict[torch.Tensor, torch.Tensor] = {}
    for parameter in module.parameters():
        with _whole(parameter, zero_stage=zero_stage):
            if dist.is_main():
                gathered[parameter] = parameter.detach().cpu().clone()
    if not dist.is_main():
        return {}
    named = {name: gathered[p] for name, p in module.named_parameters(remove_duplicate=False)}
    return {**named, **{name: value.detach().cpu().clone() for name, value in persistent_buffers(module).items()}}


@contextmanager
def _whole(parameter: Any, *, zero_stage: int) -> Iterator[None]:
    if zero_stage < 3:
        yield
        return
    import deepspeed
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

    if parameter.ds_status == ZeroParamStatus.AVAILABLE:  # inside `unsharded`, or small and never sharded
        yield
        return
    with deepspeed.zero.GatheredParameters([parameter]):
        yield


def persistent_buffers(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Buffers that belong to the module's state, by name."""
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    return {name: value for name, value in module.state_dict(keep_vars=True).items() if name not in parameters}


def frozen_checksums(module: torch.nn.Module, *, zero_stage: int) -> dict[str, int]:
    """A checksum of each frozen parameter's bits, the same however it is sharded. Collective."""
    frozen = {name: p for name, p in module.named_parameters() if not p.requires_grad}
    if zero_stage < 3:
        return {name: _checksum(p.detach()) for name, p in frozen.items()}
    sums = dist.all_reduce_sums([float(_checksum(_share(p))) for p in frozen.values()])
    return {name: int(value) % 2**CHECKSUM_BITS for name, value in zip(frozen, sums, strict=True)}


def checksum_of_all(module: torch.nn.Module) -> int:
    """Of all weights, as this rank has them whole."""
    return sum(_checksum(p.detach()) for p in module.parameters()) % 2**CHECKSUM_BITS


def _share(parameter: Any) -> torch.Tensor:
    """What this rank holds of a ZeRO 3 parameter, without the padding."""
    size = parameter.partition_numel()
    length = max(0, min(size, parameter.ds_numel - dist.rank() * size))
    return parameter.ds_tensor.detach().view(-1)[:length]


def _checksum(tensor: torch.Tensor) -> int:
    bits = tensor.contiguous().view(torch.int32 if tensor.element_size() == 4 else torch.int16)
    return int(bits.sum(dtype=torch.int64)) % 2**CHECKSUM_BITS
