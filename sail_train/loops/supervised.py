"""The supervised loop: packed rows, next-token loss on what the assistant says.

processor, model, engine, stream -> evaluate what we start from -> train -> save the model folder -> evaluate it.
Alignment, pre-training and every kind of fine-tuning are this loop with other sources and learning rates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sail_train import dist
from sail_train.cost import ModelShape
from sail_train.data.deal import training_flops
from sail_train.data.exchange import make_group
from sail_train.data.quarantine import carried
from sail_train.data.stream import Stream
from sail_train.engine.deepspeed import Loss, StepResult, TrainEngine
from sail_train.engine.loop import Exhausted, WorkStep
from sail_train.engine.rundir import RunDir
from sail_train.loops import setup
from sail_train.loops.balance import routed_tokens
from sail_train.loops.config import RunConfig
from sail_train.loops.mixture import Announcement
from sail_train.loops.outcome import Outcome
from sail_train.loops.shares import Shares, all_costs, evenness
from sail_train.loops.stage import evaluate_start, train_stage
from sail_train.loops.validation import Validation
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import IGNORE_INDEX, Batch, Step


def run(config: RunConfig) -> Outcome:
    """Trains one supervised stage, from where it was left if it was begun before."""
    dist.init(timeout_minutes=config.engine.timeout_minutes)
    run_dir = RunDir(config.run_dir)
    processor = setup.make_processor(config)
    vlm = setup.make_model(config, processor)
    with make_stream(config, processor, setup.model_shape(config, vlm)) as stream:
        evaluate_start(vlm, processor, config, run_dir)
        engine = setup.make_engine(config, vlm, accumulation=stream.accumulation)
        work = SupervisedWork(stream, engine, config, run_dir, validation=Validation.of(config, processor))
        return train_stage(engine, work, vlm, processor, config, run_dir)


def make_stream(config: RunConfig, processor: SailVLProcessor, shape: ModelShape) -> Stream:
    """This rank's stream, whose rows are dealt by what they cost a model of `shape`. All ranks call it together."""
    trained = [part for part, lr in config.optim.lr.items() if lr > 0]
    return Stream(
        config.data,
        processor,
        seed=config.seed,
        rank=dist.rank(),
        world=dist.world_size(),
        cost=training_flops(shape, trained),
        group=make_group(config.data, timeout_minutes=config.engine.timeout_minutes),
        per_micro_step=config.engine.zero_stage >= 2,
        pin=dist.device().type == "cuda",
    )


