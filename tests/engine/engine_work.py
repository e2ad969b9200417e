"""Work for the training loop over the tiny model: deterministic steps, a state, validation, bad samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import engine_tiny as tiny
import torch

from sail_train import dist
from sail_train.engine.config import LogConfig, TrainConfig
from sail_train.engine.loop import Outcome, WorkStep, train
from sail_train.engine.rundir import RunDir

TIMINGS = ("seconds", "tokens_per_s")


class TinyWork:
    """Steps by a counter, which is its state; every third step has a bad sample, every fifth one is NaN."""

    def __init__(self, before_step: Callable[[int], None] = lambda step: None, *, boundary: int = 1) -> None:
        self.before_step = before_step
        self.boundary = boundary
        self.position = 0
        self.engine: Any = None

    def next_step(self) -> WorkStep:
        self.before_step(self.position)
        batches = tiny.step_batches(self.position)
        bad = [{"source": "a", "key": f"k{self.position}", "rank": dist.rank()}] if self.position % 3 == 0 else []
        spoilt = tiny.spoilt_loss("loss", float("nan"), rank=dist.world_size() - 1)
        loss = spoilt if self.position == 4 else tiny.loss
        step = WorkStep(
            batches=tiny.mine(batches),
            loss=loss,
            denominator=tiny.trained_tokens(batches),
            sums={"rows": float(len(tiny.mine(batches)))},
            metrics={"fill": 0.5, "draw": float(torch.rand(()))},
            quarantined=bad,
        )
        self.position += 1
        return step

    @property
    def at_boundary(self) -> bool:
        return self.position % self.boundary == 0

    def state(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state(self, state: dict[str, int]) -> None:
        self.position = state["position"]

    def validate(self) -> dict[str, float]:
        with self.engine.unsharded() as module, torch.no_grad():
            return {"loss": float(-module(tiny.make_batch(999)).mean())}

    @staticmethod
    def comparable(directory: Path) -> dict[str, list[dict[str, Any]]]:
        """What a run left in its .jsonl files, without timings and without the history of interruptions."""
        return {
            file.name: [
                {name: value for name, value in json.loads(line).items() if name not in TIMINGS}
                for line in file.read_text().splitlines()
            ]
            for file in sorted(directory.glob("*.jsonl"))
            if file.name != "events.jsonl"
        }


def train_tiny(
    directory: Path,
    *,
    stage: int = 0,
    precision: str = "fp32",
    before_step: Callable[[int], None] = lambda step: None,
    boundary: int = 1,
    **config: Any,
) -> Outcome:
    """A run of eight updates in `directory`, resumed if it was begun."""
    torch.manual_seed(1234)  # as a loop does at its start
    work = TinyWork(before_step, boundary=boundary)
    values = {"max_steps": 8, "save_every": 3, "valid_every": 2, "keep": 2, "log_every": 4, **config}
    engine = tiny.make_engine(stage, precision, max_steps=values["max_steps"])
    work.engine = engine
    try:
        return train(engine, work, RunDir(directory), config=TrainConfig(**values), log_config=LogConfig())
    finally:
        engine.close()
