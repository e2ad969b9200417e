"""What bad input gets, through the command's own path: a clear message, or a skip that is counted and written down."""

from __future__ import annotations

import io
import json
import math
import pickle
import re
import shutil
import socket
import struct
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loops_tiny import (
    MIXED,
    RL,
    SAMPLE,
    SUPERVISED,
    comparable,
    events,
    in_a_box,
    lines,
    losses,
    make_job,
    start,
    weights,
    write_tar,
)
from PIL import Image

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.stream import Stream
from sail_train.data.writer import files_of
from sail_train.loops.setup import make_processor

Files = list[tuple[str, bytes]]


def record(*, images: int = 0, question: str = "What is 1 + 1?", **more: Any) -> bytes:
    """A sample's .json that RL could ask as well."""
    content = [{"type": "image"}] * images + [{"type": "text", "text": question}]
    messages = [{"role": "user", "content": content}, {"role": "assistant", "content": "\\boxed{0}"}]
    return json.dumps({"messages": messages, "answer": "0", "verifier": "number", **more}).encode()


def picture() -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 100,000 x 100,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(99))) + chunk(b"IEND", b"")
    )


class Trap:
    """What a pickle does to whoever opens it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def hostile(folder: Path) -> dict[str, tuple[str, Files]]:
    """By key: the reason that should be written down, and the sample's files."""
    return {
        "cut": ("image_undecodable", [("cut.png", picture()[:-300]), ("cut.json", record(images=1))]),
        "text": ("image_unreadable", [("text.jpg", b"no image at all"), ("text.json", record(images=1))]),
        "bomb": ("image_too_large", [("bomb.png", bomb()), ("bomb.json", record(images=1))]),
        "trap": (
            "refused_file",
            [("trap.pickle", pickle.dumps(Trap(folder / "sprung"))), ("trap.json", record())],
        ),
        "list": ("bad_json", [("list.json", b"[1, 2]")]),
        "half": ("bad_json", [("half.json", record()[:40])]),
        "mute": ("bad_messages", [("mute.json", b'{"messages": "hello"}')]),
        "two": ("image_count", [("two.png", picture()), ("two.json", record(images=2))]),
        "none": ("image_count", [("none.png", picture()), ("none.json", record())]),
        "long": ("too_long", [("long.json", record(question="1 + " * 400))]),
    }


