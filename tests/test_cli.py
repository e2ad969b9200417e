"""The command line: every command helps, every mistake is told in a line, and neither waits for torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sail_train import cli
from sail_train.commands import COMMANDS
from sail_train.types import RunStopped

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"torch", "transformers", "deepspeed", "datasets", "sklearn", "wandb"}


def sail_train(*arguments: str) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """The finished process, and the modules that it imported."""
    command = [sys.executable, "-X", "importtime", "-m", "sail_train.cli", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return done, {line.rpartition("|")[2].strip() for line in lines}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps_with_an_example_and_without_torch(command: str) -> None:
    done, imported = sail_train(*command.split(), "--help")
    assert done.returncode == 0
    assert "example" in done.stdout and f"sail-train {command}" in done.stdout
    assert "argparse" in imported and not HEAVY & imported


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("rnu recipe=tiny", "error: 'rnu' is no command; did you mean 'run'?"),
        ("data synht", "error: 'synht' is no command of data; did you mean 'synth'?"),
        ("run recipe=tny", "error: recipe='tny': there is no such recipe; did you mean 'tiny'?"),
        ("run recipe=tiny trian.max_steps=2", "error: trian: unknown key; did you mean 'train'?"),
        ("run recipe=tiny stage=alig", "error: stage='alig': recipe tiny has no such entry; did you mean 'align'?"),
        ("run recipe=tiny --until alig", "did you mean 'align'?"),
        ("run stage=align --until align", "error: --until needs recipe=NAME"),
        ("run stage=align launcher.nproc=2", "error: a stage without a recipe runs as one rank"),
        ("run stage=align parent=nowhere", "error: parents.model=nowhere: does not exist"),
        ("run", "error: which stage?"),
        ("run recipe=tiny --agian", "unrecognized arguments: --agian"),
        ("config recipe=tiny stage=align engine=zreo2", "error: engine='zreo2': there is no such engine"),
        ("eval nowhere", "error: parents.model=nowhere: does not exist"),
        ("chat nowhere question", "error: parents.model=nowhere: does not exist"),
        ("chat nowhere question --temperature -1", "--temperature -1.0 must be 0"),
        ("chat nowhere question --max-new-tokens 0", "--max-new-tokens 0 must be at least 1"),
        ("serve nowhere", "error: parents.model=nowhere: does not exist"),
        ("serve nowhere --port 65536", "--port 65536 must be from 0 to 65535"),
        ("export nowhere out", "error: parents.model=nowhere: does not exist"),
        ("report nowhere", "error: nowhere is no directory"),
    ],
)
def test_every_mistake_is_answered_in_a_line_without_torch(line: str, told: str) -> None:
    done, imported = sail_train(*line.split())
    assert done.returncode == 2
    assert told in done.stderr and "Traceback" not in done.stderr
    assert not HEAVY & imported


def test_options_may_stand_between_values(capsys: pytest.CaptureFixture[str]) -> None:
    done, _ = sail_train("config", "stage=align", "--ignore-code", "train.max_steps=2")
    assert done.returncode == 0 and "max_steps: 2" in done.stdout


def test_no_command_is_a_mistake_and_help_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(name in told for name in COMMANDS)


@pytest.mark.parametrize(("words", "code"), [(["data"], 2), (["data", "--help"], 0)])
def test_a_group_lists_its_commands(words: list[str], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == code
    told = capsys.readouterr().out
    assert "data synth" in told and "\n  report" not in told


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_leads_somewhere(name: str) -> None:
    assert callable(cli.load(name))


def test_ctrl_c_is_told_and_has_its_own_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(arguments: list[str]) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "load", lambda name: interrupted)
    assert cli.main(["report", "x"]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_what_its_user_can_mend_is_told_in_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(arguments: list[str]) -> int:
        raise RunStopped("source 's': 3 of 100 samples are bad")

    monkeypatch.setattr(cli, "load", lambda name: stopped)
    assert cli.main(["data", "trace"]) == 2
    assert capsys.readouterr().err == "error: source 's': 3 of 100 samples are bad\n"


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m sail_train.cli config recipe=tiny stage=align | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.startswith("# align") and "BrokenPipe" not in done.stderr


def test_the_command_is_installed_as_the_project_says() -> None:
    import tomllib

    project: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"sail-train": "sail_train.cli:main"}
