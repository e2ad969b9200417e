"""The training loop: what happens around a step, in order.

resume -> [next step's batches -> step -> record -> validate -> save] until max_steps, until there is no more work, or
until asked to stop -> save.
What is trained comes from a `Work` (supervised rows, RL rollouts); the loop knows neither. Every rank runs it.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import safetensors.torch

from sail_train import dist
from sail_train.cost import ModelShape
from sail_train.engine.checkpoint import Checkpoints, SaveFailed
from sail_train.engine.config import LogConfig, TrainConfig
from sail_train.engine.deepspeed import Loss, StepResult, TrainEngine
from sail_train.engine.metrics import Metrics, local_sums
from sail_train.engine.rng import load_rng_state, rng_state
from sail_train.engine.rundir import RunDir
from sail_train.engine.schedule import learning_rate_factor
from sail_train.engine.signals import StopRequest
from sail_train.types import Batch

log = logging.getLogger(__name__)

MAX_FAILED_SAVES = 3
"""Checkpoints in a row that may fail to be written (a full disk) before training stops."""


@dataclass(frozen=True, kw_only=True)
class WorkStep:
    """One update's worth of this rank's work."""

    batches: Sequence[Batch]
    """The same number on every rank."""
    loss: Loss
    denominator: float
    """What the loss summed over all ranks is divided by; the same on every rank."""
    sums: Mapping[str, float] = field(default_factory=dict)
    """This rank's values to be summed over ranks; see `metrics.means` for how pairs of them become means."""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """Values for metrics.jsonl as they are; rank 0's count."""
    routed_tokens: float = 0.0
    """Tokens of all ranks' batches that train something; the same on every rank."""
    quarantined: Sequence[Mapping[str, Any]] = ()
    """Bad samples of this rank; written to quarantine.jsonl with the step."""
    finish: Callable[[StepResult], Mapping[str, Any]] | None = None
    """Called on all ranks after the step: what it returns joins `metrics`."""


@dataclass(frozen=True, kw_only=True)
class Exhausted:
    """Instead of a step: there is no more work, on any rank."""

    quarantined: Sequence[Mapping[str, Any]] = ()
    """Bad samples of this rank that came after the last step."""


class Work(Protocol):
    """What is trained. `state`, `load_state` and `validate` are called on all ranks together."""

    def next_step(self) -> WorkStep | Exhausted:
        """The next update's batches; what ranks learn from each other here they learn alike."""
        ...

    def state(self) -> Any:
        """JSON from which the next step can be told again, on any number of ranks; rank 0's is saved."""
        ...

    def load_state(self, state: Any) -> None: ...

    @property
    def at_boundary(self) -> bool:
        """Whether a checkpoint may be taken now; the same on every rank."""
        ...

    def validate(self) -> Mapping[str, float] | None:
        """Metrics on held-out data; the lowest "loss" marks the best model. None where there is no such data.
        Rank 0's count."""
        ...


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a loop ended, the same on every rank."""

    status: str
    """"finished", or "stopped": asked to, saved, can be resumed (exit code EXIT_SAVED)."""
    steps: int
    skipped: int
    tokens: int
    """Tokens read over the whole run, interruptions included."""
    seconds: float
    """Spent training over the whole run."""
    metrics: dict[str, Any]
    """The last line of metrics.jsonl."""
    best: Path | None
    """Weights with the lowest validation loss (safetensors, names as in the module), if there was a validation."""


def train(
    engine: TrainEngine,
    work: Work,
    run: RunDir,
    *,
    config: TrainConfig,
    log_config: LogConfig,
    shape: ModelShape | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Trains until `max_steps` updates are taken, from the newest checkpoint that verifies, if there is one.

    Work that is exhausted before ends the run as if `max_steps` were reached.

    Args:
        shape: of the model, for MFU.
        settings: the composed config, for trackers; secrets are masked.

    Raises:
        ValueError: there are checkpoints, but none verifies or fits; or no work for a single update.
        TrainingDiverged: see `TrainEngine.step`.
        SaveFailed: the last checkpoint could not be written, or several in a row.
    """
    session = _Session(engine, work, run, config)
    session.resume()
    metrics = Metrics(run, engine, config, log_config, shape=shape, settings=settings or {})
    metrics.load(session.restored.get("metrics", {}))
    with StopRequest() as stop, metrics, session.failures_told():
        while engine.step_count < config.max_steps:
            step = work.next_step()
            if isinstance(step, Exhausted):
                session.exhausted(step)
                break
            sums = {**local_sums(step.batches, shape, engine.trained), **step.sums, "stop": stop.flag}
            sums["quarantined"] = float(len(step.quarantined))
            result = engine.step(step.batches, step.loss, step.denominator, extra=sums)
            metrics.record(result, {**step.metrics, **(step.finish(result) if step.finish else {})})
            if result.sums["quarantined"] > 0:  # the same on every rank
                session.quarantine(step.quarantined)
            if not result.skipped and _due(engine.step_count, config.valid_every):
                session.validate(metrics)
            stopping = result.sums["stop"] > 0
            session.save_wanted |= stopping or (not result.skipped and _due(engine.step_count, config.save_every))
            if session.save_wanted and work.at_boundary:
                session.save(metrics, required=stopping)
                if stopping:
                    return session.outcome(metrics, "stopped")
        if session.saved_step != engine.step_count:
            session.save(metrics, required=True)
        return session.outcome(metrics, "finished")


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


