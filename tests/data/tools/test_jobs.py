"""Work over shards: alike in one process and in several, by parts, and what a failure does."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from sail_train.cli import load
from sail_train.data.tools import jobs
from sail_train.data.tools.jobs import Summary, common_folder, failures, merge, over_shards, parse_part, show
from sail_train.data.tools.reading import conversations
from sail_train.types import BadSample

PATHS = [f"{n:02}.tar" for n in range(10)]


@pytest.mark.parametrize("jobs", [1, 2])
def test_counts_add_up_and_a_failed_shard_is_named_alone(
    jobs: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # a module-level function that the package has, so that fresh processes find it
    sizes = []
    for n in range(4):
        path = tmp_path / f"{n}.txt"
        path.write_bytes(bytes(n))
        sizes.append(str(path))
    summary = over_shards([*sizes, str(tmp_path / "gone")], _stat, jobs=jobs)
    assert summary.counts == {"bytes": 6, "by size": {"0": 1, "1": 1, "2": 1, "3": 1}}
    assert (
        list(summary.failed) == [str(tmp_path / "gone")]
        and "FileNotFoundError" in summary.failed[sizes[0][:-5] + "gone"]
    )
    assert show(summary, as_json=False, title="sizes") == 1
    assert "sizes: 5 shards" in (printed := capsys.readouterr().out) and "failed: " in printed


def test_what_failed_alike_is_told_once() -> None:
    failed = {**{f"{n}.tar": "ValueError: no column" for n in range(9)}, "x.tar": "OSError: gone"}
    assert list(failures(failed)) == [
        "failed: 0.tar and 8 more: ValueError: no column",
        "failed: x.tar: OSError: gone",
    ]
    assert list(failures({f"{n}.tar": f"reason {n}" for n in range(8)}))[-1] == "failed: 3 more shards"


def _stat(path: str) -> dict[str, object]:
    size = os.path.getsize(path)
    return {"bytes": size, "by size": {str(size): 1}}


def _kill(path: str) -> dict[str, int]:
    if path == PATHS[3]:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"done": 1}


def _wrong(path: str) -> dict[str, int]:
    raise TypeError("a mistake of ours")


def _seen(path: str) -> dict[str, int]:
    return {path: 1}


def test_a_killed_process_leaves_no_shard_uncounted() -> None:
    summary = over_shards(PATHS, _kill, jobs=2)
    assert summary.counts.get("done", 0) + len(summary.failed) == len(PATHS) and PATHS[3] in summary.failed
    assert "run it again" in summary.failed[PATHS[3]]


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_mistake_of_ours_is_not_a_failed_shard(jobs: int) -> None:
    with pytest.raises(TypeError, match="a mistake of ours"):
        over_shards(PATHS, _wrong, jobs=jobs)


def test_parts_share_the_shards_without_overlap() -> None:
    parts = [over_shards(PATHS, _seen, part=parse_part(f"{n}/3")).counts for n in range(3)]
    together: dict[str, int] = {}
    for part in parts:
        merge(together, part)
    assert together == dict.fromkeys(PATHS, 1) and [len(part) for part in parts] == [4, 3, 3]


@pytest.mark.parametrize("text", ["", "3", "3/3", "-1/3", "a/b", "1/"])
def test_a_part_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="should be I/N"):
        parse_part(text)


def test_no_process_is_refused() -> None:
    with pytest.raises(ValueError, match="--jobs 0"):
        over_shards(PATHS, _seen, jobs=0)


def test_a_summary_is_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    summary = Summary(shards=1, counts={"kept": 2, "dropped": {"score_vir >= 3": 1}})
    assert show(summary, as_json=True, title="x", extra={"more": [1]}) == 0
    assert json.loads(capsys.readouterr().out) == {
        "shards": 1, "counts": {"kept": 2, "dropped": {"score_vir >= 3": 1}}, "failed": {}, "more": [1]
    }  # fmt: skip


def test_the_common_folder_holds_all_shards(tmp_path: Path) -> None:
    assert common_folder([f"{tmp_path}/a/0.tar", f"{tmp_path}/a/b/0.tar"]) == tmp_path / "a"
    assert common_folder([f"{tmp_path}/a/0.tar", f"{tmp_path}/ab/0.tar"]) == tmp_path


def test_samples_come_with_the_places_of_the_index(tmp_path: Path, make: object) -> None:
    shard = make.tar(tmp_path / "a.tar", [("a.json", make.json("red")), ("b.pickle", b""), ("c.json", b"{")])  # type: ignore[attr-defined]
    first, second, third = conversations(str(shard))
    assert not isinstance(first, BadSample) and first.key == "a"
    assert isinstance(second, BadSample) and second.reason == "refused_file"
    assert isinstance(third, BadSample) and third.reason == "bad_json"


def test_places_where_nothing_can_be_written_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs.check_file("--html", None), jobs.check_file("--html", tmp_path / "x.html")
    jobs.check_folder("--out", tmp_path / "a" / "b")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ValueError, match="--html .*x.html cannot be written to"):
        jobs.check_file("--html", tmp_path / "x.html")
    with pytest.raises(ValueError, match="--out .*b: nothing can be written in"):
        jobs.check_folder("--out", tmp_path / "a" / "b")


@pytest.mark.parametrize(
    "command",
    [
        ["dedupe"],
        ["balance", "ngrams", "--work", "WORK"],
        ["balance", "tail", "--domain", "meta.topic"],
        ["filter", "--measure"],
        ["filter", "--where", "width > 1", "--in-index"],
        ["scores-from", "SAMPLES"],
        ["score", "--model", "/gone"],
    ],
)
def test_tools_that_write_indexes_look_first_whether_they_can(
    command: list[str], tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = str(make.tar(tmp_path / "in" / "a.tar", [("a.json", make.json())]))
    line = {"source": "s", "key": "a", "prompt": "what", "truth": None, "pass_rate": 0.5, "responses": ["x"]}
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    given = {"WORK": str(tmp_path / "work"), "SAMPLES": str(tmp_path / "samples.jsonl")}
    name, *options = (given.get(each, each) for each in command)
    monkeypatch.setattr(os, "access", lambda path, mode: str(path) != str(tmp_path / "in"))
    kind = [options.pop(0)] if name == "balance" else []
    with pytest.raises(ValueError, match="nothing can be written in .*in"):
        load(f"data {name}")([*kind, *options, shard, *(["--work", given["WORK"]] if name == "dedupe" else [])])
    assert os.listdir(tmp_path / "in") == ["a.tar"]
