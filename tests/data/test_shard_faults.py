"""Damaged and hostile shards through the whole stream: each fault named, every sample accounted for, nothing run.

The account of a source that is read once: read - shown again + left out = listed; lost with its shard is among read.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from accounts import Records, assert_adds_up, config_of, flip, halve, indexed, read_once  # noqa: E402

from sail_train.data import index  # noqa: E402
from sail_train.data.held_out import held_out  # noqa: E402
from sail_train.data.quarantine import TooManyBadSamples  # noqa: E402
from sail_train.data.stream import Stream  # noqa: E402
from sail_train.processor.processor import SailVLProcessor  # noqa: E402


@pytest.mark.parametrize("with_index", [False, True])
def test_whole_shards_are_read_whole(folder: Path, processor: SailVLProcessor, with_index: bool) -> None:
    if with_index:
        indexed(folder)
    account = read_once(config_of(folder), processor)
    assert_adds_up(account, 40)
    assert sorted(account.trained) == [f"{number:06d}" for number in range(40)] and not account.records


def test_with_and_without_an_index_the_order_is_the_same(folder: Path, processor: SailVLProcessor) -> None:
    before = read_once(config_of(folder), processor)
    indexed(folder)
    assert read_once(config_of(folder), processor) == before


def test_half_a_tar_without_an_index_gives_its_whole_samples_and_is_named(
    folder: Path, processor: SailVLProcessor
) -> None:
    halve(folder / "s-000001.tar")
    account = read_once(config_of(folder, on_bad_shard="skip"), processor)
    (record,) = account.records
    assert record["reason"] == "truncated_shard" and record["shard"].endswith("s-000001.tar")
    listed = 30 + int(record["detail"].split("; ")[1].split()[0]) + 1
    assert_adds_up(account, listed)


def ruined(content: bytes) -> bytes:
    """With a damaged header amid it."""
    place = content.index(b"ustar", len(content) // 2)
    return content[:place] + b"x" + content[place + 1 :]


@pytest.mark.parametrize("spoil", [lambda content: content[: len(content) // 2], lambda content: b"", ruined])
@pytest.mark.parametrize("with_index", [False, True])
def test_a_damaged_shard_stops_the_run_by_name_unless_it_is_to_be_skipped(
    folder: Path, processor: SailVLProcessor, with_index: bool, spoil: Callable[[bytes], bytes]
) -> None:
    shard = folder / "s-000001.tar"
    shard.write_bytes(spoil(shard.read_bytes()))
    if with_index:  # made of what is left
        indexed(folder)
    with pytest.raises(ValueError, match=r"s-000001.tar' is damaged \(.*data.sources.s.on_bad_shard=skip"):
        read_once(config_of(folder), processor)
    with pytest.raises(ValueError, match=r"held-out source 's': shard '.*s-000001.tar' is damaged"):
        held_out({"s": config_of(folder).sources["s"]})
    with pytest.raises(TooManyBadSamples, match="1 of .* samples are bad"):
        read_once(config_of(folder, on_bad_shard="skip", max_bad=0), processor)
    account = read_once(config_of(folder, on_bad_shard="skip"), processor)
    assert {record["shard"] for record in account.records} == {str(shard)}
    assert sum(record["reason"] in ("truncated_shard", "corrupt_shard") for record in account.records) == 1
    # a header amid a sample leaves the part before it, which is named, too
    assert account.bad == len(account.records) <= 2
    assert 30 <= len(account.trained) < 40 and account.total == len(account.trained) + account.bad


def test_no_filter_leaves_it_unsaid_that_a_shard_is_damaged(folder: Path, processor: SailVLProcessor) -> None:
    halve(folder / "s-000001.tar")
    for shard in sorted(folder.glob("*.tar")):
        rows = len(index.ensure_index(str(shard)))
        index.add_columns(str(shard), {"score": [float(place) for place in range(rows)]})
    account = read_once(config_of(folder, on_bad_shard="skip", filter=["score < 2"]), processor)
    assert [record["reason"] for record in account.records] == ["truncated_shard"] and len(account.trained) == 8


@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_half_a_tar_with_an_index_is_known_by_its_size(folder: Path, processor: SailVLProcessor, policy: str) -> None:
    indexed(folder)
    halve(folder / "s-000001.tar")
    config = config_of(folder, on_bad_shard=policy)
    if policy == "stop":
        with pytest.raises(ValueError, match="s-000001.index.parquet is of a shard of .* bytes, .*it was replaced"):
            read_once(config, processor)
        return
    account = read_once(config, processor)
    assert_adds_up(account, 40)
    assert account.lost == 10 and {record["reason"] for record in account.records} == {"shard_unreadable"}


def test_a_flipped_bit_is_caught_by_the_checksum_wherever_it_is(folder: Path, processor: SailVLProcessor) -> None:
    indexed(folder)
    table = index.read_index(str(folder / "s-000002.tar"))
    assert table is not None
    expected = set()
    for row in table.to_pylist()[::3]:
        # in a header, in the content, in the padding
        flip(folder / "s-000002.tar", row["offset"] + (5, 600, row["size"] - 1)[len(expected) % 3])
        expected.add((row["key"], "checksum"))
    account = read_once(config_of(folder), processor)
    assert_adds_up(account, 40)
    assert account.reasons() == expected and len(account.trained) == 36


def test_an_unreadable_image_leaves_its_row_and_is_named(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    files = [(f"{number}.json", make.json()) for number in range(9)]
    make.tar(tmp_path / "a.tar", [*files, ("x.png", make.broken_image()), ("x.json", make.json(images=1))])
    account = read_once(config_of(tmp_path), processor)
    assert_adds_up(account, 10)
    assert account.reasons() == {("x", "image_undecodable")}


@pytest.mark.parametrize("with_index", [False, True])
def test_a_vanished_shard_stops_the_run_or_is_left_out_with_its_number_of_samples(
    folder: Path, processor: SailVLProcessor, with_index: bool
) -> None:
    if with_index:
        indexed(folder)
    names = [str(path) for path in sorted(folder.glob("*.tar"))]
    stopping, skipping = (config_of(folder, shards=names, on_bad_shard=policy) for policy in ("stop", "skip"))
    streams = [Stream(config, processor, seed=0) for config in (stopping, skipping)]
    (folder / "s-000002.tar").unlink()
    with pytest.raises(FileNotFoundError, match="s-000002.tar"), streams[0] as stream:
        while True:
            next(stream)
    trained: list[str] = []
    records: Records = []
    with streams[1] as stream:
        while (step := next(stream)).rows:
            trained += [key for batch in step.batches for key in batch.keys if key]
            records += step.quarantined
    (record,) = records
    assert len(trained) == 30 and record["samples"] == (10 if with_index else None)
    assert (record["shard"], record["reason"]) == (str(folder / "s-000002.tar"), "shard_unreadable")


def test_a_shard_that_vanishes_half_read_loses_what_was_left_of_it(folder: Path, processor: SailVLProcessor) -> None:
    config = dataclasses.replace(
        config_of(folder, on_bad_shard="skip"), num_streams=1, batch_rows=1, shuffle_buffer=1, pack_buffer=1
    )
    with Stream(config, processor, seed=0) as stream:
        first = next(stream)
        open_shard = stream._reader._streams[0]._rows._candidates._mix.readers["s"]._open.file.path  # type: ignore[union-attr]
        os.unlink(open_shard)
        # what this process holds open stays readable; another disk would fail
        from sail_train.data.shard_file import _open_files

        _open_files.close(open_shard)
        trained = [key for batch in first.batches for key in batch.keys]
        records: Records = []
        while (step := next(stream)).rows:
            trained += [key for batch in step.batches for key in batch.keys if key]
            records += step.quarantined
    (record,) = records
    assert record["samples"] == 40 - len(trained) and 0 < record["samples"] < 10


def test_a_shard_that_changed_under_a_resumed_run_is_named(
    folder: Path, make: SimpleNamespace, processor: SailVLProcessor
) -> None:
    with Stream(config_of(folder), processor, seed=0) as stream:
        for _ in range(2):
            positions = next(stream).positions
    for shard in sorted(folder.glob("*.tar")):
        make.tar(shard, [(f"{number}.json", make.json("red " * 90)) for number in range(9)])
    with pytest.raises(ValueError, match=r"the data is not what it was.*s-00000\d.tar"):
        read_once(config_of(folder), processor, positions=json.loads(json.dumps(positions)))


def vanish(path: Path) -> None:
    path.unlink()


def flip_everywhere(path: Path) -> None:
    """A bit of each sample's content."""
    for row in index.ensure_index(str(path)).to_pylist():
        flip(path, row["offset"] + 600)