class _Session:
    """What is saved and restored around the steps."""

    def __init__(self, engine: TrainEngine, work: Work, run: RunDir, config: TrainConfig) -> None:
        self.engine, self.work, self.run = engine, work, run
        self.checkpoints = Checkpoints(run.checkpoints, keep=config.keep)
        self.restored: dict[str, Any] = {}
        self.best: dict[str, Any] | None = None
        self.save_wanted = False
        self.saved_step: int | None = None
        self.failed_saves = 0

    def resume(self) -> None:
        """Restores the newest checkpoint that verifies; starts from scratch where there never was one."""
        path, refused = self.checkpoints.latest()
        if path is None:
            if refused:
                raise ValueError(
                    f"no checkpoint in {self.run.checkpoints} verifies ({'; '.join(refused)}); restore one, or delete"
                    " the directory to start from scratch"
                )
            self.run.truncate({})
            self.run.event("start", world_size=dist.world_size())
            return
        self.engine.load(path)
        self.restored = json.loads((path / "state.json").read_text())
        self.best = self.restored["best"]
        self.work.load_state(self.restored["work"])
        self.run.truncate(self.restored["lengths"])
        rng = path / f"rng-{dist.rank():05d}.json"
        if rng.exists():  # a rank that is new has a fresh state
            load_rng_state(json.loads(rng.read_text()))
        self.saved_step = self.engine.step_count
        self.run.event("resume", checkpoint=path.name, world_size=dist.world_size(), refused=refused)

    def save(self, metrics: Metrics, *, required: bool) -> None:
        """A checkpoint; a failed one is survived unless it is `required` or too many failed in a row."""
        self.engine.check_replicas()
        state = {"work": self.work.state(), "metrics": metrics.state(), "best": self.best}
        if dist.is_main():
            state["lengths"] = self.run.lengths()

        def write(directory: Path) -> None:
            self.engine.save(directory)
            (directory / f"rng-{dist.rank():05d}.json").write_text(json.dumps(rng_state()))
            if dist.is_main():
                (directory / "state.json").write_text(json.dumps(state))

        try:
            path = self.checkpoints.save(self.engine.step_count, write)
        except SaveFailed as error:
            self.failed_saves += 1
            self.run.event("checkpoint_failed", step=self.engine.step_count, reason=str(error))
            if required or self.failed_saves >= MAX_FAILED_SAVES:
                raise
            return
        self.failed_saves, self.save_wanted, self.saved_step = 0, False, self.engine.step_count
        self.run.event("checkpoint", step=self.engine.step_count, path=path.name)

    def validate(self, metrics: Metrics) -> None:
        """Validates; keeps the weights if the loss is the lowest so far."""
        values = dist.broadcast_json(self.work.validate())  # ranks must agree on what is best
        if values is None:
            return
        metrics.record_validation(values)
        if "loss" not in values or (self.best is not None and not values["loss"] < self.best["loss"]):
            return
        self.best = {"step": self.engine.step_count, "loss": values["loss"]}
        weights = self.engine.full_state_dict()
        if dist.is_main():
            _write_best(self.run.path / "best", weights, self.best)
        self.run.event("best", **self.best)

    @contextmanager
    def failures_told(self) -> Iterator[None]:
        """Leaves a line in events.jsonl about what ended the run."""
        try:
            yield
        except Exception as error:
            self.run.event("error", step=self.engine.step_count, reason=f"{type(error).__name__}: {error}")
            raise

    def quarantine(self, mine: Sequence[Mapping[str, Any]]) -> None:
        """Writes down the bad samples of all ranks, which call it together."""
        for record in (record for of_rank in dist.gather_objects(list(mine)) for record in of_rank):
            self.run.append("quarantine", record)

    def exhausted(self, work: Exhausted) -> None:
        """Tells that the run ends here because its data does. ValueError if it has not begun to train."""
        self.quarantine(work.quarantined)
        step, max_steps = self.engine.step_count, self.engine.max_steps
        if not step:
            raise ValueError(
                "the data ended before the first step: all samples of data.sources are left out, bad (quarantine.jsonl "
                "names them), or more than the sources' `epochs` and `max_tokens` allow; give a source more of them, "
                "or other shards"
            )
        self.run.event("data_exhausted", step=step, max_steps=max_steps)
        if dist.is_main():
            reached, end = (learning_rate_factor(at, max_steps, self.engine.schedule) for at in (step, max_steps))
            log.warning(
                "the data ended after %d of %d steps, and the run with it: all sources have used up their epochs or "
                "tokens. The learning-rate schedule has not reached its end%s. Set train.max_steps=%d for a schedule "
                "that ends with the data, or give a source more epochs or max_tokens",
                *(step, max_steps),
                f": it is cut off at {reached:.0%} of the peak and would have ended at {end:.0%}" * (reached != end),
                step,
            )

    def outcome(self, metrics: Metrics, status: str) -> Outcome:
        best = self.run.path / "best" / "model.safetensors"
        self.run.event("stop" if status == "stopped" else "finish", step=self.engine.step_count)
        return Outcome(
            status=status,
            steps=self.engine.step_count,
            skipped=self.engine.skipped_count,
            tokens=int(metrics.tokens),
            seconds=metrics.seconds,
            metrics=metrics.last,
            best=best if self.best is not None else None,
        )


def _write_best(directory: Path, weights: Mapping[str, Any], best: Mapping[str, Any]) -> None:
    """Replaces the best weights; a kill in between leaves the old ones or the new ones."""
    aside, old = directory.with_name(".best.tmp"), directory.with_name(".best.old")
    for path in (aside, old):
        shutil.rmtree(path, ignore_errors=True)
    aside.mkdir()
    first_names: dict[int, str] = {}  # tied names share a tensor, which safetensors takes once
    for name, tensor in weights.items():
        first_names.setdefault(id(tensor), name)
    tensors = {name: weights[name] for name in first_names.values()}
    safetensors.torch.save_file(tensors, aside / "model.safetensors")
    (aside / "best.json").write_text(json.dumps(best))
    if directory.exists():
        os.rename(directory, old)
    os.rename(aside, directory)
    shutil.rmtree(old, ignore_errors=True)
