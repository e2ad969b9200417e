"""Filtering: what is measured, what is kept byte for byte, and that every sample is accounted for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.cli import main
from sail_train.data.config import SourceConfig
from sail_train.data.dataset import dataset_size
from sail_train.data.held_out import held_out
from sail_train.data.index import add_columns, ensure_index, read_index
from sail_train.data.listing import expand
from sail_train.data.tools.filter import run
from sail_train.data.tools.measured import language, measure_shard
from sail_train.processor.processor import SailVLProcessor


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("What is in the image?", "en"),
        ("图中有什么？", "zh"),
        ("图中 GPU 的型号是 RTX4090", "zh"),
        ("これは何の画像ですか", "other"),
        ("이것은 무엇입니까", "other"),
        ("Что на картинке?", "other"),
        ("où est l'élève zélé ?", "other"),
        ("42 + 7", "other"),
        ("", "other"),
        ("<think>先看图</think>共三个 \\boxed{3}", "zh"),
    ],
)
def test_language_goes_by_the_scripts_of_the_letters(text: str, expected: str) -> None:
    assert language(text) == expected


@pytest.fixture
def shards(tmp_path: Path, make: SimpleNamespace) -> list[str]:
    """Twelve good samples in two folders of one shard each, and one that no reader takes."""
    paths = []
    for part in range(2):
        files = []
        for n in range(6):
            number = part * 6 + n
            image = make.image(number, (28, 28 * (1 + n)))
            files += [(f"k{number}.jpg", image), (f"k{number}.json", make.json("red " * n, images=1))]
        paths.append(str(make.tar(tmp_path / "in" / f"p{part}" / "000000.tar", files + [(f"x{part}.pickle", b"no")])))
    return paths


def summary(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])["counts"]
    return counts


def test_measures_land_in_the_index_and_bad_samples_have_none(
    shards: list[str], processor: SailVLProcessor, tmp_path: Path
) -> None:
    processor.save_pretrained(tmp_path / "model")
    assert measure_shard(shards[0], str(tmp_path / "model"), "messages", False) == {
        "measured": 6, "bad": {"refused_file": 1}
    }  # fmt: skip
    rows = ensure_index(shards[0]).to_pylist()
    assert [(row["width"], row["height"], row["aspect"]) for row in rows[:2]] == [(28, 28, 1.0), (56, 28, 2.0)]
    assert all(row["num_images"] == 1 and row["language"] == "en" and row["num_tokens"] > 4 for row in rows[:6])
    assert all(rows[6][name] is None for name in ("width", "num_chars", "language", "num_tokens"))
    assert measure_shard(shards[0], str(tmp_path / "model"), "messages", False) == {"shards skipped": 1}


def test_kept_samples_keep_bytes_keys_order_and_columns(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = held_out({"a": SourceConfig(shards=shards, max_bad=9)})
    argv = [*shards, "--measure", "--where", "aspect <= 3", "--where", "num_chars > 4", "--out", str(tmp_path / "out")]
    assert main(["data", "filter", *argv, "--json"]) == 0
    counts = summary(capsys)
    assert counts["read"] == counts["kept"] + counts["dropped"] == 14
    assert counts["dropped by"] == {"unreadable": 2, "aspect <= 3": 6, "num_chars > 4": 2}
    assert sum(counts["dropped by"].values()) == counts["dropped"]
    after = held_out({"a": SourceConfig(shards=str(tmp_path / "out" / "**" / "*.tar"))})
    assert [sample.key for sample in after] == ["k1", "k2", "k7", "k8"]
    originals = {sample.key: sample for sample in before}
    assert after == [originals[sample.key] for sample in after]
    made = str(tmp_path / "out" / "p1" / "000000.tar")
    table = read_index(made)
    assert table is not None and table.column("aspect").to_pylist() == [2.0, 3.0]
    # the index that was carried along is the one that reading the new shard gives
    os.unlink(tmp_path / "out" / "p1" / "000000.index.parquet")
    assert (
        ensure_index(made)
        .select(["key", "offset", "size", "crc32"])
        .equals(table.select(["key", "offset", "size", "crc32"]).replace_schema_metadata(None))
    )


def test_a_filter_goes_on_where_it_stopped_and_sees_what_changed(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = [*shards, "--measure", "--where", "aspect <= 3", "--out", str(tmp_path / "out"), "--json", "--jobs", "2"]
    made = tmp_path / "out" / "p0" / "000000.tar"
    assert run(argv) == 0 and summary(capsys)["shards written"] == 2
    stamp = made.stat().st_mtime_ns
    assert run(argv) == 0 and summary(capsys)["shards skipped"] == 2 and made.stat().st_mtime_ns == stamp
    made.write_bytes(made.read_bytes()[:700])
    assert run(argv) == 0 and (counts := summary(capsys))["shards skipped"] == counts["shards written"] == 1
    add_columns(shards[0], {"score_vir": [1] * 7})
    assert run(argv) == 0 and summary(capsys)["shards written"] == 1
    assert run([*argv, "--where", "aspect > 9", "--overwrite"]) == 0
    assert summary(capsys)["shards left out"] == 2 and not made.exists()


def test_a_filtered_folder_says_what_it_is_of_and_is_not_replaced_by_other_conditions(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parent = {"license": "CC-BY-4.0", "source": "https://example.org", "samples": 7, "images": 6, "complete": True}
    (tmp_path / "in" / "p0" / "dataset.json").write_text(json.dumps(parent))
    out = tmp_path / "out"

    def filtered(*argv: str) -> int:
        return run([*shards, "--out", str(out), "--json", *argv])

    def told(part: str = "p0") -> dict[str, Any]:
        found: dict[str, Any] = json.loads((out / part / "dataset.json").read_text())
        return found

    assert filtered("--where", "widht <= 3") == 1, "which is in nobody's way"
    assert filtered("--measure", "--where", "aspect <= 3", "--part", "0/2") == 0
    assert "samples" not in told(), "other parts may still add to it"
    assert filtered("--measure", "--where", "aspect <= 3") == 0
    made = {"of": str(tmp_path / "in" / "p0"), "conditions": ["aspect <= 3"]}
    size = os.path.getsize(out / "p0" / "000000.tar")
    assert told() == {"license": "CC-BY-4.0", "source": "https://example.org", "filter": made, "samples": 3,
                      "bytes": size, "shards": 1}  # fmt: skip
    assert told("p1")["samples"] == 3 and "license" not in told("p1")
    named = expand("s", [str(out / "p0" / "*.tar")])
    assert dataset_size("s", named) == 3, "data.temperature has its size"
    with pytest.raises(ValueError, match=r"holds what \['aspect <= 3'\] kept of .*p0, not \['aspect <= 2'\] of"):
        filtered("--where", "aspect <= 2")
    assert os.path.getsize(out / "p0" / "000000.tar") == size and told()["samples"] == 3
    (out / "p0" / "old.tar").write_bytes((out / "p0" / "000000.tar").read_bytes())
    assert filtered("--where", "aspect <= 2", "--overwrite") == 0
    assert told()["samples"] == 2 and told()["shards"] == 1 and not (out / "p0" / "old.tar").exists()
    # filtered once more: both filters are told
    again = tmp_path / "again"
    assert run([str(out / "p0" / "*.tar"), "--where", "aspect <= 1", "--out", str(again)]) == 0
    last = json.loads((again / "dataset.json").read_text())
    assert last["filter"]["conditions"] == ["aspect <= 1"] and last["license"] == "CC-BY-4.0"
    assert last["filter"]["before"]["conditions"] == ["aspect <= 2"] and last["samples"] == 1
    (again / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="is no JSON .*; mend or remove it"):
        run([str(out / "p0" / "*.tar"), "--where", "aspect <= 1", "--out", str(again)])
    (again / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match="is no JSON object; mend or remove it"):
        run([str(out / "p0" / "*.tar"), "--where", "aspect <= 1", "--out", str(again)])


def test_what_is_finished_is_removed_only_for_conditions_that_all_indexes_can_answer(
    shards: list[str], tmp_path: Path
) -> None:
    argv = [*shards, "--out", str(tmp_path / "out")]
    assert run([*argv, "--measure", "--where", "aspect <= 3"]) == 0

    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in sorted((tmp_path / "out").rglob("*")) if path.is_file()}

    finished = content()
    assert len(finished) == 6, "two of shards, indexes and dataset.json"
    add_columns(shards[0], {"score_vir": [1] * 7})
    for where, message in (
        ("aspcet < 20", "the index has no column 'aspcet'; did you mean 'aspect'"),
        ("score_vir > 20", r"p1/000000.tar: condition 'score_vir > 20': the index has no column"),
        ("num_tokens > 20", "'num_tokens' is not measured yet"),
        ("language > 20", "is text, and is compared by == or != only"),
        ("aspect == wide", "'wide' is none"),
    ):
        with pytest.raises(ValueError, match=message):
            run([*argv, "--where", where, "--overwrite"])
        assert content() == finished
    # an index that is not there will be made, with its own columns only
    index = tmp_path / "in" / "p1" / "000000.index.parquet"
    kept = index.read_bytes()
    index.unlink()
    with pytest.raises(ValueError, match="'aspect' is not measured yet"):
        run([*argv, "--where", "aspect <= 2", "--overwrite"])
    index.write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="000000.index.parquet cannot be read"):
        run([*argv, "--where", "aspect <= 2", "--overwrite"])
    index.write_bytes((tmp_path / "out" / "p1" / "000000.index.parquet").read_bytes())
    with pytest.raises(ValueError, match="000000.index.parquet is of another file than"):
        run([*argv, "--where", "aspect <= 2", "--overwrite"])
    assert content() == finished
    index.write_bytes(kept)
    assert run([*argv, "--where", "aspect <= 2", "--overwrite"]) == 0
    index.unlink()
    assert run([*argv, "--where", "size > 0", "--where", "bad == ''", "--overwrite"]) == 0


def test_shards_whose_parents_are_gone_do_not_stay_among_the_filtered(
    make: SimpleNamespace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n in range(4):
        make.tar(tmp_path / "in" / f"s-{n}.tar", [(f"k{n}{m}.json", make.json("red")) for m in range(5)])
    out = tmp_path / "out"
    argv = [str(tmp_path / "in" / "*.tar"), "--measure", "--where", "num_chars > 0", "--out", str(out), "--json"]
    # what the other part has written is not left over
    assert run([*argv, "--part", "0/2"]) == run([*argv, "--part", "1/2"]) == run([*argv, "--part", "0/2"]) == 0
    assert run(argv) == 0
    for gone in ("s-3.tar", "s-3.index.parquet"):
        (tmp_path / "in" / gone).unlink()
    for more in ([], ["--part", "1/2"]):
        with pytest.raises(ValueError, match=r"out holds s-3.tar, of which no shard .* --overwrite does"):
            run([*argv, *more])
    stamp = (out / "s-0.tar").stat().st_mtime_ns
    capsys.readouterr()
    assert run([*argv, "--overwrite"]) == 0 and summary(capsys)["shards skipped"] == 3
    assert sorted(path.name for path in out.glob("s-*")) == [
        f"s-{n}.{suffix}" for n in range(3) for suffix in ("index.parquet", "tar")
    ]
    told = json.loads((out / "dataset.json").read_text())
    assert (told["samples"], told["shards"]) == (15, 3) and (out / "s-0.tar").stat().st_mtime_ns == stamp
    for n in range(7):
        (out / f"x-{n}.tar").touch()
    with pytest.raises(ValueError, match=r"out holds x-0.tar, .*, x-4.tar and 2 more, of which"):
        run(argv)


@pytest.mark.parametrize("described", [None, "{}"])
def test_a_data_set_that_no_filter_made_is_not_replaced(
    shards: list[str], make: SimpleNamespace, tmp_path: Path, described: str | None
) -> None:
    other = make.tar(tmp_path / "other" / "000000.tar", [("a.json", make.json())])
    if described is not None:
        (tmp_path / "other" / "dataset.json").write_text(described)
    before = other.read_bytes()
    with pytest.raises(ValueError, match="holds a data set that no filter made"):
        run([shards[0], "--measure", "--where", "aspect < 9", "--out", str(tmp_path / "other"), "--overwrite"])
    assert other.read_bytes() == before


def test_in_the_index_a_filter_is_a_weight_of_nothing(shards: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    add_columns(shards[0], {"weight": [2.5, 1, 1, 1, 1, 1, 1], "pass_rate": [0.0, 0.5, 1.0, 0.75, None, 0.2, None]})
    argv = [shards[0], "--in-index", "--json"]
    assert run([*argv, "--where", "pass_rate <= 0.75"]) == 0
    assert summary(capsys)["dropped by"] == {"unreadable": 1, "pass_rate <= 0.75": 2}
    assert ensure_index(shards[0]).column("weight").to_pylist() == [2.5, 1, 0, 1, 0, 1, 0]
    assert run([*argv, "--where", "pass_rate > 0"]) == 0
    assert ensure_index(shards[0]).column("weight").to_pylist() == [0, 1, 0, 1, 0, 1, 0]
    assert run([*argv, "--where", "pass_rate > 0", "--reset"]) == 0
    assert ensure_index(shards[0]).column("weight").to_pylist() == [0, 1, 1, 1, 0, 1, 0]


def test_a_missing_column_fails_its_shard_by_name(shards: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run([shards[0], "--in-index", "--where", "score_vir >= 3"]) == 1
    assert "the index has no column 'score_vir'" in capsys.readouterr().out
    assert run([shards[0], "--in-index", "--where", "width >= 3"]) == 1
    assert "'width' is not measured yet: `sail-train data filter --measure` writes it" in capsys.readouterr().out
    assert run([shards[0], "--in-index", "--where", "num_tokens > 3"]) == 1
    assert "--measure --processor FOLDER` writes it" in capsys.readouterr().out


@pytest.mark.parametrize("made_by_filter", [False, True])
def test_a_shard_is_not_replaced_by_a_part_of_itself(shards: list[str], made_by_filter: bool) -> None:
    content, folder = Path(shards[0]).read_bytes(), Path(shards[0]).parent
    if made_by_filter:
        (folder / "dataset.json").write_text('{"filter": {"of": "x", "conditions": []}}')
    with pytest.raises(ValueError, match="would replace shards by a part of themselves"):
        run([shards[0], "--measure", "--where", "aspect < 2", "--out", str(folder), "--overwrite"])
    assert Path(shards[0]).read_bytes() == content


def test_a_shard_that_is_linked_to_is_not_replaced_either(
    shards: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, link = Path(shards[0]).read_bytes(), tmp_path / "links" / "000000.tar"
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "dataset.json").write_text(
        json.dumps({"filter": {"of": str(Path(shards[0]).parent), "conditions": ["aspect < 2"]}})
    )
    link.symlink_to(shards[0])
    assert run([str(link), "--measure", "--where", "aspect < 2", "--out", str(tmp_path / "links")]) == 1
    assert "would replace" in capsys.readouterr().out and Path(shards[0]).read_bytes() == content


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "nothing to do"),
        (["--where", "aspect < 2"], "say where to"),
        (["--where", "aspect < 2", "--out", "x", "--in-index"], "say where to"),
        (["--where", "aspect = 2", "--out", "x"], "should be a column"),
        (["--measure", "--part", "3/2"], "should be I/N"),
        (["--measure", "--overwrite"], "--overwrite does nothing without --out"),
        (["--where", "aspect < 2", "--out", "x", "--reset"], "--reset does nothing without --in-index"),
        (["--where", "aspect < 2", "--out", "x", "--redo"], "--redo does nothing without --measure"),
        (["--where", "aspect < 2", "--out", "x", "--processor", "x"], "--processor does nothing without --measure"),
        (["--where", "aspect < 2", "--out", "x", "--overwrite", "--part", "0/2"], "then run every --part"),
        (["--where", "aspect < 2", "--out", "SHARD/x"], "--out .* is no folder"),
    ],
)
def test_wrong_arguments_say_what_to_do(shards: list[str], argv: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run([shards[0], *(argument.replace("SHARD", shards[0]) for argument in argv)])
