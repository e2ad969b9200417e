"""The sample loop: ask a model each prompt several times, keep what is right, and write it as shards.

prompts -> answers -> rewards -> the right, well-formed and different ones of each prompt, shortest first -> shards.
Rejection sampling for think fusion, and pass rates as a measure of difficulty, are this one pass: the pass rate of
every prompt goes to samples.jsonl and into the meta of what is kept. Every logical stream writes its own shards, so
the same files come out whatever the number of ranks. The model is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sail_train import dist
from sail_train.data.prompts import PromptStream
from sail_train.data.quarantine import carried
from sail_train.data.writer import write_shards
from sail_train.engine.rundir import RunDir
from sail_train.loops import setup
from sail_train.loops.config import RunConfig
from sail_train.loops.outcome import Outcome
from sail_train.loops.sample_config import SampleConfig
from sail_train.model.folder import resolve
from sail_train.rewards.mix import Rewards
from sail_train.rl.config import DynamicSamplingConfig, RLConfig
from sail_train.rl.groups import Group, Roller
from sail_train.rl.rollout import Rollout, build_engine
from sail_train.types import Conversation, Message, Part

log = logging.getLogger(__name__)

ROUND = 128
"""Prompts asked between two lines of progress, about."""

MODE_OF = {"on": "think", "off": "direct", "auto": None}
"""Mode that a kept sample records, by the think flag it was asked with."""


def run(config: RunConfig) -> Outcome:
    """Samples once, on all ranks. It keeps no checkpoint: a run that was stopped starts again from the first prompt."""
    dist.init(timeout_minutes=config.engine.timeout_minutes)
    if "model" not in config.parents:
        raise ValueError("the sample loop asks a trained model; name it with parent=RUN_OR_MODEL_FOLDER")
    started, run_dir = time.perf_counter(), RunDir(config.run_dir)
    run_dir.truncate({})
    with Rewards(config.rewards) as rewards:
        harvest = _ask_all(config, rewards, run_dir)
    metrics, tokens = harvest.totals()
    if not metrics["sample/kept"]:
        raise ValueError(
            f"of {metrics['sample/prompts']:.0f} prompts no answer was kept (pass rate "
            f"{metrics['sample/pass_rate']:.1%}); raise sample.prompts or sample.n, widen the bounds on the pass rate,"
            " or ask a better model"
        )
    _publish(harvest, run_dir, config)
    run_dir.event("sampled", **metrics)
    return Outcome(
        status="finished",
        tokens=tokens,
        seconds=time.perf_counter() - started,
        metrics_after=metrics,
        model_dir=resolve(config.parents["model"]),
    )


@dataclass(kw_only=True)
class Harvest:
    """What this rank's prompts gave."""

    kept: dict[int, list[Conversation]] = field(default_factory=dict)
    """By logical stream."""
    prompts: int = 0
    answers: int = 0
    right: int = 0
    mixed: int = 0
    """Prompts with a right and a wrong answer."""
    tokens: int = 0

    def count(self, group: Group) -> None:
        right = sum(rollout.reward.correct for rollout in group)
        self.prompts += 1
        self.answers += len(group)
        self.right += right
        self.mixed += 0 < right < len(group)
        self.tokens += sum(rollout.num_tokens for rollout in group)

    def totals(self) -> tuple[dict[str, float], int]:
        """Metrics over all ranks, and the tokens generated."""
        kept = sum(len(part) for part in self.kept.values())
        sums = [self.prompts, self.answers, self.right, self.mixed, self.tokens, kept]
        prompts, answers, right, mixed, tokens, all_kept = dist.all_reduce_sums([float(value) for value in sums])
        metrics = {
            "sample/pass_rate": right / answers,
            "sample/mixed": mixed / prompts,
            "sample/prompts": prompts,
            "sample/kept": all_kept,
        }
        return metrics, int(tokens)


