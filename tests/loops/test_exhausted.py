"""A run whose data ends before `train.max_steps` is finished: what it leaves, resumed and started again.

Two ranks do the same in test_parallel.py.
"""

from __future__ import annotations

import io
import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from loops_tiny import (
    EXPERTS,
    MIXED,
    RL,
    SAMPLE,
    SUPERVISED,
    comparable,
    events,
    in_a_box,
    lines,
    losses,
    start,
    weights,
    write_tar,
)
from PIL import Image

from sail_train import train
from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.prompts import PromptStream
from sail_train.data.writer import files_of

ENDED = (
    *SUPERVISED, *MIXED, *(f"data.sources.{name}.epochs=1" for name in ("read", "frames", "text")),
    "data.seq_length=256", "data.max_patches=512", "schedule.name=constant",
    "train.save_every=4", "train.keep=99", "train.valid_every=2", "valid.text.shards=${data_dir}/eval/text_plain/*.tar",
    "eval.modes={read: [greedy]}",
)  # fmt: skip
ENDLESS = "train.max_steps=5000"


@pytest.fixture(scope="module")
def ended(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("ended") / "run"
    assert start(data, *ENDED, ENDLESS, f"run_dir={run}") == 0
    return run


def same_weights(one: Path, other: Path) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], weight) for name, weight in theirs.items())


def last_checkpoint(run: Path) -> str:
    return max(path.name for path in (run / "checkpoints").iterdir())


def test_a_run_whose_data_ends_is_a_run_of_as_many_steps(ended: Path, data: Path, tmp_path: Path) -> None:
    """Checkpoint, model, validation and evaluation are those of a run that was asked for these steps."""
    steps, asked = len(losses(ended)), tmp_path / "asked"
    assert 8 < steps < 5000
    assert start(data, *ENDED, f"train.max_steps={steps}", f"run_dir={asked}") == 0
    assert comparable(ended) == comparable(asked) and same_weights(ended, asked)
    assert last_checkpoint(ended) == last_checkpoint(asked) == f"step-{steps:08d}"
    assert (ended / "evaluation.json").read_bytes() == (asked / "evaluation.json").read_bytes()
    assert [line["step"] for line in lines(ended) if "valid/loss" in line] == list(range(2, steps + 1, 2))
    for run in (ended, asked):
        outcome = json.loads((run / "outcome.json").read_text())
        assert (outcome["status"], outcome["steps"]) == ("finished", steps) and outcome["model_hash"]
    told = events(ended, "data_exhausted")
    assert [(event["step"], event["max_steps"]) for event in told] == [(steps, 5000)]
    assert not events(asked, "data_exhausted"), "the data ended, but not before max_steps"


def test_it_is_not_trained_again(ended: Path, data: Path) -> None:
    before = {path.name: path.read_bytes() for path in ended.glob("*.jsonl")}
    assert start(data, *ENDED, ENDLESS, f"run_dir={ended}") == 0
    assert {path.name: path.read_bytes() for path in ended.glob("*.jsonl")} == before


@pytest.mark.parametrize("kept", ["the last checkpoint", "an earlier one"])
def test_resumed_it_ends_the_same(ended: Path, data: Path, tmp_path: Path, kept: str) -> None:
    """As after a kill between the last checkpoint and the outcome, or before the last checkpoint."""
    run = shutil.copytree(ended, tmp_path / "run")
    (run / "outcome.json").unlink()
    shutil.rmtree(run / "model")
    if kept == "an earlier one":
        for later in sorted((run / "checkpoints").iterdir())[1:]:
            shutil.rmtree(later)
    assert start(data, *ENDED, ENDLESS, f"run_dir={run}") == 0
    assert comparable(run) == comparable(ended) and same_weights(run, ended)
    assert last_checkpoint(run) == last_checkpoint(ended)
    (resume,) = events(run, "resume")
    assert (resume["checkpoint"] == "step-00000004") == (kept == "an earlier one")
    first, again = events(run, "data_exhausted")
    assert first["step"] == again["step"] and (run / "outcome.json").exists()