def ruin(path: Path) -> None:
    path.write_bytes(ruined(path.read_bytes()))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("harm", "with_index"),
    [
        (vanish, False),
        (vanish, True),
        (flip_everywhere, True),
        (halve, False),
        (halve, True),
        (ruin, False),
    ],  # fmt: skip
)
def test_a_shard_that_is_lost_after_a_save_stops_the_resumed_run_or_leaves_its_buffers(
    folder: Path, processor: SailVLProcessor, harm: Callable[[Path], None], with_index: bool, workers: int
) -> None:
    if workers and harm is not vanish:
        return
    if with_index:
        indexed(folder)
    names = [str(path) for path in sorted(folder.glob("*.tar"))]
    options = {"shards": names, "epochs": 1}
    config = dataclasses.replace(config_of(folder, **options), shuffle_buffer=12, pack_buffer=6, workers=workers)
    trained: list[str] = []
    with Stream(config, processor, seed=0) as stream:
        for _ in range(3):
            step = next(stream)
            trained += [key for batch in step.batches for key in batch.keys if key]
        positions = json.loads(json.dumps(step.positions))
    states = [positions["0"], positions["1"]]
    waiting = Counter(place[1] for state in states for place in (*state["shuffle"], *state["pack"]))
    (lost, many), *_ = waiting.most_common()
    assert many > 3
    harm(Path(names[lost]))
    told = (
        rf"the data is not what it was.*{Path(names[lost]).name}.*the sample .* at byte .*restore .*on_bad_shard=skip"
    )
    told = "does not exist" if harm is vanish else told
    with pytest.raises(ValueError, match=told):
        read_once(config, processor, positions)
    skipping = dataclasses.replace(config, sources=config_of(folder, **options, on_bad_shard="skip").sources)
    account = read_once(skipping, processor, positions)
    assert account.records and {record["shard"] for record in account.records} == {names[lost]}
    assert len(trained) + len(account.trained) == account.read - account.bad, "what is read is trained on, or named"
    assert len(set(trained + account.trained)) == len(trained + account.trained)
    kept = {key for place in range(4) if place != lost for key in (f"{10 * place + n:06d}" for n in range(10))}
    assert kept <= set(trained + account.trained)
    if with_index:
        assert account.total == 40
    with pytest.raises(TooManyBadSamples, match=f"max_bad=0 allows.*{Path(names[lost]).name}"):
        strict = config_of(folder, **options, on_bad_shard="skip", max_bad=0).sources
        read_once(dataclasses.replace(config, sources=strict), processor, positions)


