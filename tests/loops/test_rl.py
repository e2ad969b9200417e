"""The RL loop: what its records say is what was rewarded, compared and trained, and a failed reward trains nothing."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch
from loops_tiny import RL, events, in_a_box, lines, losses, start, weights, write_tar

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.writer import files_of

PROMPTS, GROUP = 4, 4


def groups(run: Path, batch: int) -> list[list[dict[str, Any]]]:
    """Rollouts of one rollout batch, prompt by prompt."""
    found: dict[str, list[dict[str, Any]]] = {}
    for record in lines(run, "samples"):
        if record["rollout_batch"] == batch:
            found.setdefault(record["uid"], []).append(record)
    return list(found.values())


@pytest.fixture(scope="module")
def rolled(data: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three rollout batches of two updates each."""
    run = tmp_path_factory.mktemp("rolled") / "run"
    tokens = ("train.max_steps=6", "rl.mini_batches=2", "optim.lr.vision=0.0")
    assert start(data, *RL, *tokens, f"parent={trained}", f"run_dir={run}") == 0
    return run


def test_every_rollout_is_written_down_in_the_order_of_its_prompt(rolled: Path) -> None:
    for batch in range(3):
        asked = groups(rolled, batch)
        assert [[record["uid"] for record in group] for group in asked] == [
            [f"{batch}/{order}"] * GROUP for order in range(len(asked))
        ]
        assert len(asked) % PROMPTS == 0
    for record in lines(rolled, "samples"):
        assert (record["phase"], record["think"], record["source"]) == ("rollout", "off", "rl")
        assert record["prompt"] and record["truth"] in ("0", "1") and 1 <= record["tokens"] <= 14
        assert record["finish_reason"] in ("stop", "length")
        assert (record["finish_reason"] == "length") <= (record["tokens"] == 14)


def test_a_reward_is_its_parts_by_their_weights(rolled: Path) -> None:
    seen = set()
    for record in lines(rolled, "samples"):
        parts = {name: part["value"] for name, part in record["parts"].items()}
        assert parts.keys() == {"answer", "format"}
        assert record["reward"] == pytest.approx(0.9 * parts["answer"] + 0.1 * parts["format"])
        # a soft punishment of the last four tokens before the limit
        assert record["shaped"] == pytest.approx(record["reward"] - max(0.0, (record["tokens"] - 10) / 4))
        seen.add(tuple(parts.values()))
    assert {(0, 0), (0, 1), (1, 1)} <= seen


def test_advantages_compare_within_a_group(rolled: Path) -> None:
    for group in groups(rolled, 0) + groups(rolled, 1):
        shaped = [record["shaped"] for record in group]
        if max(shaped) == min(shaped):
            expected = [0.0] * GROUP
        else:
            spread = statistics.stdev(shaped) + 1e-6
            expected = [(value - statistics.mean(shaped)) / spread for value in shaped]
        assert [record["advantage"] for record in group] == pytest.approx(expected)


def test_dynamic_sampling_keeps_mixed_groups_and_asks_until_there_are_enough(rolled: Path) -> None:
    dropped = 0
    for batch, line in enumerate(lines(rolled)[::2]):
        asked = groups(rolled, batch)
        mixed = [len({record["parts"]["answer"]["value"] for record in group}) == 2 for group in asked]
        kept = [group[0]["kept"] for group in asked]
        # the first mixed ones, and no more than the batch has room for
        assert kept == [one and sum(mixed[: place + 1]) <= PROMPTS for place, one in enumerate(mixed)]
        assert line["rollout/rounds"] * PROMPTS == line["rollout/prompts"] == len(asked)
        assert sum(mixed[:-PROMPTS]) < PROMPTS, "no round more than was needed"
        assert line["rollout/kept"] == pytest.approx(sum(kept) / len(asked))
        dropped += len(kept) - sum(kept)
    assert dropped


def test_updates_train_the_kept_groups_once(rolled: Path) -> None:
    metrics = lines(rolled)
    assert [line["step"] for line in metrics] == [1, 2, 3, 4, 5, 6]
    for batch in range(3):
        kept = [record for group in groups(rolled, batch) for record in group if record["kept"]]
        moved = [record for record in kept if record["advantage"]]
        first, second = metrics[2 * batch : 2 * batch + 2]
        assert first["trained_tokens"] + second["trained_tokens"] == sum(record["tokens"] for record in moved)
        assert "rollout/reward" in first and "rollout/reward" not in second
        rewards = [record["reward"] for group in groups(rolled, batch) for record in group]
        assert first["rollout/reward"] == pytest.approx(sum(rewards) / len(rewards))


def test_the_first_loss_of_a_batch_is_that_of_reinforce(rolled: Path) -> None:
    """While the weights are those that drew the tokens every ratio is 1: minus the mean advantage over tokens."""
    line, asked = lines(rolled)[0], [group for group in groups(rolled, 0) if group[0]["kept"]]
    mine = [record for group in asked[::2] for record in group]  # whole groups in turn to two mini batches
    total = sum(record["advantage"] * record["tokens"] for record in mine)
    assert line["loss"] == pytest.approx(-total / sum(record["tokens"] for record in mine), abs=1e-5)
    assert line["update/ratio"] == pytest.approx(1.0, abs=1e-5) and line["update/clipped"] == 0


