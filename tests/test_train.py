"""The one process that trains a stage: what it skips, refuses, moves aside, writes down, and how it exits."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from sail_train import dist, train
from sail_train.job import lineage, state
from sail_train.job.compose import Configs
from sail_train.job.job import Job, resolve
from sail_train.job.overrides import parse_tokens
from sail_train.job.state import Conduct
from sail_train.types import RunStopped

pytestmark = pytest.mark.usefixtures("workplace")

EXPLICIT = Conduct(explicit=True)
FORCE = Conduct(explicit=True, force=True)


def job(configs: Configs, *tokens: str) -> Job:
    return resolve(configs, parse_tokens(["stage=first", "parent=parent", *tokens]))


def read(path: str) -> Any:
    return json.loads((Path("runs/adhoc/first") / path).read_text())


def test_a_run_writes_down_its_config_its_lineage_and_its_outcome(configs: Configs, loop: Any) -> None:
    assert train.run(job(configs), EXPLICIT) == 0
    written = yaml.safe_load(Path("runs/adhoc/first/config.yaml").read_text())
    assert written["train"]["max_steps"] == 7 and written["parents"] == {"model": "parent"}
    assert read("lineage.json")["parents"]["model"]["path"] == "parent"
    outcome = read("outcome.json")
    assert outcome["status"] == "finished" and outcome["steps"] == 7 and outcome["stage"] == "first"
    assert outcome["model_dir"] == "runs/adhoc/first/model"
    assert outcome["model_hash"] == lineage.model_hash(Path("runs/adhoc/first/model"))


def test_a_finished_run_is_skipped(configs: Configs, loop: Any) -> None:
    assert [train.run(job(configs), EXPLICIT) for _ in range(2)] == [0, 0]
    assert loop.trained == ["first"]


def test_a_changed_one_says_what_changed_and_asks_for_force(
    configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(job(configs), EXPLICIT)
    assert train.run(job(configs, "train.max_steps=8"), EXPLICIT) == 2
    told = capsys.readouterr().err
    assert "runs/adhoc/first was finished with something else:\n  train.max_steps: 7 -> 8\n" in told
    assert "force=true" in told and "--ignore-code" not in told
    assert loop.trained == ["first"]


def test_force_trains_anew_and_keeps_the_old_run(configs: Configs, loop: Any) -> None:
    for steps in ("7", "8", "9"):
        assert train.run(job(configs, f"train.max_steps={steps}"), FORCE) == 0
    assert read("outcome.json")["steps"] == 9
    kept = sorted(Path("runs/adhoc/.replaced").iterdir())
    assert [json.loads((path / "outcome.json").read_text())["steps"] for path in kept] == [7, 8]


def test_force_trains_a_named_run_anew_even_if_nothing_changed(configs: Configs, loop: Any) -> None:
    train.run(job(configs), EXPLICIT)
    assert train.run(job(configs), Conduct(force=True)) == 0
    assert len(loop.trained) == 1, "in a recipe only what changed is trained anew"
    assert train.run(job(configs), FORCE) == 0
    assert len(loop.trained) == 2


def test_changed_code_can_be_ignored(
    configs: Configs, loop: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train.run(job(configs), EXPLICIT)
    monkeypatch.setattr(lineage, "code_hash", lambda module: "other")
    assert train.run(job(configs), EXPLICIT) == 2
    assert "--ignore-code" in capsys.readouterr().err
    assert train.run(job(configs), Conduct(ignore_code=True)) == 0
    assert loop.trained == ["first"]


def test_a_stopped_run_exits_with_its_own_code_and_goes_on(configs: Configs, loop: Any) -> None:
    loop.stop_at = "first"
    assert train.run(job(configs), EXPLICIT) == train.EXIT_SAVED == 75
    assert read("outcome.json")["status"] == "stopped" and read("outcome.json")["model_hash"] is None
    loop.stop_at = None
    assert train.run(job(configs), EXPLICIT) == 0
    assert len(loop.trained) == 2


def test_the_exit_code_is_the_engines() -> None:
    from sail_train.engine.signals import EXIT_SAVED

    assert train.EXIT_SAVED == EXIT_SAVED


def test_a_begun_run_with_other_values_is_not_mixed_up(
    configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.stop_at = "first"
    train.run(job(configs), EXPLICIT)
    assert train.run(job(configs, "seed=1"), EXPLICIT) == 2
    assert "was begun with something else:\n  seed: 0 -> 1" in capsys.readouterr().err


def test_a_start_that_failed_at_once_leaves_the_way_free(configs: Configs, loop: Any) -> None:
    state.write_start(job(configs))
    assert train.run(job(configs, "seed=1"), EXPLICIT) == 0


def test_what_the_user_can_mend_is_one_line_and_the_traceback_a_file(
    configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.error = ValueError("data.num_streams=8 does not divide")
    assert train.run(job(configs), EXPLICIT) == 2
    told = capsys.readouterr().err
    assert "error: data.num_streams=8 does not divide\n" in told and "Traceback" not in told
    assert "Traceback" in Path("runs/adhoc/first/error-rank0.txt").read_text()


@pytest.mark.parametrize("rank", [0, 1])
def test_bad_samples_that_stop_a_run_are_written_down_by_the_rank_that_met_them(
    configs: Configs, loop: Any, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], rank: int
) -> None:
    if rank:
        state.write_start(job(configs))
        request.getfixturevalue("second_rank").update({"train": True})
    listed = Path("runs/adhoc/first/quarantine.jsonl")
    listed.parent.mkdir(parents=True, exist_ok=True)
    listed.write_text('{"key": "a"}\n')
    loop.error = RunStopped("too many", [{"key": "b"}, {"key": "ü"}])
    assert train.run(job(configs), EXPLICIT) == 2
    told = capsys.readouterr().err
    assert "error: too many (runs/adhoc/first/quarantine.jsonl names the bad samples)\n" in told
    assert listed.read_text() == '{"key": "a"}\n{"key": "b"}\n{"key": "ü"}\n'
    assert Path(f"runs/adhoc/first/error-rank{rank}.txt").exists()


def test_bad_samples_alone_are_no_training_that_a_change_would_spoil(configs: Configs, loop: Any) -> None:
    state.write_start(job(configs))
    Path("runs/adhoc/first/quarantine.jsonl").write_text("{}\n")
    assert train.run(job(configs, "seed=1"), EXPLICIT) == 0


def test_what_is_broken_keeps_its_traceback(configs: Configs, loop: Any) -> None:
    loop.error = RuntimeError("out of memory")
    with pytest.raises(RuntimeError, match="out of memory"):
        train.run(job(configs), EXPLICIT)
    assert not Path("runs/adhoc/first/outcome.json").exists()


def test_a_missing_parent_is_refused_before_the_loop(
    configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.run(resolve(configs, parse_tokens(["stage=first", "parent=nowhere"])), EXPLICIT) == 2
    assert "parents.model=nowhere: does not exist" in capsys.readouterr().err
    assert loop.trained == []


def test_two_processes_never_train_one_run(configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    one = job(configs)
    with state.locked(one.run_dir):
        # flock belongs to the open file, so a second one in this process is refused like another process's
        assert train.run(one, EXPLICIT) == 2
    assert "another process is training there" in capsys.readouterr().err
    assert train.run(one, EXPLICIT) == 0


def test_a_shut_gate_has_its_own_exit_code_and_is_asked_again(
    configs: Configs, loop: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    loop.metrics = {"read/greedy": 0.3}
    gated = resolve(configs, parse_tokens(["recipe=two", "stage=first"]))
    assert train.run(gated, EXPLICIT) == train.EXIT_GATE
    assert "the gate after first is shut: read/greedy is 0.3, below 0.5" in capsys.readouterr().err
    assert train.run(gated, EXPLICIT) == train.EXIT_GATE, "a finished run does not open it"
    assert len(loop.trained) == 1
    assert gated.gate is not None
    gated.gate.min = 0.2
    assert train.run(gated, EXPLICIT) == 0
    events = [json.loads(line) for line in Path("runs/two/first/events.jsonl").read_text().splitlines()]
    gates = [(event["metric"], event["floor"], event["value"], event["passed"]) for event in events]
    assert gates == [("read/greedy", 0.5, 0.3, False)] * 2 + [("read/greedy", 0.2, 0.3, True)]


@pytest.fixture
def second_rank(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """This process as rank 1 of 2; what rank 0 says is put into the dict."""
    said: dict[str, Any] = {}
    monkeypatch.setattr(dist, "world_size", lambda: 2)
    monkeypatch.setattr(dist, "rank", lambda: 1)
    monkeypatch.setattr(dist, "is_main", lambda: False)
    monkeypatch.setattr(dist, "init", lambda **_: None)
    monkeypatch.setattr(dist, "broadcast_json", lambda value: said)
    return said


def test_other_ranks_do_what_rank_0_decided_and_write_nothing(
    configs: Configs, loop: Any, second_rank: dict[str, Any]
) -> None:
    second_rank |= {"train": True}
    assert train.run(job(configs), EXPLICIT) == 0
    assert loop.trained == ["first"]
    assert not Path("runs/adhoc/first/lineage.json").exists() and not Path("runs/adhoc/first/outcome.json").exists()
    second_rank |= {"train": False}
    assert train.run(job(configs), EXPLICIT) == 0
    assert loop.trained == ["first"]


def test_other_ranks_leave_when_rank_0_refuses(
    configs: Configs, loop: Any, second_rank: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    second_rank |= {"error": "another process is training there"}
    assert train.run(job(configs), EXPLICIT) == 2
    assert loop.trained == [] and capsys.readouterr().err == "", "rank 0 says it for all"


def main(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-X", "importtime", "-m", "sail_train.train", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--help"], 0, "example: torchrun"),
        (["stage=frist"], 2, "error: stage='frist': there is no such stage"),
        (["stage=align", "trian.max_steps=2"], 2, "error: trian: unknown key; did you mean 'train'"),
        (["stage=align", "parent=nowhere"], 2, "error: parents.model=nowhere: does not exist"),
        (["--config-dir", "nowhere", "stage=align"], 2, "error: --config-dir nowhere"),
    ],
)
def test_help_and_mistakes_are_answered_without_torch(arguments: list[str], code: int, told: str) -> None:
    done = main(*arguments)
    assert done.returncode == code
    assert told in done.stdout + done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if line.startswith("import time:")}
    assert "omegaconf" in imported and not {"torch", "transformers", "deepspeed"} & imported
