"""The scripts: they parse, and a batch job that is asked to save goes back into the queue."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = [path for path in [*ROOT.glob("scripts/**/*"), ROOT / ".ci" / "run"] if path.is_file()]
SCRIPTS = sorted(path for path in FILES if path.suffix not in (".py", ".pyc"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_parse_and_stop_at_errors(script: Path) -> None:
    done = subprocess.run(["bash", "-n", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = script.read_text()
    assert text.startswith("#!/usr/bin/env bash\n") and "\nset -euo pipefail\n" in text


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_scripts_pass_shellcheck(script: Path) -> None:
    # SC2317: older versions take a function that only a trap calls for unreachable
    command = ["shellcheck", "--shell=bash", "--exclude=SC2317", str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", ["setup", "demo", "test", "slurm/ranks"])
def test_what_is_called_by_name_is_executable(name: str) -> None:
    assert os.access(ROOT / "scripts" / name, os.X_OK)


@pytest.fixture
def cluster(tmp_path: Path) -> dict[str, str]:
    """An environment as in a batch job: Slurm's commands write down how they are called, and act it out."""
    place = tmp_path / "checkout"
    (place / "scripts" / "slurm").mkdir(parents=True)
    for name in ("ranks", "train.sbatch", "recipe.sbatch"):
        shutil.copy(ROOT / "scripts" / "slurm" / name, place / "scripts" / "slurm" / name)
    commands = {
        # the step: saves and fails when it is asked to, else ends by itself
        "srun": 'echo $$ > step; trap "echo saved >> calls; exit 75" USR1; echo "srun $*" >> calls\n'
        'for i in $(seq "${STEP_TENTHS:-1}"); do sleep 0.1; done; exit "${STEP_CODE:-0}"',
        "scancel": 'echo "scancel $*" >> calls; kill -USR1 "$(cat step)"',
        "scontrol": 'echo "scontrol $*" >> calls',
        "python": 'echo "python $* nproc=$SAIL_NPROC" >> calls; exec srun',
    }
    for name, body in commands.items():
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    return os.environ | {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(place),
        "SLURM_JOB_ID": "7",
        "SLURM_GPUS_ON_NODE": "4",
        "SAIL_PYTHON": str(tmp_path / "bin" / "python"),
    }


def submit(cluster: dict[str, str], name: str, *, save: bool = False, **step: str) -> tuple[int, list[str]]:
    """(exit code, calls of Slurm's commands) of a batch job; `save`: it is told that its time is nearly up."""
    place = Path(cluster["SLURM_SUBMIT_DIR"])
    process = subprocess.Popen(
        ["bash", str(ROOT / "scripts" / "slurm" / name), "recipe=tiny", "train.max_steps=2"],
        env=cluster | step, cwd=place.parent, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    if save:
        deadline = time.monotonic() + 20
        while not (place / "calls").exists() or "srun" not in (place / "calls").read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGUSR1)
    code = process.wait(timeout=60)
    return code, (place / "calls").read_text().splitlines()


def test_a_job_starts_the_ranks_with_its_overrides(cluster: dict[str, str]) -> None:
    code, calls = submit(cluster, "train.sbatch")
    assert code == 0
    assert calls == ["srun --ntasks-per-node=1 --kill-on-bad-exit=1 scripts/slurm/ranks recipe=tiny train.max_steps=2"]


def test_a_recipe_job_starts_the_runner_with_its_overrides(cluster: dict[str, str]) -> None:
    code, calls = submit(cluster, "recipe.sbatch")
    assert code == 0
    assert calls[0] == "python -m sail_train.cli run launcher=srun recipe=tiny train.max_steps=2 nproc=4"


@pytest.mark.parametrize("name", ["train.sbatch", "recipe.sbatch"])
def test_a_job_that_is_asked_to_save_goes_back_into_the_queue(cluster: dict[str, str], name: str) -> None:
    code, calls = submit(cluster, name, save=True, STEP_TENTHS="200")
    assert code == 0
    assert calls[-2:] == ["saved", "scontrol requeue 7"]


@pytest.mark.parametrize("name", ["train.sbatch", "recipe.sbatch"])
def test_a_job_that_fails_does_not(cluster: dict[str, str], name: str) -> None:
    code, calls = submit(cluster, name, STEP_CODE="3")
    assert code == 3
    assert not [call for call in calls if call.startswith("scontrol")]


@pytest.mark.parametrize("name", ["train.sbatch", "recipe.sbatch"])
def test_a_job_submitted_from_elsewhere_says_so(cluster: dict[str, str], name: str, tmp_path: Path) -> None:
    environment = cluster | {"SLURM_SUBMIT_DIR": str(tmp_path)}
    script = str(ROOT / "scripts" / "slurm" / name)
    done = subprocess.run(["bash", script], env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and "submit from the root of the checkout" in done.stderr


def test_setup_names_what_is_missing(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": "python-that-is-not-there"}
    done = subprocess.run(["bash", str(ROOT / "scripts" / "setup")], env=environment, capture_output=True, text=True)
    assert done.returncode == 1 and "python-that-is-not-there is not there" in done.stderr
