"""Figures of a rollout batch and of its updates: sums over ranks first, means last."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from sail_train import dist
from sail_train.rewards.format import split_thought
from sail_train.rl.rollout import Rollout


def rollout_metrics(groups: Sequence[Sequence[Rollout]]) -> dict[str, float]:
    """Means over the rollouts and groups of all ranks; every rank calls it and gets the same."""
    mine: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        _add_group(mine, group)
        for rollout in group:
            _add_rollout(mine, rollout)
    sums = {name: [sum(values), float(len(values))] for name, values in mine.items()}
    longest = max((rollout.num_tokens for group in groups for rollout in group), default=0)
    merged: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    gathered = dist.gather_objects([sums, longest])
    for theirs, _ in gathered:
        for name, (total, count) in theirs.items():
            merged[name] = [merged[name][0] + total, merged[name][1] + count]
    means = {name: total / count for name, (total, count) in sorted(merged.items())}
    means["rollout/prompts"] = merged["rollout/all_right"][1]
    means["rollout/tokens"] = merged["rollout/length"][0]
    means["rollout/length_max"] = float(max(length for _, length in gathered))
    return means


def _add_group(sums: dict[str, list[float]], group: Sequence[Rollout]) -> None:
    correct = [rollout.reward.correct for rollout in group if rollout.shaped is not None]
    sums["rollout/all_right"].append(float(bool(correct) and all(correct)))
    sums["rollout/all_wrong"].append(float(bool(correct) and not any(correct)))
    sums["rollout/zero_variance"].append(float(all(rollout.advantage == 0 for rollout in group)))
    sums["rollout/kept"].append(float(group[0].kept))
    sums["rollout/unique"].append(len({rollout.completion.token_ids for rollout in group}) / len(group))


def _add_rollout(sums: dict[str, list[float]], rollout: Rollout) -> None:
    failed = rollout.shaped is None
    sums["rollout/failed"].append(float(failed))
    sums["rollout/length"].append(float(rollout.num_tokens))
    sums["rollout/truncated"].append(float(rollout.completion.finish_reason != "stop"))
    sums["rollout/thinks"].append(float(bool(split_thought(rollout.response)[0])))
    sums["rollout/logprob"].append(sum(rollout.completion.logprobs) / max(rollout.num_tokens, 1))
    if not failed:
        sums["rollout/reward"].append(rollout.reward.total.value)
    for name, score in rollout.reward.parts.items():
        if not score.failed:
            sums[f"rollout/{name}"].append(score.value)
            sums[f"{rollout.ask.conversation.source}/{name}"].append(score.value)


def update_metrics(sums: Mapping[str, float]) -> dict[str, float]:
    """Means per trained token from the reduced sums of an update (see `objectives.Objective`)."""
    tokens = max(sums["tokens"], 1.0)
    return {f"update/{name}": total / tokens for name, total in sums.items() if name != "tokens"} | {
        "update/tokens": sums["tokens"]
    }
