"""Shards that are cut short or vanish under a stopped run, which is started again through the command."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import pytest
from loops_tiny import SUPERVISED, lines, losses, start, write_tar
from test_mix_change import cut_back

from sail_train.data.config import DataConfig, SourceConfig
from sail_train.job.shards import held, lost, remembered

STEPS = ("train.max_steps=6", "train.save_every=1", "train.keep=9")
ROWS = ("data.num_streams=2", "data.batch_rows=2", "data.shuffle_buffer=4", "data.pack_buffer=4")
SKIP = ("data.sources.boxed.on_bad_shard=skip", "data.sources.boxed.max_bad=1000")


@pytest.fixture
def folder(data: Path, tmp_path: Path) -> Path:
    """Eight shards, named so that braces can say them."""
    folder = tmp_path / "shards"
    folder.mkdir()
    whole = sorted((data / "boxed").glob("*.tar"))
    for number in range(8):
        shutil.copy(whole[number % len(whole)], folder / f"{number}.tar")
    return folder


def begun(data: Path, folder: Path, run: Path, pattern: str) -> tuple[str, ...]:
    """Tokens of a run that was killed after two steps."""
    tokens = (*SUPERVISED, *STEPS, *ROWS, f"data.sources.boxed.shards={folder}/{pattern}", f"run_dir={run}")
    assert start(data, *tokens) == 0
    cut_back(run, 2)
    return tokens


@pytest.mark.parametrize("pattern", ["*.tar", "{0..7}.tar"])
def test_a_source_that_skips_goes_on_without_what_was_lost(
    data: Path, folder: Path, tmp_path: Path, pattern: str,
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    tokens = begun(data, folder, run, pattern)
    whole = losses(run)
    short, gone = folder / "3.tar", folder / "5.tar"
    short.write_bytes(short.read_bytes()[: short.stat().st_size // 2])
    capsys.readouterr()
    assert start(data, *tokens) == 2
    told = capsys.readouterr().err
    assert f"1 of its shards are gone or shorter than they were ({short}); restore them, or go on without" in told
    assert "data.sources.boxed.on_bad_shard=skip" in told
    gone.unlink()
    assert start(data, *tokens) == 2
    told = capsys.readouterr().err
    assert str(gone) in told and "on_bad_shard=skip" in told
    monkeypatch.setattr(logging.getLogger("sail_train"), "propagate", True)
    for again in (True, False):
        assert start(data, *tokens, *SKIP) == 0, capsys.readouterr().err
        assert f"2 of its shards are gone or shorter than they were ({short}, {gone})" in caplog.text
        caplog.clear()
        if again:
            cut_back(run, 4)
    assert losses(run)[:2] == whole[:2] and len(losses(run)) == 6
    assert {Path(record["shard"]).name for record in lines(run, "quarantine")} <= {"3.tar", "5.tar"}


def test_a_shard_that_came_or_grew_is_another_data_set_whatever_is_skipped(
    data: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    tokens = begun(data, folder, run, "*.tar")
    content = (folder / "3.tar").read_bytes()
    (folder / "3.tar").write_bytes(content + bytes(10240))
    assert start(data, *tokens, *SKIP) == 2
    assert "data.sources.boxed: the shards changed, 8 shards of" in capsys.readouterr().err
    (folder / "3.tar").write_bytes(content)
    shutil.copy(folder / "3.tar", folder / "8.tar")
    assert start(data, *tokens, *SKIP) == 2
    assert " -> 9 shards of" in capsys.readouterr().err
    (folder / "8.tar").unlink()
    assert start(data, *tokens, *SKIP) == 0


def test_a_run_keeps_the_names_of_a_glob_and_the_sizes_alone_of_braces(
    data: Path, folder: Path, tmp_path: Path
) -> None:
    for pattern in ("*.tar", "{0..7}.tar"):
        run = tmp_path / pattern[0]
        begun(data, folder, run, pattern)
        known = json.loads((run / "shards.json").read_text())["boxed"]
        paths = [f"{folder}/{number}.tar" for number in range(8)]
        assert known["names"] == (paths if "*" in pattern else None)
        assert known["sizes"] == [[path, Path(path).stat().st_size] for path in paths]


def test_a_folder_that_moved_is_the_same_data_with_globs_too(
    data: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its place is in no config leaf here: an `@list` names it."""
    run, listed = tmp_path / "run", tmp_path / "list.txt"
    listed.write_text(f"{folder}/*.tar\n")
    tokens = (*SUPERVISED, *STEPS, *ROWS, f"data.sources.boxed.shards=@{listed}", f"run_dir={run}")
    assert start(data, *tokens, *SKIP) == 0
    whole = losses(run)
    cut_back(run, 2)
    moved = folder.rename(tmp_path / "moved")
    listed.write_text(f"{moved}/*.tar\n")
    assert start(data, *tokens, *SKIP) == 0, capsys.readouterr().err
    assert losses(run) == whole
    cut_back(run, 2)
    (moved / "5.tar").unlink()
    assert start(data, *tokens, *SKIP) == 0, capsys.readouterr().err
    assert losses(run)[:2] == whole[:2] and len(losses(run)) == 6


