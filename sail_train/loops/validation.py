"""Loss on held-out sources: rows packed as in training, measured without gradients, the same ones every time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from sail_train import dist
from sail_train.data.config import DataConfig
from sail_train.data.stream import Stream
from sail_train.engine.deepspeed import TrainEngine
from sail_train.loops.config import RunConfig
from sail_train.processor.processor import SailVLProcessor
from sail_train.types import IGNORE_INDEX, Batch, Step

STEPS = 2
"""Global steps of held-out rows that a validation measures."""


class Validation:
    """The first `STEPS` global steps of the held-out mixture, kept in memory."""

    def __init__(self, data: DataConfig, processor: SailVLProcessor, *, seed: int) -> None:
        with Stream(data, processor, seed=seed, rank=dist.rank(), world=dist.world_size()) as stream:
            self._steps: list[Step] = [next(stream) for _ in range(STEPS)]

    @classmethod
    def of(cls, config: RunConfig, processor: SailVLProcessor) -> Validation | None:
        """The run's validation; None if it asks for none. ValueError if steps are set but no held-out source."""
        if not config.train.valid_every:
            return None
        if not config.valid:
            raise ValueError(
                f"train.valid_every={config.train.valid_every} but `valid` names no source; "
                "set valid.NAME.shards=..., or train.valid_every=0"
            )
        data = replace(config.data, sources=config.valid, prefetch=0)
        return cls(data, processor, seed=config.seed)

    def measure(self, engine: TrainEngine) -> Mapping[str, float]:
        """Mean loss per trained token, overall and by source; the module is called as often on every rank."""
        sums: dict[str, float] = {}
        engine.module.eval()
        try:
            for step in self._steps:
                for batch in step.batches:
                    self._add(sums, engine, batch.to(engine.device))
        finally:
            engine.module.train()
        total: dict[str, float] = {}
        for part in dist.gather_objects(sums):
            for name, value in part.items():
                total[name] = total.get(name, 0.0) + value
        names = [name for name in total if not name.endswith(":count")]
        return {name: total[name] / total[f"{name}:count"] for name in names if total[f"{name}:count"]}

    @staticmethod
    @torch.no_grad()
    def _add(sums: dict[str, float], engine: TrainEngine, batch: Batch) -> None:
        logprobs, _ = engine.module(
            batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens, batch.patches, batch.grids
        )
        trained = (batch.labels != IGNORE_INDEX).nonzero()[:, 0]
        sample = torch.bucketize(trained, batch.cu_seqlens[1:].to(trained.dtype), right=True).tolist()
        for number, value in zip(sample, (-logprobs).tolist(), strict=True):
            for name in ("loss", f"loss/{batch.sources[number]}"):
                sums[name] = sums.get(name, 0.0) + value
                sums[f"{name}:count"] = sums.get(f"{name}:count", 0.0) + 1.0