def test_a_position_that_is_saved_again_before_a_row_still_names_what_is_lost(
    folder: Path, processor: SailVLProcessor
) -> None:
    names = [str(path) for path in sorted(folder.glob("*.tar"))]
    with Stream(config_of(folder, shards=names, on_bad_shard="skip"), processor, seed=0) as stream:
        positions = json.loads(json.dumps(next(stream).positions))
    os.unlink(names[positions["0"]["shuffle"][0][1]])
    with Stream(config_of(folder, shards=names, on_bad_shard="skip"), processor, seed=0) as stream:
        stream.load_state(positions)
        assert stream.positions == positions


@pytest.mark.parametrize("spoil", ["text", "pieces"])
def test_a_waiting_sample_that_cannot_be_measured_again_is_lost_once_for_all_its_pieces(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, spoil: str
) -> None:
    turns = [{"role": role, "content": "red " * 30} for _ in range(6) for role in ("user", "assistant")]
    shards = [tmp_path / f"{n}.tar" for n in range(2)]
    whole = json.dumps({"messages": turns}).encode()
    make.tar(shards[0], [("long.json", whole)])
    make.tar(shards[1], [(f"{n}.json", make.json("red " * 60)) for n in range(9)])
    config = dataclasses.replace(
        config_of(tmp_path, shards=[str(path) for path in shards], on_bad_shard="skip"),
        num_streams=1, batch_rows=1, shuffle_buffer=1, pack_buffer=12, overlong="split",
    )  # fmt: skip
    with Stream(config, processor, seed=0) as stream:
        positions = json.loads(json.dumps(next(stream).positions))
    pieces = [place for place in positions["0"]["pack"] if isinstance(place[0], list)]
    assert len(pieces) > 1
    short = json.dumps({"messages": turns[:2]}).encode()
    make.tar(shards[0], [("long.json", (b"{" if spoil == "text" else short).ljust(len(whole)))])
    account = read_once(config, processor, positions)
    assert account.reasons() == {("long", "bad_json" if spoil == "text" else "changed")} and account.bad == 1
    stopping = dataclasses.replace(config, sources=config_of(tmp_path, shards=[str(path) for path in shards]).sources)
    with pytest.raises(ValueError, match="0.tar': the sample 'long' at byte 0 waited then .*on_bad_shard=skip"):
        read_once(stopping, processor, positions)