def test_a_frozen_part_keeps_its_bits_and_the_others_learn(rolled: Path, trained: Path) -> None:
    before, after = weights(trained), weights(rolled)
    for name, weight in before.items():
        assert torch.equal(after[name], weight) == name.startswith("vision."), name


def test_engine_and_trainer_are_compared_before_the_first_update(rolled: Path) -> None:
    measured = losses(rolled, "parity/mean")
    assert len(measured) == 1 and measured[0] < 1e-5


def with_truth(truth: str, data: Path, folder: Path, *, every: int) -> str:
    """Shards in which every so many samples have another truth; returns their pattern."""
    samples = held_out({"boxed": SourceConfig(shards=f"{data}/boxed/*.tar")})[:24]
    files = []
    for number, sample in enumerate(samples):
        for kind, content in files_of(in_a_box(sample)).items():
            if kind == "json" and number % every == 0:
                content = json.dumps({**json.loads(content), "answer": truth}).encode()
            files += [(f"{number:04d}.{kind}", content)] if isinstance(content, bytes) else []
    write_tar(folder / "other.tar", files)
    return f"{folder}/*.tar"


PLAIN = ("rl.dynamic_sampling.enable=false", "train.max_steps=2")


def test_a_reward_that_failed_masks_its_rollout_and_is_not_wrong(data: Path, trained: Path, tmp_path: Path) -> None:
    run, shards = tmp_path / "run", with_truth("many", data, tmp_path / "shards", every=3)
    tokens = (f"data.sources.rl.shards={shards}", "rewards.verifier.max_fail_rate=1.0")
    assert start(data, *RL, *PLAIN, *tokens, f"parent={trained}", f"run_dir={run}") == 0
    failed = [record for record in lines(run, "samples") if record["truth"] == "many"]
    fine = [record for record in lines(run, "samples") if record["truth"] != "many"]
    assert failed and fine
    for record in failed:
        answer = record["parts"]["answer"]
        assert (answer["status"], answer["value"]) in {("error", None), ("unparsable", 0.0)}
        if answer["status"] == "error":
            assert "the truth 'many' is not one number" in answer["detail"]
            assert record["masked"] and record["reward"] is record["shaped"] is None and record["advantage"] == 0
    assert any(record["parts"]["answer"]["status"] == "error" for record in failed)
    assert not any(record["masked"] for record in fine)
    for batch, line in enumerate(lines(run)):
        asked = [record for group in groups(run, batch) for record in group]
        assert line["rollout/failed"] == pytest.approx(sum(record["masked"] for record in asked) / len(asked))
        moved = [record for record in asked if record["advantage"]]
        assert line["trained_tokens"] == sum(record["tokens"] for record in moved)
        # what was not wrong does not count in the denominator either
        total = -sum(record["advantage"] * record["tokens"] for record in moved)
        unmasked = sum(record["tokens"] for record in asked if not record["masked"])
        if batch == 0:
            assert line["loss"] == pytest.approx(total / unmasked, abs=1e-5)


def test_rewards_that_fail_too_often_stop_the_run(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shards = tmp_path / "run", with_truth("many", data, tmp_path / "shards", every=2)
    tokens = (f"data.sources.rl.shards={shards}", f"parent={trained}", f"run_dir={run}")
    assert start(data, *RL, *PLAIN, *tokens) == 2
    told = capsys.readouterr().err
    assert re.search("error: .*verdicts of the verifier failed.*max_fail_rate.*is not one number", told)
    assert "RewardsFailed" in events(run, "error")[0]["reason"]


def test_prompts_that_teach_nothing_stop_the_run_with_what_to_change(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Truths that the model never says."""
    run, shards = tmp_path / "run", with_truth("12345", data, tmp_path / "shards", every=1)
    tokens = (f"data.sources.rl.shards={shards}", "rl.dynamic_sampling.max_batches=2")
    assert start(data, *RL, "train.max_steps=2", *tokens, f"parent={trained}", f"run_dir={run}") == 2
    told = capsys.readouterr().err
    assert re.search("error: .*of 8 prompts 0% were all right and 100% all wrong.*raise rl.group_size", told)
    assert "NothingToLearn" in events(run, "error")[0]["reason"]


def test_a_sample_without_truth_is_named(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    messages = [{"role": "user", "content": "What is 1 + 1?"}, {"role": "assistant", "content": "2"}]
    files = [(f"{number}.json", json.dumps({"messages": messages}).encode()) for number in range(8)]
    write_tar(tmp_path / "shards" / "a.tar", files)
    tokens = (f"data.sources.rl.shards={tmp_path}/shards/*.tar", f"parent={trained}", f"run_dir={tmp_path}/run")
    assert start(data, *RL, *PLAIN, *tokens) == 2
    assert "of source 'rl' has no answer or verifier; RL needs both" in capsys.readouterr().err


def test_the_embedded_judge_grades_thoughts_where_they_have_a_weight(data: Path, trained: Path, tmp_path: Path) -> None:
    run, url = tmp_path / "run", "rewards.judge.url=embedded"
    parts = "rewards.parts={answer: 0.6, format: 0.1, think: 0.3}"
    assert start(data, *RL, *PLAIN, parts, url, f"parent={trained}", f"run_dir={run}") == 0
    for record in lines(run, "samples"):
        values = {name: part["value"] for name, part in record["parts"].items()}
        assert record["reward"] == pytest.approx(
            0.6 * values["answer"] + 0.1 * values["format"] + 0.3 * values["think"]
        )
    assert len(losses(run, "rollout/think")) == 2
