"""Expansion, each stream's share, retries, epochs and seeking."""

from __future__ import annotations

import errno
import functools
import gzip
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.data.config import SourceConfig
from sail_train.data.listing import expand
from sail_train.data.quarantine import Budget, Ledger
from sail_train.data.shard_file import ShardFile
from sail_train.data.shards import SourceReader
from sail_train.data.share import share
from sail_train.types import BadSample


def ledger(max_bad: float = 1000) -> Ledger:
    return Budget({"s": SourceConfig(max_bad=max_bad)}, max_in_a_row=1000).ledger()


def open_reader(pattern: str, *, stream: int = 0, num_streams: int = 1, seed: int = 0, **more: Any) -> SourceReader:
    shards = expand("s", [pattern])
    return SourceReader("s", shards, seed=seed, stream=stream, num_streams=num_streams, ledger=ledger(), **more)


def keys(reader: SourceReader, count: int) -> list[str]:
    return [next(reader).raw.key for _ in range(count)]


# which shards


def test_globs_braces_paths_and_lists_name_shards_in_order(tmp_path: Path) -> None:
    for name in ("a-0.tar", "a-1.tar", "b.tar", "[c].tar"):
        (tmp_path / name).touch()
    root = str(tmp_path)
    assert expand("s", [f"{root}/a-{{0..1}}.tar"]) == [f"{root}/a-0.tar", f"{root}/a-1.tar"]
    assert expand("s", [f"{root}/b.tar", f"{root}/a*.tar"]) == [f"{root}/{n}.tar" for n in ("b", "a-0", "a-1")]
    assert expand("s", [f"{root}/{{b,a-?}}.tar"]) == [f"{root}/{n}.tar" for n in ("b", "a-0", "a-1")]
    assert expand("s", [f"file://{root}/b.tar"]) == [f"{root}/b.tar"]
    assert expand("s", [f"{root}/[c].tar"]) == [f"{root}/[c].tar"]


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("ROOT/x*.tar", r"source 'caption': the pattern '.*x\*.tar' matches no file"),
        ("ROOT/missing.tar", r"source 'caption': shard '.*missing.tar' does not exist"),
        ("ROOT/{a,gone}.tar", r"shard '.*gone.tar' does not exist"),
        ("ROOT/{a,a}.tar", "named twice"),
        (
            "ftp://bucket/a.tar",
            "'ftp://bucket/a.tar' is not a local path, .* file://, http://, https://, s3:// are read",
        ),
        ("pipe:cat ROOT/a.tar", "not a local path"),
        ("simplecache::https://x/a.tar", "not a local path"),
        ("hf://datasets/x/a.tar", "not a local path"),
        ("ROOT/{a,b.tar", "the braces of '.*/{a,b.tar' do not match"),
        ("@ROOT/none.txt", "list of shards @.*none.txt cannot be read"),
        ("https://x/*.tar", "HTTP lists no folder"),
        ("https://me:secret@x/a.tar", "'https://x/a.tar' has a user or password in it"),
        ("https://x/a.tar?X-Amz-Signature=secret", "'https://x/a.tar' has a query"),
        ("https://x/a.tar.gz", "compressed"),
        ("ROOT/a.tar.gz", "compressed.*store plain .tar"),
        ("ROOT/a.tgz", "compressed"),
    ],
)
def test_patterns_that_name_no_readable_shard_are_refused(tmp_path: Path, pattern: str, message: str) -> None:
    (tmp_path / "a.tar").touch()
    with pytest.raises(ValueError, match=message) as told:
        expand("caption", [pattern.replace("ROOT", str(tmp_path))])
    assert "secret" not in str(told.value)


def test_a_source_without_shards_is_refused() -> None:
    with pytest.raises(ValueError, match=r"source 'caption': shards=\[\] names no shard"):
        expand("caption", [])