def test_an_empty_shard_and_one_of_zeros_are_told_apart(folder: Path, processor: SailVLProcessor) -> None:
    (folder / "zero.tar").write_bytes(b"")
    (folder / "none.tar").write_bytes(bytes(10240))
    account = read_once(config_of(folder, on_bad_shard="skip"), processor)
    assert_adds_up(account, 41)
    assert [(record["reason"], Path(record["shard"]).name) for record in account.records] == [
        ("truncated_shard", "zero.tar")
    ]


@pytest.mark.parametrize("with_index", [False, True])
def test_duplicate_keys_are_named_and_the_first_is_read(
    tmp_path: Path, make: SimpleNamespace, processor: SailVLProcessor, with_index: bool
) -> None:
    make.tar(tmp_path / "a.tar", [(name, make.json()) for name in ("a.json", "b.json", "a.json", "c.json", "c.json")])
    if with_index:
        indexed(tmp_path)
    account = read_once(config_of(tmp_path), processor)
    assert_adds_up(account, 4)
    assert account.reasons() == {("a", "duplicate_key"), ("c", "duplicate_file")}
    assert sorted(account.trained) == ["a", "b"]


def test_filters_weights_and_faults_add_up_together(folder: Path, processor: SailVLProcessor) -> None:
    indexed(folder)
    for shard in sorted(folder.glob("*.tar")):
        columns = {"score": [float(place) for place in range(10)], "weight": [1.0, 2.0, 0.0, 1.0, 1.0] * 2}
        index.add_columns(str(shard), columns)
    flip(folder / "s-000000.tar", index.ensure_index(str(folder / "s-000000.tar")).to_pylist()[3]["offset"] + 600)
    (folder / "s-000003.tar").rename(folder / "gone")
    names = [str(folder / f"s-00000{number}.tar") for number in range(4)]
    (folder / "s-000003.tar").touch()
    account = read_once(config_of(folder, shards=names, on_bad_shard="skip", filter=["score > 2"]), processor)
    # 3 to 9 without 7 (weight 0), with 6 twice: one of them lost in shard 0, all of shard 3
    assert (account.read, account.again, account.left_out, account.bad) == (28, 4, 16, 8)
    assert account.lost == 7 and account.total == 40 and len(account.trained) == 20
    assert account.reasons() == {("000003", "checksum"), ("", "shard_unreadable")}
