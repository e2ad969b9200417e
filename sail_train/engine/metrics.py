"""From a step's result to a line of metrics.jsonl, the trackers and the progress line.

Sums become means where they come in pairs: "loss/chat" with "loss/chat:count" is reported as their quotient, and left
out where the count is 0. "tokens" and "flops" of all ranks over the step's time give tokens_per_s and MFU.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from types import TracebackType
from typing import Any

import torch

from sail_train import cost, dist
from sail_train.engine.config import LogConfig, TrainConfig
from sail_train.engine.deepspeed import StepResult, TrainEngine
from sail_train.engine.progress import Progress
from sail_train.engine.rundir import RunDir
from sail_train.engine.trackers import Trackers
from sail_train.types import IGNORE_INDEX, Batch

COUNT = ":count"
HIDDEN = ("stop", "quarantined", "flops")
"""Sums that travel with a step for the loop's own use."""


def local_sums(batches: Sequence[Batch], shape: cost.ModelShape | None, trained: Collection[str]) -> dict[str, float]:
    """What a step's batches hold on this rank: samples, tokens, trained tokens, images, FLOPs."""
    sums = {
        "samples": float(sum(len(batch.keys) for batch in batches)),
        "tokens": float(sum(len(batch.input_ids) for batch in batches)),
        "trained_tokens": float(sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches)),
        "images": float(sum(len(batch.grids) for batch in batches)),
    }
    if shape is not None:
        sums["flops"] = sum(batch_flops(batch, shape, trained) for batch in batches)
    return sums


def batch_flops(batch: Batch, shape: cost.ModelShape, trained: Collection[str]) -> float:
    """Forward and backward of one micro batch."""
    return shape.train_flops(
        batch.cu_seqlens.diff().tolist(),
        batch.grids.prod(dim=1).tolist(),
        trained=trained,
        num_trained=int((batch.labels != IGNORE_INDEX).sum()),
    )


def means(sums: Mapping[str, float]) -> dict[str, float]:
    """Pairs (name, name:count) as quotients, other sums as they are."""
    values = {}
    for name, value in sums.items():
        count = sums.get(name + COUNT)
        if count is None and not name.endswith(COUNT):
            values[name] = value
        elif count:
            values[name] = value / count
    return values


class Metrics:
    """Context manager around the loop; `record` after each step, on every rank."""

    def __init__(
        self,
        run: RunDir,
        engine: TrainEngine,
        train: TrainConfig,
        log: LogConfig,
        *,
        shape: cost.ModelShape | None,
        settings: Mapping[str, Any],
    ) -> None:
        self.run = run
        self.engine = engine
        self.tokens = 0.0
        self.seconds = 0.0
        self.last: dict[str, Any] = {}
        self._peak = _peak(engine) if shape is not None else None
        self._progress = Progress(name=run.path.name, max_steps=train.max_steps, log_every=train.log_every)
        self._trackers = Trackers(run.path, log, settings) if dist.is_main() else None
        self._started = time.perf_counter()

    def __enter__(self) -> Metrics:
        self._progress.__enter__()
        self._started = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.__exit__(kind, error, trace)
        if self._trackers is not None:
            self._trackers.close()

    def state(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "seconds": self.seconds, "last": self.last}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on counting where `state` left off; {} is a fresh start."""
        self.tokens, self.seconds = state.get("tokens", 0.0), state.get("seconds", 0.0)
        self.last = dict(state.get("last", {}))

    def record(self, result: StepResult, extra: Mapping[str, Any]) -> None:
        """One line for one step; the time since the last one is the step's."""
        seconds = time.perf_counter() - self._started
        self._started = time.perf_counter()
        self.seconds += seconds
        self.tokens += result.sums["tokens"]
        record: dict[str, Any] = {
            "step": self.engine.step_count,
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            **{f"lr/{part}": lr for part, lr in result.lr.items()},
            **({"skipped": True} if result.skipped else {}),
            **means({name: value for name, value in result.sums.items() if name not in HIDDEN}),
            **extra,
            "seconds": seconds,
            "tokens_per_s": result.sums["tokens"] / seconds,
        }
        if self.engine.device.type == "cuda":
            record["memory_gib"] = torch.cuda.max_memory_allocated(self.engine.device) / 2**30
        if self._peak is not None:
            record["mfu"] = cost.mfu(result.sums["flops"], seconds, num_devices=dist.world_size(), peak=self._peak)
        self._write(record)
        self._progress.update(record)

    def record_validation(self, values: Mapping[str, float]) -> None:
        """A line of its own; its time is not counted as a step's."""
        self._write({"step": self.engine.step_count, **{f"valid/{name}": value for name, value in values.items()}})
        self._started = time.perf_counter()

    def _write(self, record: Mapping[str, Any]) -> None:
        self.last = {**self.last, **{name: _finite_or_none(value) for name, value in record.items()}}
        self.run.append("metrics", record)
        if self._trackers is not None:
            self._trackers.log(record, step=self.engine.step_count)


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _peak(engine: TrainEngine) -> float | None:
    """FLOP/s of this GPU; None on CPU, in fp32 and on a GPU that is not known: no MFU then."""
    if engine.device.type != "cuda" or engine.config.precision != "bf16":
        return None
    return cost.peak_flops(torch.cuda.get_device_name(engine.device))
