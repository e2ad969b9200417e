"""The step: forward and backward of every micro batch, one collective, then update or skip.

loss callable -> scaled backward -> gradients reduced by DeepSpeed -> one all-reduce of loss, squared gradient norm
and the caller's sums -> finite on every rank? clip, learning rate, AdamW : forget it all, as if it had not been.
The engine sees a module, batches and a callable; it knows nothing of data, stages or objectives.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

from sail_train import dist
from sail_train.engine import fragments, gather, gradients, setup, state
from sail_train.engine.config import EngineConfig, OptimConfig, ScheduleConfig
from sail_train.engine.optim import Parts, build_optimizer, freeze
from sail_train.engine.schedule import learning_rate_factor
from sail_train.engine.sums import Sums
from sail_train.types import Batch

log = logging.getLogger(__name__)

Loss = Callable[[torch.nn.Module, Batch], tuple[torch.Tensor, Mapping[str, "torch.Tensor | float"]]]
"""(module, micro batch) -> (summed loss of its trained tokens, sums to report); called once per micro batch.
It calls the module itself, once: DeepSpeed counts micro batches by that call, and one that goes straight to a submodule
overwrites gradients under ZeRO 3."""


class TrainingDiverged(RuntimeError):
    """Too many steps in a row had a NaN or infinite loss or gradient."""


class ReplicasDiffer(RuntimeError):
    """Weights that must be the same on every rank are not."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What one step did, the same on every rank."""

    loss: float
    """Sum over all ranks and micro batches / denominator."""
    grad_norm: float
    """Of all trained parameters, before clipping."""
    lr: dict[str, float]
    """Learning rate of the update by part."""
    skipped: bool
    """Loss or gradient was not finite on some rank: nothing changed, on any rank."""
    sums: dict[str, float] = field(default_factory=dict)
    """The loss callable's sums and `extra`, over micro batches and ranks."""


