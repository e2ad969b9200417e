"""Which shards a source names, without a look at each."""

from __future__ import annotations

from pathlib import Path

import pytest

from sail_train.data.listing import ShardList, describe, expand, names_hash


@pytest.mark.parametrize(
    "pattern",
    [
        "a/{000..120}.tar",
        "{a,b{1..3},}/x{9..07..2}.tar",
        "a.tar",
        r"\{a\}{1,2}",
        "{x}{1..2}",
        "{-1..2}{b..d}z",
        "{3..1}",
    ],
)
def test_braces_are_those_of_braceexpand(pattern: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import braceexpand

    monkeypatch.setattr("sail_train.data.listing._check", lambda *_: None)
    assert expand("s", [pattern]) == list(braceexpand.braceexpand(pattern))


def test_a_hundred_thousand_shards_are_named_without_a_list_or_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr("os.path.isfile", lambda path: looked.append(path) or True)
    found = expand("s", ["/data/{a,b}/{00000..49999}.tar"])
    assert (len(found), found[0], found[-1]) == (100_000, "/data/a/00000.tar", "/data/b/49999.tar")
    assert found[50_001] == "/data/b/00001.tar" and found[3:5] == ["/data/a/00003.tar", "/data/a/00004.tar"]
    assert len(looked) <= 16
    assert names_hash(found) == names_hash(expand("s", ["/other/{c,d}/{00000..49999}.tar"]))
    assert names_hash(found) != names_hash(expand("s", ["/data/{a,b}/{00000..49998}.tar"]))
    with pytest.raises(IndexError):
        found[100_000]
    assert ShardList([]) == [] and len(ShardList([])) == 0


def test_a_lineage_tells_names_and_sizes_of_what_it_can_look_at(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.tar").write_bytes(bytes(10 + number))
    found = describe(expand("s", [f"{tmp_path}/{{0..2}}.tar"]))
    assert (found["shards"], found["bytes"]) == (3, 33)
    (tmp_path / "1.tar").write_bytes(b"")
    assert describe(expand("s", [f"{tmp_path}/{{0..2}}.tar"]))["hash"] != found["hash"]
    assert describe(expand("s", ["s3://bucket/{0..2}.tar"]))["bytes"] is None
    shards = expand("s", [f"{tmp_path}/*.tar"])
    (tmp_path / "2.tar").unlink()
    with pytest.raises(ValueError, match="2.tar' cannot be looked at: No such file"):
        describe(shards)
    assert describe(shards, skip_missing=True) == {"shards": 3, "bytes": None, "hash": None}


def test_the_look_at_the_start_lets_a_shard_be_missing_where_that_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "0.tar").touch()
    assert len(expand("s", [f"{tmp_path}/{{0..2}}.tar"], skip_missing=True)) == 3
    assert "2.tar does not exist, and will be left out" in caplog.text
    with pytest.raises(ValueError, match="1.tar' does not exist"):
        expand("s", [f"{tmp_path}/{{1..2}}.tar"], skip_missing=True)


@pytest.mark.parametrize("skip_missing", [False, True])
def test_a_folder_in_place_of_shards_is_told_with_what_to_write(tmp_path: Path, skip_missing: bool) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "a.tar").touch()
    for pattern in (f"{tmp_path}/mine", f"{tmp_path}/mine/"):
        with pytest.raises(ValueError, match=f"'{pattern}' is a folder; name its shards: '{tmp_path}/mine/\\*.tar'"):
            expand("mine", [f"{tmp_path}/a.tar", pattern], skip_missing=skip_missing)
