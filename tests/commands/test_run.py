"""`sail-train run` for real: two ranks under torchrun, interrupted, run again, and followed by a stage on one rank."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

STAGE = """# @package _global_
loop: supervised
data_dir: {data}
model:
  vision: {{hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1}}
  language: {{hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1,
             num_key_value_heads: 1, head_dim: 8}}
data: {{sources: {{colour: {{shards: '${{data_dir}}/eval/*.tar'}}}}, num_streams: 2, batch_rows: 2, micro_batch: 1,
       seq_length: 64, max_patches: 64, prefetch: 0}}
optim: {{lr: {{language: 1.0e-3}}}}
train: {{max_steps: 300, save_every: 0, log_every: 100}}
eval: {{suites: {{colour: {{shards: '${{data_dir}}/eval/*.tar'}}}}, modes: {{colour: [greedy]}}, max_new_tokens: 4}}
"""
RECIPE = """
entries:
  - {name: wide, stage: colours, overrides: {launcher.nproc: 2}}
  - {name: narrow, stage: colours, parents: {model: wide}, overrides: {train.max_steps: 2}}
"""


@pytest.fixture
def own(trained: Path, tmp_path: Path) -> Path:
    """A folder of configs of one's own, and the shards they train on."""
    for name, text in {"stage/colours": STAGE.format(data=trained.parent), "recipe/colours": RECIPE}.items():
        path = tmp_path / "own" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    return tmp_path / "own"


def start(own: Path) -> subprocess.Popen[str]:
    # code that is edited while this runs is not what is tested
    options = ["--ignore-code", "--config-dir", str(own)]
    command = [sys.executable, "-m", "sail_train.cli", "run", "recipe=colours", *options]
    # a tracker's or a coordinator's variables of another test must not reach torchrun
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    return subprocess.Popen(
        command, cwd=own.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    told, _ = process.communicate(timeout=300)
    return process.returncode, told


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def test_ctrl_c_saves_on_two_ranks_and_the_same_command_goes_on(own: Path) -> None:
    runs = own.parent / "runs" / "colours"
    process = start(own)
    while len(lines(runs / "wide" / "metrics.jsonl")) < 3:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    code, told = finish(process)
    assert code == 75, told
    assert json.loads((runs / "wide" / "outcome.json").read_text())["status"] == "stopped"
    assert "stopped and saved: the same command goes on from there" in told
    reached = len(lines(runs / "wide" / "metrics.jsonl"))
    assert 3 <= reached < 300

    code, told = finish(start(own))
    assert code == 0, told
    assert [line["step"] for line in lines(runs / "wide" / "metrics.jsonl")] == list(range(1, 301))
    events = lines(runs / "wide" / "events.jsonl")
    assert [event["world_size"] for event in events if event["event"] in ("start", "resume")] == [2, 2]
    summary = json.loads((runs / "summary.json").read_text())
    assert [(entry["stage"], entry["status"], entry["steps"]) for entry in summary] == [
        ("wide", "finished", 300),
        ("narrow", "finished", 2),
    ]
    written = yaml.safe_load((runs / "narrow" / "config.yaml").read_text())
    assert written["parents"] == {"model": "runs/colours/wide"}
    lineage = json.loads((runs / "narrow" / "lineage.json").read_text())
    outcome = json.loads((runs / "wide" / "outcome.json").read_text())
    assert lineage["parents"]["model"]["hash"] == outcome["model_hash"]
    assert (runs / "report.html").stat().st_size > 1000