class SupervisedWork:
    """Rows of the stream as work for the training loop."""

    at_boundary = True

    def __init__(
        self, stream: Stream, engine: TrainEngine, config: RunConfig, run_dir: RunDir, *, validation: Validation | None
    ) -> None:
        self._run_dir = run_dir
        self._changes: list[str] = []
        self._stream = stream
        self._engine = engine
        self._loss, self._count = LOSSES[config.train.loss]
        self._validation = validation
        self._sources = [name for name, source in config.data.sources.items() if source.weight > 0]
        self._positions: Mapping[str, Any] = stream.positions
        self._shares = Shares(stream.asked.shares, self._sources)
        self._per_micro_step = config.engine.zero_stage >= 2
        self._announcement: Announcement | None = None
        if dist.is_main():
            steps = config.train.max_steps
            self._announcement = Announcement(config.data, stream.asked, stream.shards, steps=steps)
            self._announcement.start()

    def next_step(self) -> WorkStep | Exhausted:
        """The next global step that has something to train on.

        The one collective before the first backward is the denominator's; the end of the data travels with it.
        """
        if self._changes:  # told now: while a run is restored its files are still cut back
            self._run_dir.event("mix_change", changes=self._changes)
            self._changes = []
        quarantined: list[Mapping[str, Any]] = []
        denominator = 0.0
        while not denominator:
            with carried(quarantined):
                step, (denominator, tokens, rows, *costs) = self._read()
            if not rows:
                return Exhausted(quarantined=quarantined)
            self._positions = step.positions
            quarantined += step.quarantined
            if not denominator:  # the last samples of the data, for instance, and all of them broken
                self._shares.pass_over()
        return WorkStep(
            batches=step.batches,
            loss=self._loss,
            denominator=denominator,
            routed_tokens=tokens,
            sums={"fill": step.fill, "fill:count": 1.0, **consumed(step.batches, self._sources)},
            metrics=evenness(costs, world=dist.world_size(), per_micro_step=self._per_micro_step),
            quarantined=quarantined,
            finish=self._finish,
        )

    def _finish(self, result: StepResult) -> dict[str, float]:
        metrics = self._shares.add(result)
        if self._announcement is not None:
            self._announcement.epochs(self._shares.samples_per_step)
        return metrics

    def _read(self) -> tuple[Step, list[float]]:
        """A global step, and of all ranks' part of it: the denominator, routed tokens, rows, and each one's costs."""
        step = next(self._stream)
        counted = float(sum(self._count(batch) for batch in step.batches))
        costs = all_costs(step.costs, rank=dist.rank(), world=dist.world_size())
        return step, dist.all_reduce_sums([counted, float(routed_tokens(step.batches)), float(step.rows), *costs])

    def state(self) -> dict[str, Any]:
        """Positions of all ranks' streams, together, and what was read of each source."""
        positions = {k: v for part in dist.gather_objects(dict(self._positions)) for k, v in part.items()}
        return {"positions": positions, "shares": self._shares.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._stream.load_state(state["positions"])
        self._positions, self._changes = self._stream.positions, self._stream.changes
        self._shares.load_state(state.get("shares", {}))

    def validate(self) -> Mapping[str, float] | None:
        return self._validation.measure(self._engine) if self._validation else None


def num_trained(batch: Batch) -> int:
    return int((batch.labels != IGNORE_INDEX).sum())


def num_samples(batch: Batch) -> int:
    """Samples with a trained token."""
    return len(sample_of_target(batch).unique())


def sample_of_target(batch: Batch) -> Tensor:
    """(N,) number of the sample that each trained position belongs to."""
    positions = (batch.labels != IGNORE_INDEX).nonzero()[:, 0]
    return torch.bucketize(positions, batch.cu_seqlens[1:].to(positions.dtype), right=True)


def consumed(batches: Sequence[Batch], sources: Sequence[str]) -> dict[str, float]:
    """Samples and tokens of each source: the mixture as it came, a source that did not come as 0."""
    # all from the first step on: the engine reports what it has heard of, which a resumed run would hear of later
    sums = {f"{kind}/{source}": 0.0 for source in sources for kind in ("samples", "tokens")}
    for batch in batches:
        for key, source, length in zip(batch.keys, batch.sources, batch.cu_seqlens.diff().tolist(), strict=True):
            if key:  # else it is the token that stands for a batch without samples
                sums[f"samples/{source}"] += 1.0
                sums[f"tokens/{source}"] += length
    return sums


def token_loss(module: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Summed negative log-likelihood of the trained tokens; divided by their global number, the token mean."""
    losses = -_logprobs(module, batch)  # (N,)
    return losses.sum(), _by_source(losses.detach(), batch)


def sample_loss(module: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor | float]]:
    """Sum over samples of their mean negative log-likelihood (the papers' 1/|D| form with equal weight a sample)."""
    losses = -_logprobs(module, batch)  # (N,)
    sample = sample_of_target(batch)
    counts = torch.bincount(sample, minlength=len(batch.keys)).clamp(min=1)  # (num_samples,)
    return (losses / counts[sample]).sum(), _by_source(losses.detach(), batch)


def _logprobs(module: torch.nn.Module, batch: Batch) -> Tensor:
    logprobs, _ = module(
        batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens, batch.patches, batch.grids
    )
    return logprobs


def _by_source(losses: Tensor, batch: Batch) -> dict[str, Tensor | float]:
    """Token losses summed by source, with their counts: reduced along with the step."""
    sample = sample_of_target(batch)
    summed = torch.zeros(len(batch.keys), device=losses.device).index_add_(0, sample, losses)
    counts = torch.bincount(sample, minlength=len(batch.keys))
    sums: dict[str, Tensor | float] = {}
    for number, source in enumerate(batch.sources):
        name = f"loss/{source}"
        sums[name] = sums.get(name, 0.0) + summed[number]
        sums[f"{name}:count"] = sums.get(f"{name}:count", 0.0) + counts[number]
    return sums


LOSSES: dict[str, tuple[Loss, Callable[[Batch], int]]] = {
    "token": (token_loss, num_trained),
    "sample": (sample_loss, num_samples),
}
"""By `train.loss`: the loss, and what a batch adds to its denominator."""