def _ask_all(config: RunConfig, rewards: Rewards, run_dir: RunDir) -> Harvest:
    """Asks this rank's share of the prompts, round by round; what is not kept is still written to samples.jsonl."""
    processor = setup.make_processor(config)
    asked = _asked(config)
    prompts = PromptStream(config.data, processor, seed=config.seed, rank=dist.rank(), world=dist.world_size())
    roller = Roller(
        asked,
        processor=processor,
        engine=build_engine(setup.make_model(config, processor, trained=False), processor, asked),
        rewards=rewards,
        prompts=(conversation for conversation, _ in prompts),
        seed=config.seed,
    )
    harvest, seen = Harvest(), defaultdict[int, set[str]](set)
    for number in range(-(-config.sample.prompts // asked.prompts_per_step)):
        with carried(prompts.pending):
            groups = _groups(roller.roll(number).rollouts)
        for group in groups:
            harvest.count(group)
            stream = group[0].ask.order % config.data.num_streams
            kept = harvest.kept.setdefault(stream, [])
            for rollout, rate in _choose(group, config.sample, seen[stream]):
                kept.append(_conversation(rollout, rate, place=len(kept)))
        _write_records(run_dir, groups, prompts.take_quarantined())
        log.info("%s: round %d, %d prompts on this rank", run_dir.path.name, number + 1, harvest.prompts)
    return harvest


def _asked(config: RunConfig) -> RLConfig:
    """How the roller asks: equal rounds of whole turns of the logical streams, whatever the number of ranks."""
    streams, sample = config.data.num_streams, config.sample
    turns = -(-sample.prompts // streams)
    rounds = -(-turns // max(1, ROUND // streams))
    return RLConfig(
        prompts_per_step=-(-turns // rounds) * streams,
        group_size=sample.n,
        temperature=sample.temperature,
        max_new_tokens=sample.max_new_tokens,
        think=sample.think,
        dynamic_sampling=DynamicSamplingConfig(enable=False),
    )


def _groups(rollouts: Sequence[Rollout]) -> list[Group]:
    groups: dict[int, Group] = {}
    for rollout in rollouts:
        groups.setdefault(rollout.ask.order, []).append(rollout)
    return list(groups.values())


def _pass_rate(group: Group) -> float | None:
    """Of the answers that were graded; None if no reward worked, which is no prompt that never passes."""
    graded = [rollout.reward.correct for rollout in group if rollout.shaped is not None]
    return sum(graded) / len(graded) if graded else None


def _choose(group: Group, sample: SampleConfig, seen: set[str]) -> Iterator[tuple[Rollout, float]]:
    """Right and well-formed answers of a prompt whose pass rate is within bounds; none twice for one prompt.

    `seen` is the prompt's logical stream's: it meets the prompt again in its next epoch, and no other stream does.
    """
    rate = _pass_rate(group)
    if rate is None or not (sample.min_pass_rate < rate <= sample.max_pass_rate):
        return
    good = [r for r in group if r.reward.correct and r.reward.parts["format"].value >= 1]
    taken = 0
    for rollout in sorted(good, key=lambda r: (r.num_tokens, r.response)):
        identity = _identity(rollout)
        if taken == sample.keep_per_prompt:
            return
        if identity not in seen:
            seen.add(identity)
            taken += 1
            yield rollout, rate


def _identity(rollout: Rollout) -> str:
    """Of what was asked and answered; a key may stand for another prompt in the next shard."""
    asked = rollout.ask.conversation
    digest = hashlib.sha256(json.dumps([message.text for message in asked.prompt] + [rollout.response]).encode())
    for file in (*asked.images, *asked.videos):
        digest.update(hashlib.sha256(file).digest())
    return digest.hexdigest()


def _record(group: Group) -> dict[str, Any]:
    first = group[0].ask.conversation
    return {
        "phase": "sample",
        "source": first.source,
        "key": first.key,
        "prompt": group[0].ask.question,
        "truth": first.answer,
        "pass_rate": _pass_rate(group),
        "responses": [rollout.response for rollout in group],
    }


def _write_records(run_dir: RunDir, groups: Sequence[Group], quarantined: Sequence[dict[str, Any]]) -> None:
    mine = [[group[0].ask.order, _record(group)] for group in groups]
    records = [pair for part in dist.gather_objects(mine) for pair in part]
    for _, record in sorted(records, key=lambda pair: pair[0]):
        run_dir.append("samples", record)
    for record in (record for part in dist.gather_objects(list(quarantined)) for record in part):
        run_dir.append("quarantine", record)


def _conversation(rollout: Rollout, pass_rate: float, *, place: int) -> Conversation:
    """A kept answer as a sample of its own: the prompt, its images, and what the model said.

    `place` in its stream makes the key unique: a prompt may have several answers, and come again in another epoch.
    """
    asked = rollout.ask.conversation
    said = Message(role="assistant", content=(Part(type="text", text=rollout.response),))
    return replace(
        asked,
        key=f"{asked.key}-{place}",
        messages=(*asked.prompt, said),
        mode=MODE_OF[rollout.ask.mode],
        meta={**asked.meta, "pass_rate": pass_rate},
    )


def _publish(harvest: Harvest, run_dir: RunDir, config: RunConfig) -> None:
    """All ranks write their streams' shards aside; the folder appears whole or not at all."""
    folder = run_dir.path / "shards"
    aside = folder.with_name("shards.partial")
    if dist.is_main():
        shutil.rmtree(aside, ignore_errors=True)
    dist.barrier()
    for stream, samples in sorted(harvest.kept.items()):
        if samples:
            write_shards(samples, aside, f"stream{stream:05d}", config.sample.samples_per_shard)
    dist.barrier()
    if dist.is_main():
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(aside, folder)
    dist.barrier()