def test_the_log_says_where_the_schedule_was_cut_off(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a mixture of experts, whose balance stands around the work."""
    monkeypatch.setattr(logging.getLogger("sail_train"), "propagate", True)
    curve = ("schedule.name=linear", "schedule.warmup_steps=0", "schedule.min_ratio=0.1", "train.max_steps=40")
    few = ("data.sources.boxed.shards=${data_dir}/boxed/*.tar", "data.sources.boxed.epochs=1", "train.valid_every=0")
    with caplog.at_level("WARNING", logger="sail_train"):
        assert start(data, *SUPERVISED, *EXPERTS, *few, *curve, f"run_dir={tmp_path / 'run'}") == 0
    steps = len(losses(tmp_path / "run"))
    assert 0 < steps < 40
    left = 100 * (1 - 0.9 * steps / 40)
    (told,) = [record.getMessage() for record in caplog.records if "data ended" in record.getMessage()]
    assert f"the data ended after {steps} of 40 steps" in told
    assert f"cut off at {left:.0f}% of the peak and would have ended at 10%" in told
    assert f"Set train.max_steps={steps} " in told and "epochs or max_tokens" in told


def picture(*, broken: bool) -> bytes:
    file = io.BytesIO()
    Image.effect_noise((112, 112), 90).save(file, format="PNG")
    return file.getvalue()[:-2000] if broken else file.getvalue()


def one_to_a_row(folder: Path, broken: list[bool]) -> tuple[str, ...]:
    """Tokens of a stage with one stream, a row a step, and a sample a row; of broken ones the pixels fail."""
    words = " ".join(str(number) for number in range(60))
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Read"}]}
    conversation = json.dumps({"messages": [asked, {"role": "assistant", "content": words}]}).encode()
    files = []
    for number, one in enumerate(broken):
        files += [(f"{number}.0.png", picture(broken=one)), (f"{number}.json", conversation)]
    write_tar(folder / "few.tar", files)
    return (
        *SUPERVISED, f"data.sources.few.shards={folder}/few.tar", "data.sources.few.epochs=1",
        "data.sources.few.max_bad=99", "data.num_streams=1", "data.batch_rows=1", "data.micro_batch=1",
        "data.shuffle_buffer=1", "data.pack_buffer=1", "data.seq_length=256", "train.max_steps=99",
    )  # fmt: skip


@pytest.mark.parametrize("save_every", [1, 0])
def test_samples_that_fail_after_the_last_step_are_written_down(data: Path, tmp_path: Path, save_every: int) -> None:
    """And a step whose samples all fail on the way is none; each is listed once, after a resume too."""
    run = tmp_path / "run"
    tokens = one_to_a_row(tmp_path, [False, True, False, False, True, True])
    tokens = (*tokens, f"train.save_every={save_every}", f"run_dir={run}")
    assert start(data, *tokens) == 0
    bad = [record["key"] for record in lines(run, "quarantine")]
    assert bad == ["1", "4", "5"] and [line["step"] for line in lines(run)] == [1, 2, 3]
    assert [(event["step"], event["max_steps"]) for event in events(run, "data_exhausted")] == [(3, 99)]
    (run / "outcome.json").unlink()
    assert start(data, *tokens) == 0
    assert [record["key"] for record in lines(run, "quarantine")] == bad and len(lines(run)) == 3
    assert len(events(run, "data_exhausted")) == 2


def test_data_that_ends_before_the_first_step_is_an_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert start(data, *one_to_a_row(tmp_path, [True, True]), f"run_dir={run}") == train.EXIT_USAGE
    told = capsys.readouterr().err
    assert "error: the data ended before the first step: all samples of data.sources are left out, bad" in told
    assert "give a source more of them, or other shards" in told
    assert [record["key"] for record in lines(run, "quarantine")] == ["0", "1"]
    assert not events(run, "data_exhausted") and not (run / "outcome.json").exists()
    assert not list((run / "checkpoints").glob("*")) and not (run / "model").exists()


def test_rl_ends_with_the_last_batch_that_its_prompts_suffice_for(data: Path, trained: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tokens = (*RL, f"parent={trained}", "data.sources.rl.epochs=1", "train.max_steps=99", "rl.mini_batches=2")
    assert start(data, *tokens, f"run_dir={run}") == 0
    steps = len(losses(run))
    assert 2 < steps < 99 and (run / "model").is_dir() and last_checkpoint(run) == f"step-{steps:08d}"
    assert [(event["step"], event["max_steps"]) for event in events(run, "data_exhausted")] == [(steps, 99)]
    (run / "outcome.json").unlink()
    before = comparable(run)
    assert start(data, *tokens, f"run_dir={run}") == 0
    assert comparable(run) == before and len(events(run, "data_exhausted")) == 2


def test_fewer_prompts_than_the_first_batch_asks_are_an_error(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = (f"parent={trained}", "data.sources.rl.epochs=1.0e-9")
    told = "error: all prompts are exhausted; give a source more epochs, ask for fewer prompts or steps, or mend"
    for stage in (RL, SAMPLE):
        assert start(data, *stage, *few, f"run_dir={tmp_path / stage[0]}") == train.EXIT_USAGE
        assert told in capsys.readouterr().err


def prompts(data: Path, folder: Path, good: str) -> tuple[tuple[str, ...], list[str]]:
    """Tokens of a source of one stream in order, a sample for each of `good`, and the keys of the bad ones ("-")."""
    samples = list(held_out({"boxed": SourceConfig(shards=f"{data}/boxed/*.tar")}))
    files = []
    for number, kind in enumerate(good):
        sample = samples[number % 2]
        content = {"json": b'{"messages": 3}'} if kind == "-" else files_of(in_a_box(sample))
        files += [
            (f"{number:02d}.{name}", text.encode() if isinstance(text, str) else text)
            for name, text in content.items()
            if not name.startswith("__")
        ]
    write_tar(folder / "few.tar", files)
    tokens = (
        f"data.sources.rl.shards={folder}/few.tar", "data.sources.rl.epochs=1", "data.sources.rl.max_bad=99",
        "data.num_streams=1", "data.shuffle_buffer=1",
    )  # fmt: skip
    return tokens, [f"{number:02d}" for number, kind in enumerate(good) if kind == "-"]


@pytest.mark.parametrize("stage", [RL, SAMPLE])
@pytest.mark.parametrize("good", ["+--+---", "---"])
def test_bad_prompts_that_leave_too_few_for_the_first_batch_are_listed(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], stage: tuple[str, ...], good: str
) -> None:
    """Started again, too: nothing was saved, and each is still listed once."""
    run = tmp_path / "run"
    tokens, bad = prompts(data, tmp_path, good)
    for _ in range(2):
        assert start(data, *stage, *tokens, f"parent={trained}", f"run_dir={run}") == train.EXIT_USAGE
        told = capsys.readouterr().err
        assert "error: all prompts are exhausted;" in told and f"({run / 'quarantine.jsonl'} names the bad" in told
        assert [record["key"] for record in lines(run, "quarantine")] == bad


@pytest.mark.parametrize("save_every", [1, 0])
def test_bad_prompts_after_the_last_batch_are_listed_once(
    data: Path, trained: Path, tmp_path: Path, save_every: int
) -> None:
    """Those of a batch that was not completed and those after the last prompt, after a resume too."""
    run = tmp_path / "run"
    few, bad = prompts(data, tmp_path, "+-++++++" + "--+-+--")
    plain = ("rl.dynamic_sampling.enable=false", "train.max_steps=99", "train.keep=99")
    tokens = (*RL, *few, *plain, f"train.save_every={save_every}", f"parent={trained}", f"run_dir={run}")
    assert start(data, *tokens) == 0
    before = comparable(run)
    assert [record["key"] for record in lines(run, "quarantine")] == bad and before["metrics"]
    for left in (99, 1):
        (run / "outcome.json").unlink()
        for later in sorted((run / "checkpoints").iterdir())[left:]:
            shutil.rmtree(later)
        assert start(data, *tokens) == 0
        assert comparable(run) == before
    assert len(events(run, "data_exhausted")) == 3


def test_a_run_at_the_end_of_its_prompts_asks_for_more_only_of_a_changed_mixture(
    data: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other ranks than ended there stand elsewhere, and might find prompts; a further epoch lists the bad ones anew."""
    run = tmp_path / "run"
    few, bad = prompts(data, tmp_path, "+-+++" + "--+-")
    plain = ("rl.dynamic_sampling.enable=false", "train.max_steps=99")
    tokens = (*RL, *few, *plain, f"parent={trained}", f"run_dir={run}")
    assert start(data, *tokens) == 0
    (run / "outcome.json").unlink()
    with monkeypatch.context() as patch:
        patch.setattr(PromptStream, "__next__", lambda stream: pytest.fail("prompts were asked for"))
        assert start(data, *tokens) == 0
    assert len(losses(run)) == 1 and len(events(run, "data_exhausted")) == 2
    (run / "outcome.json").unlink()
    assert start(data, *tokens, "data.sources.rl.epochs=2", "data.allow_mix_change=true") == 0
    assert len(losses(run)) == 2 and len(events(run, "data_exhausted")) == 3
    assert [record["key"] for record in lines(run, "quarantine")] == bad * 2