def test_a_shard_that_is_gzip_inside_is_refused_with_the_remedy(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(gzip.compress(b"x" * 100))
    with pytest.raises(ValueError, match="a.tar' is gzip.*gunzip it"):
        next(open_reader(str(tmp_path / "a.tar")))


# whose share


@pytest.mark.parametrize("num_shards", [1, 2, 3, 5, 8, 9, 16, 100, 257])
@pytest.mark.parametrize("num_streams", [1, 2, 8, 12])
def test_streams_share_all_samples_about_equally(num_shards: int, num_streams: int) -> None:
    parts = [share(num_shards, num_streams, stream) for stream in range(num_streams)]
    covered = Counter((unit.shard, unit.stripe) for part in parts for unit in part)
    stripes = parts[0][0].stripes
    assert set(covered) == {(shard, stripe) for shard in range(num_shards) for stripe in range(stripes)}
    assert set(covered.values()) == {1}
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and (max(sizes) == min(sizes) or min(sizes) >= 16)


def test_whole_shards_are_dealt_where_they_divide_evenly() -> None:
    assert [unit.shard for unit in share(8, 4, 1)] == [1, 5]
    assert share(8, 4, 1)[0].stripes == 1
    only = share(2, 8, 5)
    assert [(unit.shard, unit.stripe, unit.stripes) for unit in only] == [(1, 2, 4)]


# reading


def test_every_epoch_reads_each_sample_once_in_a_new_order_of_shards(tmp_path: Path, make: SimpleNamespace) -> None:
    pattern = make.shards(tmp_path, "s", range(60), per_shard=6)
    reader = open_reader(pattern)
    epochs = [keys(reader, 60) for _ in range(3)]
    assert all(sorted(epoch) == [f"{number:06d}" for number in range(60)] for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert epochs == [keys(again, 60) for again in [open_reader(pattern)] for _ in range(3)]
    assert keys(open_reader(pattern, seed=1), 60) != epochs[0]


@pytest.mark.parametrize("num_streams", [1, 3, 4, 7])
def test_streams_together_read_each_sample_once(tmp_path: Path, make: SimpleNamespace, num_streams: int) -> None:
    pattern = make.shards(tmp_path, "s", range(40), per_shard=9)
    read: list[str] = []
    for stream in range(num_streams):
        reader = open_reader(pattern, stream=stream, num_streams=num_streams)
        while reader.state()["epoch"] == 0:
            candidate = next(reader)
            if candidate.epoch == 0:
                read.append(candidate.raw.key)
    assert sorted(read) == [f"{number:06d}" for number in range(40)]


def test_a_reader_goes_on_where_its_state_was_taken(tmp_path: Path, make: SimpleNamespace) -> None:
    pattern = make.shards(tmp_path, "s", range(30), per_shard=7)
    reader = open_reader(pattern, stream=1, num_streams=3)
    states, candidates = [], []
    for _ in range(25):
        states.append(reader.state())
        candidates.append(next(reader))
    for number, state in enumerate(states):
        again = open_reader(pattern, stream=1, num_streams=3)
        again.load_state(state)
        assert [next(again) for _ in range(4)][: 25 - number] == candidates[number : number + 4]
    assert all(reader.waiting.reread(candidate.place) == candidate for candidate in candidates)


def test_bad_samples_are_counted_once_by_one_stream_and_named(tmp_path: Path, make: SimpleNamespace) -> None:
    files = [(f"{number}.json", make.json()) for number in range(8)]
    files[3:3] = [("evil.pickle", b"x"), ("evil.json", make.json())]
    shard = make.tar(tmp_path / "a.tar", files)
    with open(shard, "r+b") as file:
        file.truncate(len(files) * 1024 - 100)
    records = []
    for stream in range(3):
        book = ledger()
        reader = SourceReader(
            "s",
            [str(shard)],
            seed=0,
            stream=stream,
            num_streams=3,
            ledger=book,
            source=SourceConfig(on_bad_shard="skip"),
        )
        while reader.state()["epoch"] == 0:
            next(reader)
        records += [record for record in book.take() if record["shard"] == str(shard)][:1]
    reasons = {(record["key"], record["reason"]) for record in records}
    assert ("evil", "refused_file") in reasons and ("7", "truncated_shard") in reasons


def test_a_missing_end_is_reported_once_an_epoch_wherever_the_stream_is_resumed(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    shard = make.tar(tmp_path / "a.tar", [(f"{number}.json", make.json()) for number in range(4)])
    os.truncate(shard, 4 * 1024)
    book = ledger()

    def opened() -> SourceReader:
        source = SourceConfig(on_bad_shard="skip")
        return SourceReader("s", [str(shard)], seed=0, stream=0, num_streams=1, ledger=book, source=source)

    reader = opened()
    reasons = []
    for _ in range(12):
        again = opened()
        again.load_state(reader.state())
        reader = again
        next(reader)
        reasons += [record["reason"] for record in book.take()]
    assert reasons == ["truncated_shard"] * 2


def test_a_share_without_a_sample_is_an_error_not_an_endless_loop(tmp_path: Path, make: SimpleNamespace) -> None:
    shard = make.tar(tmp_path / "a.tar", [("a.json", make.json())])
    with pytest.raises(ValueError, match="source 's': the share of stream 1 .* holds no sample; use fewer streams"):
        next(open_reader(str(shard), stream=1, num_streams=2))


def test_a_position_in_data_that_changed_is_refused(tmp_path: Path, make: SimpleNamespace) -> None:
    shard = make.tar(tmp_path / "a.tar", [(f"{number}.json", make.json("red " * 200)) for number in range(5)])
    reader = open_reader(str(shard))
    place = [next(reader) for _ in range(3)][1].place
    state = reader.state()
    make.tar(shard, [(f"{number}.json", make.json()) for number in range(9)])
    again = open_reader(str(shard))
    again.load_state(state)
    with pytest.raises(ValueError, match="the data is not what it was.*no sample at byte"):
        next(again)
    with pytest.raises(ValueError, match="the data is not what it was.*no sample at byte"):
        again.waiting.reread(place)


def test_a_waiting_sample_whose_shard_vanished_is_named_or_counted_as_bad(
    tmp_path: Path, make: SimpleNamespace
) -> None:
    pattern = make.shards(tmp_path, "s", range(10))
    place = next(open_reader(pattern)).place
    stopping, skipping = (open_reader(pattern, source=SourceConfig(on_bad_shard=policy)) for policy in ("stop", "skip"))
    (tmp_path / "s" / "s-000000.tar").unlink()
    told = "s-000000.tar': the sample '' at byte 0 waited then .*No such file.*restore the shard, or .*sources.s.on_bad"
    with pytest.raises(ValueError, match=told):
        stopping.waiting.reread(place)
    assert skipping.waiting.reread(place) is None and skipping._ledger.counts == {"s": [1, 1]}
    assert skipping.waiting.reread(place, counted=True) is None and skipping._ledger.counts == {"s": [1, 2]}
    assert [record["reason"] for record in skipping._ledger.take()] == ["shard_unreadable"] * 2


def test_data_that_is_replaced_under_a_running_stream_stops_it(tmp_path: Path, make: SimpleNamespace) -> None:
    shard = make.tar(tmp_path / "a.tar", [(f"{number}.json", make.json("red " * 200)) for number in range(5)])
    reader = open_reader(str(shard))
    next(reader)
    make.tar(shard, [(f"{number}.json", b"x" * 700) for number in range(5)])
    with open(shard, "r+b") as file:
        file.seek(1536)
        file.write(b"y" * 512)
    with pytest.raises(ValueError, match="a.tar' changed while it was read: corrupt_shard"):
        next(reader)


def test_a_shard_put_in_the_place_of_another_is_read_anew(tmp_path: Path, make: SimpleNamespace) -> None:
    shard = make.tar(tmp_path / "a.tar", [("a.json", make.json())])
    assert keys(open_reader(str(shard)), 1) == ["a"]
    make.tar(tmp_path / "new.tar", [("b.json", make.json()), ("c.json", make.json())])
    (tmp_path / "new.tar").rename(shard)
    assert keys(open_reader(str(shard)), 2) == ["b", "c"]


def test_few_files_stay_open(tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sail_train.data.shard_file.MAX_OPEN", 3)
    paths = [make.tar(tmp_path / f"{number}.tar", [("a.json", make.json())]) for number in range(9)]
    files = [ShardFile(str(path), source="s") for path in paths]
    for _ in range(2):
        assert [file.sample(file.index(), 0).shard for file in files] == [str(path) for path in paths]
    held = [os.path.realpath(entry) for entry in Path("/proc/self/fd").iterdir()]
    assert sum(name.startswith(str(tmp_path)) for name in held) <= 3


# failing disks


class Flaky:
    """Reads of os that fail a number of times, however they are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failures: int, number: int = errno.EIO) -> None:
        self.remaining, self.number = failures, number
        for name in ("pread", "preadv"):
            monkeypatch.setattr(os, name, functools.partial(self._read, getattr(os, name)))

    def _read(self, real: Callable[..., Any], *arguments: Any) -> Any:
        if self.remaining > 0:
            self.remaining -= 1
            raise OSError(self.number, os.strerror(self.number))
        return real(*arguments)


def test_a_passing_read_error_is_tried_again_and_loses_nothing(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    pattern = make.shards(tmp_path, "s", range(10))
    expected = keys(open_reader(pattern), 10)
    reader = open_reader(pattern)
    found = keys(reader, 4)
    flaky = Flaky(monkeypatch, 2)
    assert found + keys(reader, 6) == expected
    assert flaky.remaining == 0, "they were met"


def test_a_lasting_read_error_stops_with_the_shard_named(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = open_reader(make.shards(tmp_path, "s", range(10)))
    next(reader)
    Flaky(monkeypatch, 1000)
    with pytest.raises(OSError, match="source 's'.*s-000000.tar"):
        next(reader)


def test_a_shard_that_disappears_is_named_at_once(tmp_path: Path, make: SimpleNamespace) -> None:
    reader = open_reader(make.shards(tmp_path, "s", range(10)))
    (tmp_path / "s" / "s-000000.tar").unlink()
    with pytest.raises(FileNotFoundError, match="s-000000.tar"):
        next(reader)


def test_a_shard_that_shrinks_while_read_raises(tmp_path: Path, make: SimpleNamespace) -> None:
    path = make.tar(tmp_path / "a.tar", [("a.json", make.json()), ("b.json", make.json("red " * 900))])
    file = ShardFile(str(path), source="s")
    index = file.index()
    os.truncate(path, 2000)
    with pytest.raises(OSError, match="became shorter"):
        file.sample(index, 1)


def test_short_reads_are_completed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(bytes(range(250)))
    real = os.pread
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: real(descriptor, min(length, 7), offset))
    assert ShardFile(str(tmp_path / "a"), source="s").read(10, 1000) == bytes(range(10, 250))


def test_samples_are_whole_however_short_the_reads_and_share_no_memory(
    tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies = [bytes([number]) * (600_000 * (number + 1)) for number in range(3)]  # the last is over what is kept ready
    path = make.tar(tmp_path / "a.tar", [(f"{number}.txt", body) for number, body in enumerate(bodies)])
    file = ShardFile(str(path), source="s")
    index = file.index()
    assert [sample.members["txt"] for sample in [file.sample(index, place) for place in range(3)]] == bodies
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda descriptor, views, offset: real(descriptor, [views[0][:7]], offset))
    assert [sample.members["txt"] for sample in [file.sample(index, place) for place in range(3)]] == bodies


def test_a_bad_sample_keeps_its_reason(tmp_path: Path, make: SimpleNamespace) -> None:
    file = ShardFile(str(make.tar(tmp_path / "a.tar", [("a.exe", b"")])), source="s")
    with pytest.raises(BadSample, match="refused_file"):
        file.sample(file.index(), 0)