class TrainEngine:
    """A module, its AdamW and its schedule under DeepSpeed. Build it on every rank with the same arguments."""

    def __init__(
        self,
        module: torch.nn.Module,
        *,
        parts: Parts,
        optim: OptimConfig,
        schedule: ScheduleConfig,
        engine: EngineConfig,
        max_steps: int,
        accumulation: int,
        leaves: Sequence[torch.nn.Module] = (),
    ) -> None:
        """
        Args:
            module: called by the loss callable; `.vlm` is asked to checkpoint its activations if that is on. Under
                ZeRO 3 it may be in shares already (`partition`), otherwise it is whole on every rank.
            parts: every named parameter of the module, by part.
            max_steps: length of the schedule.
            accumulation: micro batches per step and rank.
            leaves: parts of the module whose weights ZeRO 3 gathers together, because what is called inside them
                differs from rank to rank: the blocks of a mixture of experts.
        """
        named = [parameter for part in parts.values() for _, parameter in part]
        assert len(named) == len({*named, *module.parameters()}), "parts must hold every parameter once"
        freeze(parts, optim)
        if engine.activation_checkpointing:
            module.vlm.gradient_checkpointing_enable(  # type: ignore[operator, union-attr]
                gradient_checkpointing_kwargs={"use_reentrant": False}
            )
        self.module = module
        self.config = engine
        self.optim = optim
        self.schedule = schedule
        self.max_steps = max_steps
        self.step_count = 0
        """Updates taken; a skipped step is none."""
        self.skipped_count = 0
        self.bad_in_a_row = 0
        self._names = {p: name for name, p in module.named_parameters()}
        self._sizes = {name: gather.whole_shape(p).numel() for name, p in module.named_parameters() if p.requires_grad}
        optimizer = build_optimizer(parts, optim)
        self._engine = setup.start(module, optimizer, engine, accumulation=accumulation, leaves=leaves)
        self._gradients = gradients.gradients_of(self._engine, zero_stage=engine.zero_stage)
        self._torch = fragments.torch_optimizer(self._engine, zero_stage=engine.zero_stage)
        self._fragments = fragments.fragments_of(self._engine, self._names, zero_stage=engine.zero_stage)
        self._frozen = gather.frozen_checksums(module, zero_stage=engine.zero_stage)
        self._sums = Sums()
        self._set_optimizer_steps(0)

    @property
    def device(self) -> torch.device:
        return dist.device()

    @property
    def trained(self) -> frozenset[str]:
        """Parts with a learning rate."""
        return frozenset(part for part, lr in self.optim.lr.items() if lr > 0)

    def learning_rates(self) -> dict[str, float]:
        """Learning rate of the next update by part."""
        factor = learning_rate_factor(self.step_count, self.max_steps, self.schedule)
        return {part: lr * factor for part, lr in self.optim.lr.items()}

    def step(
        self, batches: Sequence[Batch], loss: Loss, denominator: float, *, extra: Mapping[str, float] | None = None
    ) -> StepResult:
        """One update from all micro batches of this rank.

        Args:
            batches: the same number on every rank.
            loss: see `Loss`.
            denominator: what the loss summed over all ranks is divided by: trained tokens, or samples.
            extra: this rank's sums that need not come from the loss, reduced along.

        Raises:
            TrainingDiverged: `max_bad_steps` steps in a row were skipped.
        """
        if not denominator > 0:
            raise ValueError(f"denominator={denominator}: a step needs at least one trained token")
        sums = self._backward(batches, loss, dist.world_size() / denominator)
        for name, value in (extra or {}).items():
            sums[name] = sums.get(name, 0.0) + value
        sums[_SQUARES] = gradients.sum_of_squares(self._gradients.counted())
        total = self._sums.reduce(sums)
        loss_mean, squares = total.pop(_LOSS) / denominator, total.pop(_SQUARES)
        skipped = not (math.isfinite(loss_mean) and squares < _TOO_LARGE)
        result = StepResult(
            loss=loss_mean,
            grad_norm=math.sqrt(squares),
            lr=self.learning_rates(),
            skipped=skipped,
            sums=total,
        )
        if skipped:
            self._skip(result)
        else:
            self._update(result)
        return result

    def _backward(self, batches: Sequence[Batch], loss: Loss, scale: float) -> dict[str, float]:
        """Accumulates gradients of `scale` x loss; returns this rank's sums, the loss among them."""
        self._gradients.begin()
        sums: dict[str, torch.Tensor | float] = {_LOSS: 0.0}
        losses: list[torch.Tensor] = []
        for index, batch in enumerate(batches):
            self._engine.set_gradient_accumulation_boundary(index == len(batches) - 1)
            summed, reported = loss(self._engine, batch.to(self.device))
            self._engine.backward(summed * scale, scale_wrt_gas=False)
            for name, value in ((_LOSS, summed.detach()), *reported.items()):
                if isinstance(value, torch.Tensor):
                    value = value.detach().to(self.device, torch.float64)
                sums[name] = sums.get(name, 0.0) + value
            losses.append(summed.detach())
        local = _on_host(sums)
        if not math.isfinite(local[_LOSS]):
            _name_bad(batches, losses)
        return local

    def _update(self, result: StepResult) -> None:
        gradients.clip(self._gradients, norm=result.grad_norm, max_norm=self.config.gradient_clipping)
        for group in self._torch.param_groups:
            group["lr"] = result.lr[group["name"]]
        self._engine.step()
        assert self._engine.was_step_applied(), "DeepSpeed skipped a step that was found good"
        self.step_count += 1
        self.bad_in_a_row = 0

    def _skip(self, result: StepResult) -> None:
        self._gradients.clear()
        self.skipped_count += 1
        self.bad_in_a_row += 1
        if dist.is_main():
            text = "step %d skipped on all ranks: loss %s, gradient norm %s (%d in a row)"
            log.warning(text, self.step_count, result.loss, result.grad_norm, self.bad_in_a_row)
        if self.bad_in_a_row >= self.config.max_bad_steps:
            raise TrainingDiverged(
                f"{self.bad_in_a_row} steps in a row had a NaN or infinite loss or gradient after update"
                f" {self.step_count}; lower optim.lr or look at the data (engine.max_bad_steps="
                f"{self.config.max_bad_steps})"
            )

    @contextmanager
    def unsharded(self) -> Iterator[torch.nn.Module]:
        """The plain module, whole on every rank: each rank may call any part of it any number of times.

        Meant for generation, evaluation and saving; weights must not be changed. All ranks enter and leave together.
        """
        with gather.unsharded(self._engine, zero_stage=self.config.zero_stage):
            yield self.module

    def full_state_dict(self) -> dict[str, torch.Tensor]:
        """`module.state_dict()` with whole weights on rank 0's CPU, empty on other ranks. All ranks call it."""
        return gather.full_state_dict(self.module, zero_stage=self.config.zero_stage)

    def check_replicas(self) -> None:
        """Compares the weights of all ranks bit for bit, where each has all of them (ZeRO 0-2).

        Raises:
            ReplicasDiffer: a rank computes with other weights than rank 0 (faulty memory, a missed reduction).
        """
        if self.config.zero_stage == 3 or dist.world_size() == 1:
            return
        checksums = dist.gather_objects(gather.checksum_of_all(self.module))
        other = [str(rank) for rank, checksum in enumerate(checksums) if checksum != checksums[0]]
        if other:
            raise ReplicasDiffer(
                f"after update {self.step_count} the weights of rank {', '.join(other)} differ from those of rank 0;"
                " resume from an earlier checkpoint, and check that node"
            )

    def save(self, directory: Path) -> None:
        """Writes this rank's share of weights and moments, and on rank 0 the counters, to `directory`."""
        if self.config.zero_stage > 0 or dist.is_main():
            state.save_fragments(directory, self._fragments, self._torch)
        if dist.is_main():
            counters = {name: getattr(self, name) for name in _COUNTERS}
            state.save_header(directory, counters=counters, trained=self._sizes, frozen=self._frozen)
            state.save_buffers(directory, gather.persistent_buffers(self.module))

    def load(self, directory: Path) -> None:
        """Restores what `save` wrote, at any ZeRO stage and number of ranks. Verify the checkpoint first.

        Raises:
            ValueError: trained parameters, their sizes or the frozen weights are not those of the checkpoint.
        """
        counters = state.load_header(directory, trained=self._sizes, frozen=self._frozen)
        for name in _COUNTERS:
            setattr(self, name, counters[name])
        self._set_optimizer_steps(self.step_count)
        state.load_fragments(directory, self._fragments, self._torch)
        state.load_buffers(directory, gather.persistent_buffers(self.module))
        fragments.publish(self._engine, zero_stage=self.config.zero_stage)

    def _set_optimizer_steps(self, steps: int) -> None:
        owners = [p for group in self._torch.param_groups for p in group["params"]]
        if self.config.zero_stage == 3:  # its groups are filled while it steps only
            owners = list(self._engine.optimizer.fp32_partitioned_groups_flat)
        fragments.set_steps(self._torch, owners, steps)

    def close(self) -> None:
        """Ends this engine, so that another may follow in this process. ZeRO 3 leaves its module in pieces."""
        setup.stop(self._engine)
        self._engine = self._gradients = self._torch = None  # type: ignore[assignment]
        self._fragments = []


_LOSS = "engine/loss"
_SQUARES = "engine/gradient_squares"
_TOO_LARGE = 1e36
"""Square of a gradient norm; DeepSpeed adds squares up in fp32 and would find infinity soon after."""
_COUNTERS = ("step_count", "skipped_count", "bad_in_a_row")


def _on_host(sums: Mapping[str, torch.Tensor | float]) -> dict[str, float]:
    """Plain numbers, with one wait for the device however many there are."""
    tensors = {name: value for name, value in sums.items() if isinstance(value, torch.Tensor)}
    values = torch.stack(list(tensors.values())).tolist() if tensors else []
    return {
        **{name: value for name, value in sums.items() if not isinstance(value, torch.Tensor)},
        **dict(zip(tensors, values, strict=True)),
    }


def _name_bad(batches: Sequence[Batch], losses: Sequence[torch.Tensor]) -> None:
    """Says which samples of this rank gave a loss that is not finite."""
    for index, (batch, loss) in enumerate(zip(batches, losses, strict=True)):
        if not torch.isfinite(loss):
            log.warning(
                "rank %d, micro batch %d: loss %s on %s", dist.rank(), index, float(loss), ", ".join(batch.keys)
            )
