"""From prompts to groups worth training on: one rollout batch.

prompts of this rank -> rollouts -> rewards -> length penalty -> advantages -> groups with a right and a wrong answer
are kept, and more prompts are asked until the batch is full (DAPO's dynamic sampling) -> dealt to mini batches.

Which prompts are asked, what is drawn and which groups are kept does not depend on the number of ranks: prompt i of a
round is rank (i mod world)'s, uids and seeds come from the prompt's number, and the ranks agree on the groups kept in
the order of those numbers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING

from sail_train import dist
from sail_train.rewards.mix import Reward, Rewards, Sample
from sail_train.rl.advantage import advantages
from sail_train.rl.config import OverlongConfig, RLConfig
from sail_train.rl.metrics import rollout_metrics
from sail_train.rl.rollout import Ask, Rollout, RolloutEngine, make_ask
from sail_train.types import Completion, Conversation, RunStopped, Sampling

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

logger = logging.getLogger(__name__)

Group = list[Rollout]


class NothingToLearn(RunStopped):
    """No group of a rollout batch holds a right and a wrong answer."""


class PromptsExhausted(RunStopped):
    """Some rank has no prompts left for another round; raised on all ranks."""


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """What one round of asking gave this rank."""

    mini_batches: list[list[Rollout]]
    """Rollouts of this rank for each update; as many updates on every rank, some maybe without rollouts here."""
    rollouts: list[Rollout]
    """All of them, dropped groups included: what samples.jsonl shows."""
    metrics: dict[str, float]
    """Over all ranks."""


class Roller:
    """Asks prompts and grades the answers, one rollout batch at a time."""

    def __init__(
        self,
        config: RLConfig,
        *,
        processor: SailVLProcessor,
        engine: RolloutEngine,
        rewards: Rewards,
        prompts: Iterator[Conversation],
        seed: int,
    ) -> None:
        """`prompts` are this rank's. Raises ValueError if the ranks cannot share a batch equally."""
        self.world, self.rank = dist.world_size(), dist.rank()
        if config.prompts_per_step % self.world:
            raise ValueError(
                f"rl.prompts_per_step={config.prompts_per_step} must be a multiple of the {self.world} ranks"
            )
        self.config, self.processor, self.engine = config, processor, engine
        self.rewards, self.prompts, self.seed = rewards, prompts, seed

    def roll(self, number: int) -> RolloutBatch:
        """Rollout batch `number` of the run.

        Raises:
            NothingToLearn: no group of it can teach anything.
            PromptsExhausted: before it was complete; what was asked for it is lost.
        """
        rounds = self.config.dynamic_sampling.max_batches if self.config.dynamic_sampling.enable else 1
        groups: list[Group] = []
        kept: list[int] = []
        for turn in range(rounds):
            asked = self._round(number, turn)
            groups += asked
            mine = [group[0].ask.order for group in asked if self._teaches(group)]
            kept += [order for orders in dist.gather_objects(mine) for order in orders]
            if len(kept) >= self.config.prompts_per_step:
                break
        chosen = sorted(kept)[: self.config.prompts_per_step]
        groups = [[replace(rollout, kept=rollout.ask.order in chosen) for rollout in group] for group in groups]
        rollouts = [rollout for group in groups for rollout in group]
        metrics = rollout_metrics(groups) | {"rollout/rounds": float(turn + 1)}
        self._report(number, chosen, metrics)
        return RolloutBatch(mini_batches=self._deal(rollouts, chosen), rollouts=rollouts, metrics=metrics)

    def _round(self, number: int, turn: int) -> list[Group]:
        """Ask, answer, grade and compare one round of prompts of this rank."""
        asks = []
        for i, conversation in enumerate(self._draw()):
            order = turn * self.config.prompts_per_step + self.rank + self.world * i
            uid = f"{number}/{order}"
            asks.append(make_ask(conversation, self.processor, self.config, uid=uid, order=order))
        return grade(asks, self._generate(asks), self.processor, self.rewards, self.config)

    def _draw(self) -> list[Conversation]:
        """This rank's prompts of a round. The ranks' data may end apart, so they hear of it before any generates."""
        share = self.config.prompts_per_step // self.world
        drawn = list(islice(self.prompts, share))
        if not all(dist.gather_objects(len(drawn) == share)):
            raise PromptsExhausted(
                "all prompts are exhausted; give a source more epochs, ask for fewer prompts or steps, or mend the bad "
                "samples that quarantine.jsonl names, if there are any"
            )
        return drawn

    def _generate(self, asks: Sequence[Ask]) -> list[list[Completion]]:
        """Completions of each ask; prompts with groups of one size are generated together."""
        results: dict[int, list[Completion]] = {}
        for size in sorted({ask.kind.group_size or 0 for ask in asks}):
            same = [ask for ask in asks if ask.kind.group_size == size]
            sampling = Sampling(
                max_new_tokens=self.config.max_new_tokens, temperature=self.config.temperature, n=size, seed=self.seed
            )
            generated = self.engine.generate([ask.prompt for ask in same], sampling)
            results |= {ask.order: group for ask, group in zip(same, generated, strict=True)}
        return [results[ask.order] for ask in asks]

    def _teaches(self, group: Group) -> bool:
        return not self.config.dynamic_sampling.enable or is_mixed(group)

    def _deal(self, rollouts: Sequence[Rollout], chosen: Sequence[int]) -> list[list[Rollout]]:
        """The chosen groups in turn to the mini batches; fewer groups than mini batches make fewer updates."""
        updates = min(self.config.mini_batches, len(chosen))
        place = {order: i % updates for i, order in enumerate(chosen)}
        mini_batches: list[list[Rollout]] = [[] for _ in range(updates)]
        for rollout in rollouts:
            if rollout.kept:
                mini_batches[place[rollout.ask.order]].append(rollout)
        return mini_batches

    def _report(self, number: int, chosen: Sequence[int], metrics: dict[str, float]) -> None:
        right, wrong = metrics["rollout/all_right"], metrics["rollout/all_wrong"]
        found = f"of {metrics['rollout/prompts']:.0f} prompts {right:.0%} were all right and {wrong:.0%} all wrong"
        if not chosen:
            raise NothingToLearn(
                f"rollout batch {number}: no group has a right and a wrong answer ({found}). Ask prompts of another "
                "difficulty, raise rl.group_size, rl.temperature or rl.dynamic_sampling.max_batches, or switch "
                "rl.dynamic_sampling.enable off"
            )
        if len(chosen) < self.config.prompts_per_step:
            logger.warning(
                "rollout batch %d: training on %d groups instead of %d after %d rounds (%s)",
                number,
                len(chosen),
                self.config.prompts_per_step,
                int(metrics["rollout/rounds"]),
                found,
            )