@pytest.fixture(scope="module")
def shards(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of one shard: ten good samples, and among them every bad one."""
    folder = tmp_path_factory.mktemp("hostile")
    good = [*held_out({"boxed": SourceConfig(shards=f"{data}/boxed/*.tar")}, 10)]
    files: Files = []
    for sample, (_, bad) in zip(good, hostile(folder).values(), strict=True):
        made = files_of(in_a_box(sample))
        files += [(f"{sample.key}.{kind}", content) for kind, content in made.items() if isinstance(content, bytes)]
        files += bad
    write_tar(folder / "hostile.tar", files)
    return folder


def source(folder: Path, name: str = "hostile", **more: Any) -> tuple[str, ...]:
    """Tokens of a mixture of this one source, read in one stream."""
    values = {"shards": f"{folder}/*.tar", "max_bad": 1000, **more}
    rows = ("data.num_streams=1", "data.batch_rows=2", "data.shuffle_buffer=2", "data.pack_buffer=2")
    return (*rows, *(f"data.sources.{name}.{key}={value}" for key, value in values.items()))


def refused(data: Path, capsys: pytest.CaptureFixture[str], *tokens: str) -> str:
    """What the command says that will not do it, in one line."""
    capsys.readouterr()
    assert start(data, *tokens) == 2
    (told,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return told.removeprefix("error: ")


def assert_quarantined(run: Path, folder: Path) -> None:
    """Every bad sample, under its reason, and nothing else."""
    found = {(one["key"], one["reason"]) for one in lines(run, "quarantine")}
    assert found == {(key, reason) for key, (reason, _) in hostile(folder).items()}
    for one in lines(run, "quarantine"):
        assert one["source"] == "hostile" and one["shard"] == f"{folder}/hostile.tar" and one["detail"]
    assert not (folder / "sprung").exists(), "a pickle was opened"


def test_training_skips_every_kind_of_bad_sample_and_writes_it_down(data: Path, shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert start(data, *SUPERVISED, *source(shards), "train.max_steps=8", f"run_dir={run}") == 0
    assert_quarantined(run, shards)
    assert len(losses(run)) == 8 and all(math.isfinite(loss) for loss in losses(run))


def test_rollouts_skip_every_kind_of_bad_sample_and_write_it_down(
    data: Path, trained: Path, shards: Path, tmp_path: Path
) -> None:
    run, rows = tmp_path / "run", source(shards)
    whole = (*RL, "~data.sources.rl", *rows, "data.batch_rows=4", "rl.dynamic_sampling.enable=false")
    assert start(data, *whole, "train.max_steps=3", f"parent={trained}", f"run_dir={run}") == 0
    assert_quarantined(run, shards)


def test_sampling_skips_every_kind_of_bad_sample_and_writes_it_down(
    data: Path, trained: Path, shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    whole = (*SAMPLE, "~data.sources.rl", *source(shards), "data.batch_rows=4")
    assert start(data, *whole, f"parent={trained}", f"run_dir={run}") == 0
    assert_quarantined(run, shards)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_source_over_its_budget_stops_the_run_with_the_last_reasons(
    data: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], workers: int
) -> None:
    """In one line, with all bad samples written down, once; with a larger budget it goes on from there."""
    run = tmp_path / "run"
    tokens = (*SUPERVISED, *source(shards, max_bad=3), "train.max_steps=12", "train.save_every=1", f"run_dir={run}")
    for _ in range(2):
        told = refused(data, capsys, *tokens, f"data.workers={workers}")
        # those of workers are counted row by row
        assert re.search(f"'hostile': {4 + workers} of .* max_bad=3 allows.*hostile.tar.* raise the max_bad", told)
        assert f"{run}/quarantine.jsonl names the bad samples" in told and "Traceback" not in told
        assert len(lines(run, "quarantine")) == 4 + workers
    assert "max_bad=3" in events(run, "error")[0]["reason"]
    if not workers:
        assert start(data, *tokens, "data.sources.hostile.max_bad=1000") == 0
        assert start(data, *tokens[:-1], "data.sources.hostile.max_bad=1000", f"run_dir={tmp_path}/whole") == 0
        assert comparable(run) == comparable(tmp_path / "whole")


def test_a_truncated_shard_stops_or_gives_what_is_whole_and_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = tmp_path / "cut", tmp_path / "run"
    folder.mkdir()
    whole = sorted((data / "boxed").glob("*.tar"))[0].read_bytes()
    (folder / "cut.tar").write_bytes(whole[: len(whole) // 2])
    told = refused(data, capsys, *SUPERVISED, *source(folder), "train.max_steps=6", f"run_dir={tmp_path}/stopped")
    assert "cut.tar' is damaged (truncated_shard" in told and "on_bad_shard=skip" in told
    skip = source(folder, on_bad_shard="skip")
    assert start(data, *SUPERVISED, *skip, "train.max_steps=6", f"run_dir={run}") == 0
    assert Counter(one["reason"] for one in lines(run, "quarantine")).keys() == {"truncated_shard"}
    assert lines(run, "quarantine")[0]["shard"] == f"{folder}/cut.tar" and len(losses(run)) == 6


@pytest.mark.parametrize(
    ("shards", "told"),
    [
        ("/nowhere/{000..001}.tar", "source 'lost': shard '/nowhere/000.tar' does not exist"),
        ("/nowhere/*.tar", "source 'lost': the pattern '/nowhere/*.tar' matches no file"),
        ("[]", "source 'lost': shards=[] names no shard; give paths or globs of .tar"),
        ("ftp://host/a.tar", "source 'lost': 'ftp://host/a.tar' is not a local path"),
    ],
)
@pytest.mark.parametrize("place", ["data.sources.lost", "valid.lost", "eval.suites.lost"])
def test_shards_that_are_not_there_are_named_before_anything_is_built(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: str, told: str, place: str
) -> None:
    needed = {"eval": ("eval.modes.lost=[greedy]", "eval.before=false"), "valid": ("train.valid_every=1",)}
    asked = needed.get(place.partition(".")[0], ())
    tokens = (*SUPERVISED, *MIXED, "train.max_steps=1", f"{place}.shards={shards}", *asked)
    assert told in refused(data, capsys, *tokens, f"run_dir={tmp_path}/run")
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (("data.sources.read.wieght=2",), "data.sources.read.wieght: unknown key; did you mean 'weight'"),
        (("optm.lr.vision=1",), "optm: unknown key; did you mean 'optim'"),
        (("optim.lr.visoin=1",), "visoin"),
        (("train.max_steps=many",), "train.max_steps='many' should be a whole number"),
        (("train.max_steps=2.5",), "train.max_steps=2.5 should be a whole number"),
        (("data.sources.read=3",), "data.sources.read: 3 should be a mapping"),
        (("engine=zreo2",), "engine='zreo2': there is no such engine; did you mean 'zero2'"),
        (("engine.zero_stage=4",), "engine.zero_stage=4 is unknown; use one of 0, 1, 2, 3"),
    ],
)
def test_what_the_config_does_not_know_is_named(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], tokens: tuple[str, ...], told: str
) -> None:
    assert told in refused(data, capsys, *SUPERVISED, *MIXED, *tokens, f"run_dir={tmp_path}/run")


def test_a_typo_in_a_stage_is_answered_with_the_nearest(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = refused(data, capsys, "stage=tunde")
    assert told.startswith("stage='tunde': there is no such stage; did you mean 'tuned'")


def test_a_stage_whose_parent_is_missing_or_unfinished_is_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = (*SUPERVISED, *MIXED, "train.max_steps=1", f"run_dir={tmp_path}/run")
    assert "parents.model=nowhere: does not exist" in refused(data, capsys, *tokens, "parent=nowhere")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "lineage.json").write_text("{}")
    told = refused(data, capsys, *tokens, f"parent={tmp_path}/begun")
    assert "it was not trained to its end; run that stage first" in told


def test_a_parent_of_another_shape_is_refused(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = (*SUPERVISED, *MIXED, "train.max_steps=1", f"parent={trained}", f"run_dir={tmp_path}/run")
    told = refused(data, capsys, *tokens, "model.language.num_hidden_layers=3")
    assert "num_hidden_layers" in told


@pytest.mark.parametrize(("world", "fitting"), [(3, "1, 2"), (8, "1, 2")])
def test_ranks_that_cannot_share_the_streams_are_told_which_can(data: Path, world: int, fitting: str) -> None:
    config = make_job(data, *SUPERVISED, *MIXED, "train.max_steps=1").config
    with pytest.raises(ValueError, match=f"{world} ranks cannot share num_streams=4.*that fit: {fitting}$"):
        Stream(config.data, make_processor(config), seed=0, rank=0, world=world)


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[str, ...]]:
    """A run with a checkpoint amid and one at its end, and its tokens."""
    run = tmp_path_factory.mktemp("finished") / "run"
    tokens = (*SUPERVISED, *MIXED, "train.max_steps=7", "train.save_every=4")
    assert start(data, *tokens, f"run_dir={run}") == 0
    return run, tokens


def as_if_killed(run: Path, copy: Path) -> list[Path]:
    """The run in another place, as it stood before its last word; its checkpoints."""
    shutil.copytree(run, copy)
    (copy / "outcome.json").unlink()
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace(f"run_dir: {run}", f"run_dir: {copy}"))
    return sorted((copy / "checkpoints").iterdir())


def flip(checkpoint: Path) -> None:
    """One bit in the middle of the largest file."""
    victim = max(checkpoint.iterdir(), key=lambda path: path.stat().st_size)
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 0x10
    victim.write_bytes(content)


def test_a_checkpoint_with_a_flipped_bit_is_refused_and_the_one_before_goes_on(
    data: Path, finished: tuple[Path, tuple[str, ...]], tmp_path: Path
) -> None:
    run, tokens = finished
    copy = tmp_path / "run"
    flip(as_if_killed(run, copy)[-1])
    assert start(data, *tokens, f"run_dir={copy}") == 0
    (resume,) = events(copy, "resume")
    assert resume["checkpoint"] == "step-00000004" and "does not match its sha256" in resume["refused"][0]
    assert comparable(copy) == comparable(run)
    again = weights(copy)
    assert all(np.array_equal(again[name].numpy(), weight.numpy()) for name, weight in weights(run).items())


def test_a_run_without_a_checkpoint_that_verifies_does_not_start_over_by_itself(
    data: Path, finished: tuple[Path, tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, tokens = finished
    copy = tmp_path / "run"
    for checkpoint in as_if_killed(run, copy):
        flip(checkpoint)
    told = refused(data, capsys, *tokens, f"run_dir={copy}")
    assert "no checkpoint in" in told and "step-00000004: " in told and "delete the directory to start" in told
    assert len(losses(copy)) == 7, "nothing was thrown away"


def test_records_that_were_shortened_since_are_refused(
    data: Path, finished: tuple[Path, tuple[str, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, tokens = finished
    copy = tmp_path / "run"
    as_if_killed(run, copy)
    (copy / "metrics.jsonl").write_text("")
    told = refused(data, capsys, *tokens, f"run_dir={copy}")
    assert "metrics.jsonl has 0 bytes, the checkpoint says" in told


def test_a_judge_that_is_down_is_named_at_the_start(
    data: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:  # bound and not listening: nobody answers there
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
        judge = (f"rewards.judge.url={url}", "rewards.judge.max_retries=1", "rewards.judge.backoff=0.01")
        weighed = ("rewards.parts={answer: 0.7, format: 0.1, think: 0.2}", "train.max_steps=1")
        told = refused(data, capsys, *RL, *judge, *weighed, f"parent={trained}", f"run_dir={tmp_path}/run")
    assert told.startswith(f"rewards.judge.url={url} does not answer: judge: cannot connect")
    assert "start the judge, or give the part 'think' the weight 0" in told
