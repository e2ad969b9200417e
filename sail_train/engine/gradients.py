"""Where a step's reduced gradients lie between the last backward and the optimizer, at each ZeRO stage.

DeepSpeed keeps them in four places, so there are four small classes: each lists the tensors that the optimizer is
about to read (`tensors`), those of them that this rank counts towards the global norm (`counted`: over all ranks
every gradient once), and forgets everything (`clear`), as if the step's backwards had never run.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any, Protocol

import torch

from sail_train import dist


class Gradients(Protocol):
    def begin(self) -> None:
        """Before the step's first forward."""
        ...

    def tensors(self) -> list[torch.Tensor]:
        """The reduced gradients that this rank's optimizer reads; scaling them in place clips."""
        ...

    def counted(self) -> list[torch.Tensor]:
        """Those of which this rank adds the squares to the global norm."""
        ...

    def clear(self) -> None:
        """Back to the state before the step's first backward."""
        ...


class Replicated:
    """ZeRO 0: all-reduced in `parameter.grad` of every rank."""

    def __init__(self, engine: Any) -> None:
        self.engine = engine

    def begin(self) -> None:
        pass

    def tensors(self) -> list[torch.Tensor]:
        return [p.grad for p in self.engine.module.parameters() if p.grad is not None]

    def counted(self) -> list[torch.Tensor]:
        return self.tensors()[dist.rank() :: dist.world_size()]

    def clear(self) -> None:
        self.engine.zero_grad()


class _Owned(ABC):
    """ZeRO 1-3: the optimizer reads this rank's share, and only this rank has it."""

    def __init__(self, engine: Any) -> None:
        self.optimizer = engine.optimizer

    def begin(self) -> None:  # noqa: B027 - nothing to do, but for two of them
        pass

    @abstractmethod
    def tensors(self) -> list[torch.Tensor]: ...

    def counted(self) -> list[torch.Tensor]:
        return self.tensors()


class FullBuffer(_Owned):
    """ZeRO 1 in bf16 (BF16_Optimizer): an fp32 buffer of all gradients, of which each rank reads its share."""

    def tensors(self) -> list[torch.Tensor]:
        return list(self.optimizer.fp32_groups_gradient_flat_partition)

    def clear(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


class Partitioned(_Owned):
    """ZeRO 1 in fp32, ZeRO 2: lists in `averaged_gradients`; in the master weights' .grad when offloaded."""

    def begin(self) -> None:
        if self.optimizer.cpu_offload:
            _forget_earlier_steps(master.grad for master in self.optimizer.single_partition_of_fp32_groups)
            _forget_earlier_steps(self.optimizer.accumulated_grads_in_cpu.values())

    def tensors(self) -> list[torch.Tensor]:
        if self.optimizer.cpu_offload:
            self.optimizer._wait_for_offload_copies()
            return [master.grad for master in self.optimizer.single_partition_of_fp32_groups]
        return [grad for group in self.optimizer.averaged_gradients.values() for grad in group or ()]

    def clear(self) -> None:
        # As DeepSpeed's own step on an overflow, which it does not look for in bf16; offloaded in bf16 it would leave
        # the sums in averaged_gradients.
        self.optimizer.micro_step_id = -1
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer._release_preflattened_grad_buffers()
        if self.optimizer.cpu_offload:
            self.optimizer._offload_accumulated_param_ids = set()
            self.optimizer.reset_cpu_buffers()
        self.optimizer.averaged_gradients = dict.fromkeys(self.optimizer.averaged_gradients)
        self.optimizer.all_grad_tensors = dict.fromkeys(self.optimizer.all_grad_tensors)


class Sharded(_Owned):
    """ZeRO 3: views of one flat buffer; in the master weights' .grad when offloaded."""

    def begin(self) -> None:
        _forget_earlier_steps([self.optimizer.grad_partitions_flat_buffer])
        if self.optimizer.offload_optimizer:
            _forget_earlier_steps(master.grad for master in self.optimizer.fp32_partitioned_groups_flat)

    def tensors(self) -> list[torch.Tensor]:
        if self.optimizer.offload_optimizer:
            return [master.grad for master in self.optimizer.fp32_partitioned_groups_flat]
        return [grad for group in self.optimizer.averaged_gradients.values() for grad in group]

    def clear(self) -> None:
        self.optimizer._pre_step()
        self.optimizer._overflow_clean_up(1.0)


def _forget_earlier_steps(buffers: Iterable[torch.Tensor]) -> None:
    """DeepSpeed writes only where a parameter has a gradient, and never clears: one that a step does not use would be
    updated with an earlier step's gradient."""
    for buffer in buffers:
        buffer.zero_()


def gradients_of(engine: Any, *, zero_stage: int) -> Gradients:
    """The gradients of a DeepSpeed engine."""
    if zero_stage == 0:
        return Replicated(engine)
    if zero_stage == 3:
        return Sharded(engine)
    if hasattr(engine.optimizer, "fp32_groups_gradient_flat_partition"):
        return FullBuffer(engine)
    return Partitioned(engine)


def sum_of_squares(tensors: list[torch.Tensor]) -> float:
    """In float64 over tensors, fp32 inside each; NaN or infinite if a gradient is."""
    if not tensors:
        return 0.0
    norms = torch.stack([norm.double() for norm in torch._foreach_norm(tensors)])  # (tensors,)
    return float(norms.square().sum())


def clip(gradients: Gradients, *, norm: float, max_norm: float) -> None:
    """Scales gradients of global norm `norm` down to `max_norm`; 0 does not clip. As torch's clip_grad_norm_."""
    assert math.isfinite(norm)
    if max_norm > 0 and norm > max_norm:
        torch._foreach_mul_(gradients.tensors(), max_norm / (norm + 1e-6))