def test_shards_of_one_name_in_several_folders_are_told_apart(tmp_path: Path) -> None:
    for place in ("a/0.tar", "b/0.tar"):
        (tmp_path / place).parent.mkdir()
        (tmp_path / place).write_bytes(bytes(1024))
    source = SourceConfig(shards=f"{tmp_path}/*/*.tar", on_bad_shard="skip")
    config = DataConfig(sources={"two": source})
    known = remembered(config)
    assert lost("two", source, known["two"]) == [] and held(config, known) == {}
    (tmp_path / "a/0.tar").unlink()
    assert lost("two", source, known["two"]) == [f"{tmp_path}/a/0.tar"]
    assert held(config, known) == {"two": [f"{tmp_path}/a/0.tar", f"{tmp_path}/b/0.tar"]}
    (tmp_path / "b").rename(tmp_path / "c")
    assert lost("two", source, known["two"]) is None and held(config, known) == {}


def test_a_shorter_shard_that_is_whole_is_another_one(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    content = sorted((data / "boxed").glob("*.tar"))[0].read_bytes()
    source = SourceConfig(shards=f"{tmp_path}/*.tar", on_bad_shard="skip")
    path.write_bytes(content)
    known = remembered(DataConfig(sources={"s": source}))
    path.write_bytes(content[: len(content) // 2 + 100])
    assert lost("s", source, known["s"]) == [str(path)]
    path.write_bytes(b"")
    assert lost("s", source, known["s"]) == [str(path)]
    write_tar(path, [("other.json", b"{}")])
    assert path.stat().st_size < len(content)
    assert lost("s", source, known["s"]) is None


def test_signed_urls_stay_in_their_list_file(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("https://store/a.tar?signature=secret\n")
    source = SourceConfig(shards=f"@{tmp_path}/list.txt")
    known = remembered(DataConfig(sources={"far": source}))
    assert known == {"far": {"names": None, "sizes": [["https://store/a.tar", None]]}}
    assert lost("far", source, known["far"]) == []


def test_names_that_are_patterns_are_not_kept(tmp_path: Path) -> None:
    """They would be looked up anew: such a glob is as before, and a resume is refused where it finds others."""
    for name in ("a[1].tar", "b.tar"):
        (tmp_path / name).write_bytes(b"x")
    source = SourceConfig(shards=f"{tmp_path}/*.tar", on_bad_shard="skip")
    known = remembered(DataConfig(sources={"odd": source}))
    assert known["odd"]["names"] is None and lost("odd", source, known["odd"]) == []
    (tmp_path / "a[1].tar").unlink()
    assert lost("odd", source, known["odd"]) is None
