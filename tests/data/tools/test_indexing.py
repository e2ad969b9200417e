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
