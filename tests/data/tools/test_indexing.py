"""`data index`: indexes and dataset.json, twice the same, damage named, other folders for other places."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.cli import main
from sail_train.data import index
from sail_train.data.tools.indexing import run


@pytest.fixture
def folder(tmp_path: Path, make: SimpleNamespace) -> Path:
    make.shards(tmp_path, "s", range(25), per_shard=10)
    return tmp_path / "s"


def indexed(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["data", "index", "--json", *arguments]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_every_shard_gets_an_index_and_the_folder_its_sum(
    folder: Path, capsys: pytest.CaptureFixture[str], jobs: str
) -> None:
    (folder / "dataset.json").write_text('{"license": "CC0", "samples": 1}')
    told = indexed(capsys, f"{folder}/*.tar", "--jobs", jobs)
    assert told["shards"] == 3 and told["counts"]["samples"] == 25 and not told["failed"]
    size = sum(path.stat().st_size for path in folder.glob("*.tar"))
    described = json.loads((folder / "dataset.json").read_text())
    assert described == {"license": "CC0", "samples": 25, "bytes": size, "shards": 3}
    assert [len(index.read_index(str(path)) or ()) for path in sorted(folder.glob("*.tar"))] == [10, 10, 5]


def test_what_is_indexed_is_skipped_with_its_columns_unless_it_is_to_be_rebuilt(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indexed(capsys, f"{folder}/*.tar")
    shard = str(folder / "s-000000.tar")
    index.add_columns(shard, {"score": [1.0] * 10})
    assert indexed(capsys, f"{folder}/*.tar")["counts"]["shards skipped"] == 3
    assert "score" in index.ensure_index(shard).column_names
    assert "shards skipped" not in indexed(capsys, f"{folder}/*.tar", "--rebuild")["counts"]
    assert "score" not in index.ensure_index(shard).column_names


def test_bad_samples_are_counted_by_reason_and_a_stale_index_fails_its_shard(
    folder: Path, make: SimpleNamespace, capsys: pytest.CaptureFixture[str]
) -> None:
    make.tar(folder / "t.tar", [("a.json", b"{}"), ("b.pickle", b"x"), ("a.json", b"{}")])
    told = indexed(capsys, f"{folder}/*.tar")
    assert told["counts"]["bad"] == {"refused_file": 1, "duplicate_key": 1} and told["counts"]["samples"] == 28
    with open(folder / "t.tar", "ab") as file:
        file.write(bytes(512))
    told = indexed(capsys, f"{folder}/*.tar", code=1)
    assert list(told["failed"]) == [f"{folder}/t.tar"] and "it was replaced" in str(told["failed"])


def test_indexes_of_a_folder_that_cannot_be_written_go_to_another(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir(folder))
    indexed(capsys, f"{folder}/*.tar", "--index-dir", str(tmp_path / "kept"))
    assert sorted(os.listdir(folder)) == before and len(os.listdir(tmp_path / "kept")) == 3
    assert len(index.read_index(str(folder / "s-000002.tar"), str(tmp_path / "kept")) or ()) == 5
    assert index.read_index(str(folder / "s-000002.tar")) is None


def test_a_folder_is_not_summed_before_all_its_shards_are_indexed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indexed(capsys, f"{folder}/s-000000.tar")
    assert not (folder / "dataset.json").exists()
    indexed(capsys, f"{folder}/*.tar", "--part", "0/2")
    assert not (folder / "dataset.json").exists()
    indexed(capsys, f"{folder}/s-000001.tar")
    assert json.loads((folder / "dataset.json").read_text())["samples"] == 25


def test_a_shard_that_was_cut_short_is_told_with_its_numbers_and_loses_nothing_unless_that_is_accepted(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    indexed(capsys, f"{folder}/*.tar")
    shard = folder / "s-000000.tar"
    whole = shard.read_bytes()
    starts = index.ensure_index(str(shard)).column("offset").to_pylist()
    shard.write_bytes(whole[: starts[4]])
    said = indexed(capsys, str(shard), code=1)["failed"][str(shard)]
    assert "6 of 10 samples that were indexed do not end within it; copy the shard again" in said
    said = indexed(capsys, str(shard), "--rebuild", code=1)["failed"][str(shard)]
    assert f"10 samples in {len(whole)} bytes, and has 4 good ones now: 6 would be lost" in said
    with pytest.raises(ValueError, match="cut short"):
        index.read_index(str(shard))
    told = indexed(capsys, str(shard), "--rebuild", "--accept-loss")
    assert told["counts"]["samples lost"] == 6 and index.num_usable(index.ensure_index(str(shard))) == 4
    shard.write_bytes(whole)
    assert "samples lost" not in indexed(capsys, str(shard), "--rebuild")["counts"]
    Path(index.index_path(str(shard))).write_bytes(b"no index")
    assert indexed(capsys, str(shard), "--rebuild")["counts"]["samples"] == 10


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--accept-loss"], "--accept-loss is for --rebuild"),
        (["--index-dir", "SHARD/x"], "is no folder; name another place"),
    ],
)
def test_wrong_arguments_say_what_to_do(folder: Path, arguments: list[str], message: str) -> None:
    shard = str(folder / "s-000000.tar")
    with pytest.raises(ValueError, match=message):
        run([shard, *(argument.replace("SHARD", shard) for argument in arguments)])