def grade(
    asks: Sequence[Ask],
    completions: Sequence[Sequence[Completion]],
    processor: SailVLProcessor,
    rewards: Rewards,
    config: RLConfig,
) -> list[Group]:
    """Groups with rewards and advantages; all responses are graded in one call."""
    flat = [(ask, completion) for ask, group in zip(asks, completions, strict=True) for completion in group]
    texts = [ask.forced + processor.decode(completion.token_ids) for ask, completion in flat]
    block = processor.style.block
    samples = [
        reward_sample(ask, text, completion, block=block) for (ask, completion), text in zip(flat, texts, strict=True)
    ]
    graded = iter(zip(flat, texts, rewards.score(samples), strict=True))
    groups = []
    for group in completions:
        members = [next(graded) for _ in group]
        groups.append([rollout_of(*pair, text, reward, config) for pair, text, reward in members])
    return [compare(group, config.advantage) for group in groups]


def reward_sample(ask: Ask, text: str, completion: Completion, *, block: bool) -> Sample:
    conversation = ask.conversation
    assert conversation.answer is not None and conversation.verifier is not None
    return Sample(
        source=conversation.source,
        question=ask.question,
        response=text,
        finish_reason=completion.finish_reason,
        mode=ask.mode,
        answer=conversation.answer,
        verifier=conversation.verifier,
        block=block,
        reference="\n".join(f"{name}: {value}" for name, value in conversation.meta.items()),
    )


def rollout_of(ask: Ask, completion: Completion, text: str, reward: Reward, config: RLConfig) -> Rollout:
    penalty = overlong_penalty(len(completion.token_ids), config.max_new_tokens, config.overlong)
    shaped = None if reward.total.failed else reward.total.value + penalty
    cut = config.mask_truncated and completion.finish_reason != "stop"
    return Rollout(
        ask=ask, completion=completion, response=text, reward=reward, shaped=shaped, masked=cut or reward.total.failed
    )


def compare(group: Group, estimator: str) -> Group:
    values = advantages(estimator, [rollout.shaped for rollout in group])
    return [replace(rollout, advantage=value) for rollout, value in zip(group, values, strict=True)]


def is_mixed(group: Group) -> bool:
    """Whether the verifier found some of the graded answers right and some wrong.

    Judged by the verifier and not by the summed reward: format and judge make nearly every group vary.
    """
    correct = [rollout.reward.correct for rollout in group if rollout.shaped is not None]
    return any(correct) and not all(correct)


def overlong_penalty(length: int, limit: int, config: OverlongConfig) -> float:
    """0 up to `limit - buffer` tokens, then linear to `-penalty` at `limit` (DAPO, soft overlong punishment)."""
    if not config.enable:
        return 0.0
    excess = length - (limit - config.buffer)
    return -config.penalty * min(max(excess / config.buffer, 0.0), 1.0)
