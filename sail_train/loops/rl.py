"""The RL loop: prompts -> rollouts -> rewards -> advantages -> a few updates, again and again.

processor, model, engine, prompt stream, rewards -> evaluate what we start from -> train -> save -> evaluate.
Weights travel nowhere between trainer and embedded generator: they are the same module. Checkpoints are taken between
rollout batches only, so a resumed run draws the same responses from the same prompts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sail_train import dist
from sail_train.data.prompts import PromptStream
from sail_train.data.quarantine import carried
from sail_train.engine.deepspeed import TrainEngine
from sail_train.engine.loop import Exhausted, WorkStep
from sail_train.engine.rundir import RunDir
from sail_train.loops import setup
from sail_train.loops.balance import routed_tokens
from sail_train.loops.config import RunConfig
from sail_train.loops.outcome import Outcome
from sail_train.loops.stage import evaluate_start, train_stage
from sail_train.model.packed import PackedLM
from sail_train.processor.processor import SailVLProcessor
from sail_train.rewards.mix import Rewards
from sail_train.rl.batch import PolicyBatch, pack
from sail_train.rl.groups import PromptsExhausted, Roller, RolloutBatch
from sail_train.rl.objectives.objective import Objective, add_reference
from sail_train.rl.parity import check_parity, is_due
from sail_train.rl.rollout import Rollout, build_engine
from sail_train.types import Batch


def run(config: RunConfig) -> Outcome:
    """Trains one RL stage, from where it was left if it was begun before."""
    dist.init(timeout_minutes=config.engine.timeout_minutes)
    run_dir = RunDir(config.run_dir)
    processor = setup.make_processor(config)
    vlm = setup.make_model(config, processor)
    evaluate_start(vlm, processor, config, run_dir)
    reference = _reference(config, processor) if config.rl.needs_reference else None
    engine = setup.make_engine(config, vlm, accumulation=1)
    with Rewards(config.rewards) as rewards:
        work = RLWork(engine, vlm, processor, rewards, run_dir, config, reference=reference)
        return train_stage(engine, work, vlm, processor, config, run_dir)


class RLWork:
    """Rollout batches as work for the training loop: one update per mini batch and epoch."""

    def __init__(
        self,
        engine: TrainEngine,
        vlm: Any,
        processor: SailVLProcessor,
        rewards: Rewards,
        run_dir: RunDir,
        config: RunConfig,
        *,
        reference: PackedLM | None,
    ) -> None:
        self._engine = engine
        self._run_dir = run_dir
        self._config = config.rl
        self._reference = reference
        self._patch_dim = processor.image_spec.patch_dim
        self._pad = processor.token_ids["pad"]
        self._prompts = PromptStream(
            config.data, processor, seed=config.seed, rank=dist.rank(), world=dist.world_size()
        )
        self._objective = Objective(config.rl)
        self._roller = Roller(
            config.rl,
            processor=processor,
            engine=build_engine(vlm, processor, config.rl),
            rewards=rewards,
            prompts=(conversation for conversation, _ in self._prompts),
            seed=config.seed,
        )
        self._changes: list[str] = []
        self._positions: Mapping[str, Any] = self._prompts.positions
        """After the last rollout batch that was complete, or at the end of the prompts."""
        self._quarantined: tuple[dict[str, Any], ...] = ()
        """Bad prompts of complete rollout batches that are still to be written down."""
        self._ended = False
        """Whether the prompts were exhausted, maybe before this run was resumed."""
        self._number = 0
        """Of the next rollout batch."""
        self._updates: deque[list[Rollout]] = deque()
        """Mini batches of the current rollout batch that are still to be trained on."""

    @property
    def at_boundary(self) -> bool:
        return not self._updates

    def next_step(self) -> WorkStep | Exhausted:
        """The next update; rolls out when the last batch is used up.

        Raises:
            PromptsExhausted: there are fewer prompts than the first rollout batch asks.
        """
        if self._changes:  # told now: while a run is restored its files are still cut back
            self._run_dir.event("mix_change", changes=self._changes)
            self._changes = []
        if self._ended:
            return Exhausted()
        metrics: Mapping[str, float] = {}
        try:
            while not self._updates:
                with carried(self._quarantined), carried(self._prompts.pending):
                    metrics = self._roll()
        except PromptsExhausted:
            if not self._engine.step_count:
                raise
            return self._exhausted()
        quarantined, self._quarantined = self._quarantined, ()
        rollouts = self._updates.popleft()
        batches = self._pack(rollouts)
        counted = self._objective.denominator(rollouts)
        denominator, tokens = dist.all_reduce_sums([counted, float(routed_tokens(batches))])
        return WorkStep(
            batches=batches,
            loss=self._loss,
            denominator=denominator,
            routed_tokens=tokens,
            metrics=metrics,
            quarantined=quarantined,
        )

    def state(self) -> dict[str, Any]:
        """Positions of all ranks' prompts, and which rollout batch comes next."""
        assert self.at_boundary, "the training loop saves between rollout batches only"
        positions = {k: v for part in dist.gather_objects(dict(self._positions)) for k, v in part.items()}
        return {"positions": positions, "rollout_batch": self._number, "ended": self._ended}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self._prompts.load_state(state["positions"])
        self._positions, self._changes = self._prompts.positions, self._prompts.changes
        self._number = state["rollout_batch"]
        # at the end the ranks stand apart, and as many of them as are here now might find prompts for one batch more
        self._ended = state.get("ended", False) and not self._changes

    def validate(self) -> None:
        """RL is validated by `eval`: it has no loss on held-out data."""

    def _roll(self) -> dict[str, float]:
        with self._engine.unsharded() as module:
            batch = self._roller.roll(self._number)
            metrics = batch.metrics
            if is_due(self._config, self._number):
                metrics = metrics | self._parity(module, batch)
        self._record(batch)
        usable = [mini_batch for mini_batch in batch.mini_batches if self._trains(mini_batch)]
        self._updates.extend(usable * self._config.epochs)
        self._number += 1
        self._positions = self._prompts.positions
        self._quarantined += self._prompts.take_quarantined()
        return metrics | {"rollout/batch": float(self._number)}

    def _exhausted(self) -> Exhausted:
        """The end, with the bad prompts of the rollout batch that was begun; no resumed run meets them again."""
        self._ended = True
        self._prompts.settle()
        self._positions = self._prompts.positions
        quarantined, self._quarantined = self._quarantined + self._prompts.take_quarantined(), ()
        return Exhausted(quarantined=quarantined)

    def _parity(self, module: torch.nn.Module, batch: RolloutBatch) -> dict[str, float]:
        module.eval()
        try:
            return check_parity(module, batch.rollouts, self._config, pad_token_id=self._pad)
        finally:
            module.train()

    def _record(self, batch: RolloutBatch) -> None:
        """Every rollout of every rank goes to samples.jsonl, in the order of the prompts."""
        mine = [(rollout.ask.order, rollout.to_record()) for rollout in batch.rollouts]
        records = [pair for part in dist.gather_objects(mine) for pair in part]
        for _, record in sorted(records, key=lambda pair: pair[0]):
            self._run_dir.append("samples", {"phase": "rollout", "rollout_batch": self._number, **record})

    def _trains(self, rollouts: Sequence[Rollout]) -> bool:
        """Whether anything of a mini batch counts on some rank: all of it may be masked."""
        return dist.all_reduce_sums([self._objective.denominator(rollouts)])[0] > 0

    def _pack(self, rollouts: Sequence[Rollout]) -> list[PolicyBatch]:
        """Micro batches, as many as on the rank that has the most."""
        make = {"micro_batch_tokens": self._config.micro_batch_tokens, "patch_dim": self._patch_dim}
        own = pack(rollouts, **make, pad_token_id=self._pad)
        most = max(dist.gather_objects(len(own)))
        batches = pack(rollouts, **make, pad_token_id=self._pad, at_least=most)
        if self._reference is None:
            return batches
        moved = [batch.to(self._engine.device) for batch in batches]
        return add_reference(moved, self._reference, temperature=self._config.temperature)

    def _loss(self, module: torch.nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The objective's loss; its sums become means per trained token in the metrics."""
        total, sums = self._objective.loss(module, batch)
        tokens = sums.pop("tokens")
        means = {f"update/{name}": value for name, value in sums.items()}
        return total, means | {f"{name}:count": tokens for name in means}


def _reference(config: RunConfig, processor: SailVLProcessor) -> PackedLM:
    """What the stage starts from, once more and whole: it stays as it is."""
    return PackedLM(setup.make_model(config, processor, trained=False)).eval()
