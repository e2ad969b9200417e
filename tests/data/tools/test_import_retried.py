"""Importing again what was refused for its files: in further folders, and what becomes of a shard's index."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from records_made import llava

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.index import add_columns, ensure_index, index_path, read_index
from sail_train.data.tools import import_span
from sail_train.data.tools.import_plan import ImportOptions
from sail_train.data.tools.import_told import plain, show
from sail_train.data.tools.importing import ImportReport, import_records, run


@pytest.fixture
def linked(tmp_path: Path, make: SimpleNamespace) -> Path:
    """Two shards' records: of the second one's, a picture is a link into another folder."""
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "here" / "a.png").write_bytes(make.image(1))
    (tmp_path / "there" / "b.png").write_bytes(make.image(2))
    (tmp_path / "here" / "b.png").symlink_to(tmp_path / "there" / "b.png")
    records = [llava(image="a.png"), llava("x"), llava(image="a.png"), llava(image="b.png")]
    (tmp_path / "r.json").write_text(json.dumps(records))
    return tmp_path


def imported(folder: Path, *images: str, **more: Any) -> ImportReport:
    return import_records(
        ImportOptions(
            input=folder / "r.json",
            output=folder / "out",
            prefix="set",
            images=tuple(folder / name for name in images),
            samples_per_shard=2,
            **more,
        )
    )


def test_what_was_refused_is_looked_for_in_further_folders_and_the_rest_stays(
    linked: Path, make: SimpleNamespace
) -> None:
    assert imported(linked, "here").refused == {"outside_folder": 1}
    first = linked / "out" / "set-000000.tar"
    before = first.stat().st_mtime_ns
    with pytest.raises(ValueError, match="set-000001.tar was imported with fewer folders of images; give --retry-ref"):
        imported(linked, "here", "there")
    report = imported(linked, "here", "there", retry_refused=True)
    assert (report.written, report.skipped, report.complete) == (4, 1, True) and not report.refused
    assert first.stat().st_mtime_ns == before
    found = held_out({"set": SourceConfig(shards=str(linked / "out" / "*.tar"))})
    assert found[-1].images == (make.image(2),)
    again = imported(linked, "here", "there")
    assert (again.written, again.skipped) == (4, 2)


def test_the_remedy_that_a_refusal_names_is_one_that_the_command_takes(
    linked: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (linked / "empty").mkdir()
    command = ["--samples-per-shard", "2", "--max-refused", "1", "--images", str(linked / "here")]
    command = [str(linked / "r.json"), str(linked / "set"), *command, "--images", str(linked / "empty")]
    assert run(command) == 0
    (line,) = (linked / "set" / "set-refused.jsonl").read_text().splitlines()
    named = json.loads(line)["detail"].partition("name its folder too: ")[2].split()
    assert run([*command[:6], *named, "--retry-refused"]) == 0
    assert "read 4 records = 4 written + 0 refused" in capsys.readouterr().out


@pytest.mark.parametrize("images", [("there", "here"), ("there",)])
def test_folders_that_would_change_what_was_written_are_another_import(linked: Path, images: tuple[str, ...]) -> None:
    imported(linked, "here")
    with pytest.raises(ValueError, match="with other settings; .*further --images, after those that were given, go"):
        imported(linked, *images, retry_refused=True)


def test_each_part_tries_its_own_shards_in_the_further_folders(linked: Path) -> None:
    (linked / "here" / "a.png").rename(linked / "there" / "a.png")
    assert imported(linked, "here").written == 1
    one = imported(linked, "here", "there", retry_refused=True, part=(0, 2))
    assert one.refused == {"image_missing": 1, "outside_folder": 1}
    assert imported(linked, "here", "there", retry_refused=True, part=(1, 2)).written == 4


def test_an_index_stays_where_the_shard_comes_out_as_it_was(linked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (linked / "r.json").write_text(json.dumps([llava("x"), llava(image="gone.png"), llava("y"), llava(image="b.png")]))
    imported(linked, "here")
    shards = [str(linked / "out" / f"set-00000{place}.tar") for place in (0, 1)]
    for shard in shards:
        add_columns(shard, {"score": [0.5]})
    assert imported(linked, "here", retry_refused=True).indexes_removed == 0
    report = imported(linked, "here", "there", retry_refused=True)
    assert (report.written, report.skipped, report.indexes_removed) == (3, 0, 1)
    kept, gone = (read_index(shard) for shard in shards)
    assert kept is not None and kept.column("score").to_pylist() == [0.5] and gone is None
    show(report)
    assert "1 shards came out otherwise than they were: their indexes are removed" in capsys.readouterr().out
    assert plain(report)["indexes_removed"] == 1
    assert sorted(path.name for path in (linked / "out").iterdir() if path.name.startswith(".")) == [".import"]


def test_an_index_survives_an_import_that_is_stopped_before_its_shard_is_made(
    linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imported(linked, "here")
    shard = str(linked / "out" / "set-000001.tar")
    add_columns(shard, {"score": [0.5]})
    with monkeypatch.context() as patched:
        patched.setattr(import_span, "convert", stop)
        with pytest.raises(KeyboardInterrupt):
            imported(linked, "here", retry_refused=True)
    assert (table := read_index(shard)) is not None and "score" in table.column_names
    report = imported(linked, "here")
    assert report.complete and report.indexes_removed == 0
    assert (table := read_index(shard)) is not None and table.column("score").to_pylist() == [0.5]


def stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_the_index_of_a_shard_is_gone_before_another_takes_its_place(
    linked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is stopped between the two leaves no scores beside samples that they are not of."""
    imported(linked, "here")
    shard = linked / "out" / "set-000001.tar"
    add_columns(str(shard), {"score": [0.5]})
    seen: list[bool] = []
    replace = os.replace

    def watched(old: Any, new: Any) -> None:
        seen.extend([Path(index_path(str(shard))).exists()] if Path(new) == shard else [])
        replace(old, new)

    monkeypatch.setattr(os, "replace", watched)
    assert imported(linked, "here", "there", retry_refused=True).indexes_removed == 1
    assert seen == [False]


def test_the_index_of_a_shard_without_records_left_is_gone_with_it(linked: Path) -> None:
    (linked / "r.json").write_text(json.dumps([llava(image="a.png"), llava(image="b.png")]))
    imported(linked, "here")
    shard = linked / "out" / "set-000000.tar"
    add_columns(str(shard), {"score": [0.5]})
    (linked / "here" / "a.png").unlink()
    report = imported(linked, "here", retry_refused=True)
    assert (report.written, report.indexes_removed) == (0, 1)
    assert not shard.exists() and not Path(index_path(str(shard))).exists()


def test_the_held_records_index_stays_too(linked: Path) -> None:
    records = [llava(f"{place}?") for place in range(30)]
    (linked / "r.json").write_text(json.dumps([*records, llava(image="b.png")]))
    more: dict[str, Any] = {"hold_out": 0.5}
    report = imported(linked, "here", **more)
    for shard in report.held_shards:
        add_columns(str(shard), {"score": [0.5] * len(ensure_index(str(shard)))})
    again = imported(linked, "here", retry_refused=True, **more)
    assert again.indexes_removed == 0 and again.held_shards == report.held_shards
    assert all(Path(index_path(str(shard))).exists() for shard in report.held_shards)
