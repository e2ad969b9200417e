"""The benchmarks of the data stream: they run, take turns fairly, and count what all processes cost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).resolve().parents[1] / "scripts" / "bench"


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import data_rounds

    return data_rounds


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    import data_table

    return data_table


def test_every_benchmark_runs_at_toy_size(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCH / "data.py"), "all", "--toy", "--no-peers", "--data", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    for name in ("reading", "decoding", "packing", "balance", "resume"):
        assert f"## {name}\n\n" in done.stdout
    assert "| ours, checksums |" in done.stdout and "| sail_vl2_2b | native | step |" in done.stdout


PLAYER = """
import subprocess, sys, time
from data_rounds import Clock, serve

def task(name, log, child=False):
    busy = "while True: pass"
    if child:
        subprocess.Popen([sys.executable, "-c", busy], start_new_session=True)
    def run():
        with open(log, "a") as file:
            file.write(name)
        clock = Clock()
        time.sleep(0.5 if child else 0)
        return clock.told(1)
    return run

serve({"task": task})
"""


@pytest.fixture
def player(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PYTHONPATH", str(BENCH))
    path = tmp_path / "player.py"
    path.write_text(PLAYER)
    return str(path)


def test_contenders_take_turns_there_and_back(rounds: ModuleType, player: str, tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    contenders = [
        rounds.Contender(name=name, python=sys.executable, script=player, task="task",
                         options={"name": name, "log": log})
        for name in "AB"
    ]  # fmt: skip
    told = rounds.play(contenders, rounds=3)
    assert Path(log).read_text() == "ABBAABBA"
    assert [len(each) for each in told.values()] == [3, 3], "the round of warm-up is dropped"


def test_processes_of_another_session_are_counted_and_stopped(rounds: ModuleType, player: str, tmp_path: Path) -> None:
    """Our own workers are such: left out, they seemed to cost nothing and worked on while the peers were timed."""
    options = {"name": "A", "log": str(tmp_path / "log"), "child": True}
    running = rounds.Running(
        rounds.Contender(name="A", python=sys.executable, script=player, task="task", options=options)
    )
    try:
        (child,) = rounds.descendants(running._process.pid)
        assert os.getsid(child) != os.getsid(running._process.pid)
        assert running.turn()["cpu"] > 0.05, "the child was busy"
        before = rounds._processes()[child]
        time.sleep(0.3)
        after = rounds._processes()[child]
        assert after[0] == "T" and before[11] == after[11], "it rests while it is not its turn"
    finally:
        running.close()
    assert child not in rounds._processes() or rounds._processes()[child][0] == "Z"


def test_a_contender_that_fails_says_why(rounds: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "fails.py"
    path.write_text("raise SystemExit('no such peer')")
    with pytest.raises(RuntimeError, match="no such peer"):
        rounds.play([rounds.Contender(name="A", python=sys.executable, script=str(path), task="task")], rounds=1)


def test_ratios_are_taken_round_by_round(table: ModuleType) -> None:
    ours = [{"samples": 10, "cpu": 1.0}, {"samples": 10, "cpu": 2.0}]
    peer = [{"samples": 10, "cpu": 3.0}, {"samples": 10, "cpu": 6.0}]
    assert table.ratios(ours, peer, "cpu") == [3.0, 3.0], "the machine was half as fast in the second"
    assert table.spread([1.0, 2.0, 3.0, 4.0, 5.0]) == "3.0 ± 2.0"
    assert "| peer | 450000.0 ± 150000.0 | 2 ± 1 | 3.00 ± 0.00 x |" in table.comparison(
        {"ours": ours, "peer": peer}, "ours", "cpu"
    )


def test_the_peers_image_processor_makes_the_patches_that_ours_does() -> None:
    """Decoding is compared on like work: the same size of image, the same patches in the same order."""
    import io

    import numpy as np
    from PIL import Image
    from transformers import Qwen2VLImageProcessorPil

    from sail_train.processor.images import open_image
    from sail_train.processor.patches import whole
    from sail_train.visual import ImageSpec

    buffer, pixels = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    Image.fromarray(pixels).resize((500, 375)).save(buffer, "PNG")
    image, spec = open_image(buffer.getvalue()), ImageSpec(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    theirs = Qwen2VLImageProcessorPil(temporal_patch_size=1)
    made = theirs(images=image, return_tensors="pt")
    (grid,) = spec.grids(375, 500)
    assert made["image_grid_thw"][0].tolist() == [1, *grid]
    mean, std = (np.repeat(np.array(values), 14 * 14) for values in (theirs.image_mean, theirs.image_std))
    ours = (whole(image, grid, spec) / 255 - mean) / std
    assert np.abs(made["pixel_values"].numpy() - ours).max() < 1e-4
