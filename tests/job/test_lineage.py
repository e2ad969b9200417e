"""Lineage: what a run is made of, and every difference since told by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from sail_train.job import lineage
from sail_train.job.compose import Configs
from sail_train.job.job import Job, resolve
from sail_train.job.overrides import parse_tokens
from sail_train.job.state import write_start

pytestmark = pytest.mark.usefixtures("workplace")


def make_model(folder: Path, *, weights: bytes = b"w") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)


def job(configs: Configs, *tokens: str) -> Job:
    return resolve(configs, parse_tokens(["stage=first", "parent=parent", *tokens]))


def test_the_record_names_parents_code_and_data(configs: Configs) -> None:
    record = lineage.record(job(configs))
    assert record["loop"] == "supervised" and record["stage"] == "first" and record["recipe"] is None
    parent = record["parents"]["model"]
    assert parent["path"] == "parent" and parent["model"] == "parent/model" and len(parent["hash"]) == 64
    assert len(record["code"]["hash"]) == 64
    caption = record["data"]["data.sources.caption"]
    assert caption["shards"] == 2 and caption["bytes"] == 20
    assert set(record["data"]) == {"data.sources.caption", "eval.suites.read"}
    json.dumps(record)


def test_nothing_changed_is_nothing_said(configs: Configs) -> None:
    write_start(job(configs))
    assert lineage.changes(job(configs)) == []
    inert = (
        "train.log_every=3",
        "log.wandb=offline",
        "data.micro_batch=2",
        "data.prefetch=0",
        "data.buffer_warning_gib=16",
        "train.keep=5",
    )
    assert lineage.changes(job(configs, *inert)) == []


def test_a_run_that_never_started_has_no_changes(configs: Configs) -> None:
    assert lineage.changes(job(configs)) == []


def test_changed_values_are_named_one_by_one(configs: Configs) -> None:
    write_start(job(configs))
    changed = lineage.changes(job(configs, "train.max_steps=8", "optim.lr.vision=0.5", "seed=3"))
    assert changed == ["optim.lr.vision: (unset) -> 0.5", "seed: 0 -> 3", "train.max_steps: 7 -> 8"]


def test_a_long_value_is_shortened() -> None:
    (line,) = lineage.config_changes({"a": "x" * 100}, {"a": ["y"] * 100})
    assert line.startswith("a: " + "x" * 57 + "... -> [") and len(line) < 140


def test_an_empty_mapping_that_comes_or_goes_is_no_difference() -> None:
    assert lineage.config_changes({"a": 1, "rl": {}}, {"a": 1}) == []


def test_a_parent_that_was_trained_anew_is_named(configs: Configs, workplace: Path) -> None:
    write_start(job(configs))
    make_model(workplace / "parent" / "model", weights=b"other")
    (line,) = lineage.changes(job(configs))
    assert line.startswith("parents.model: the model of parent changed, ")


def test_a_parent_elsewhere_with_the_same_model_is_no_change(configs: Configs, workplace: Path) -> None:
    write_start(job(configs))
    make_model(workplace / "moved")
    assert lineage.changes(resolve(configs, parse_tokens(["stage=first", "parent=moved"]))) == []


def test_the_hash_that_a_run_wrote_down_is_taken(configs: Configs, workplace: Path) -> None:
    (workplace / "parent" / "outcome.json").write_text(json.dumps({"model_hash": "abc"}))
    assert lineage.parents(job(configs).config)["model"]["hash"] == "abc"


def test_changed_code_is_named_and_can_be_ignored(configs: Configs, monkeypatch: pytest.MonkeyPatch) -> None:
    write_start(job(configs))
    monkeypatch.setattr(lineage, "code_hash", lambda module: "other")
    (line,) = lineage.changes(job(configs))
    assert line.startswith("code: ") and "supervised loop" in line
    assert lineage.changes(job(configs), ignore_code=True) == []


def test_changed_shards_are_named_but_missing_ones_are_not(configs: Configs, workplace: Path) -> None:
    write_start(job(configs))
    (workplace / "data/mine/train/c.tar").write_bytes(b"yy")
    assert lineage.changes(job(configs)) == [
        "data.sources.caption: the shards changed, 2 shards of 20 bytes -> 3 shards of 22 bytes"
    ]
    for file in (workplace / "data/mine/train").iterdir():
        file.unlink()
    assert lineage.changes(job(configs)) == []


def test_what_is_done_about_bad_data_may_change(configs: Configs) -> None:
    write_start(job(configs))
    tokens = ("data.sources.caption.on_bad_shard=skip", "data.sources.caption.max_bad=9", "data.max_bad_in_a_row=7")
    assert lineage.changes(job(configs, *tokens)) == []


def test_a_missing_shard_of_a_source_that_skips_is_recorded_as_unknown(configs: Configs, workplace: Path) -> None:
    skip = "data.sources.caption.on_bad_shard=skip"
    shards = [str(path) for path in sorted((workplace / "data/mine/train").glob("*.tar"))]
    assert len(shards) == 2
    named = f"data.sources.caption.shards=[{','.join(shards)}]"
    content = Path(shards[1]).read_bytes()
    Path(shards[1]).unlink()
    write_start(job(configs, skip, named))
    assert lineage.record(job(configs, skip, named))["data"]["data.sources.caption"]["hash"] is None
    Path(shards[1]).write_bytes(content)
    assert lineage.changes(job(configs, skip, named)) == [], "it came back"
    with pytest.raises(ValueError, match="does not exist"):
        Path(shards[0]).unlink()
        lineage.record(job(configs, named))


def test_a_source_without_shards_is_refused_before_anything_heavy(configs: Configs) -> None:
    with pytest.raises(ValueError, match="source 'caption'.*matches no file"):
        lineage.record(job(configs, "data.sources.caption.shards=nowhere/*.tar"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (None, r"parents\.model=other: does not exist .* check the path"),
        ("empty", r"parents\.model=other: is no run or model folder"),
        ("begun", r"it was not trained to its end; run that stage first"),
    ],
)
def test_a_parent_that_is_not_there_is_refused(
    configs: Configs, workplace: Path, make: str | None, message: str
) -> None:
    if make is not None:
        (workplace / "other").mkdir()
    if make == "begun":
        (workplace / "other" / "lineage.json").write_text("{}")
    with pytest.raises(ValueError, match=message):
        lineage.parents(resolve(configs, parse_tokens(["stage=first", "parent=other"])).config)


def test_a_model_is_known_by_its_contents_not_by_other_files(workplace: Path) -> None:
    folder = workplace / "parent" / "model"
    before = lineage.model_hash(folder)
    (folder / "notes.md").write_text("x")
    assert lineage.model_hash(folder) == before
    (folder / "tokenizer.json").write_text("{}")
    assert lineage.model_hash(folder) != before


def test_a_damaged_file_is_named(workplace: Path) -> None:
    (workplace / "outcome.json").write_text("{")
    with pytest.raises(ValueError, match="outcome.json is no JSON"):
        lineage.read_json(workplace / "outcome.json")
    (workplace / "outcome.json").write_text("[]")
    with pytest.raises(ValueError, match="should hold a JSON object"):
        lineage.read_json(workplace / "outcome.json")
    assert lineage.read_json(workplace / "nothing.json") is None


def test_files_are_written_whole_or_not_at_all(workplace: Path) -> None:
    lineage.write_json(workplace / "deep" / "x.json", {"a": 1})
    with pytest.raises(TypeError):
        lineage.write_json(workplace / "deep" / "x.json", {"a": object()})
    assert json.loads((workplace / "deep" / "x.json").read_text()) == {"a": 1}
    assert [path.name for path in (workplace / "deep").iterdir()] == ["x.json"]
