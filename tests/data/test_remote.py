"""Shards on servers: the same samples as from disk, failures that pass and that last, redirects, secrets, and S3."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from servers import FolderServer, slow, times  # noqa: E402

from sail_train.data import index, remote, shard_file  # noqa: E402
from sail_train.data.config import DataConfig, SourceConfig  # noqa: E402
from sail_train.data.listing import expand  # noqa: E402
from sail_train.data.quarantine import Budget, Ledger  # noqa: E402
from sail_train.data.shard_file import ShardFile  # noqa: E402
from sail_train.data.shards import SourceReader  # noqa: E402
from sail_train.data.stream import Stream  # noqa: E402
from sail_train.processor.processor import SailVLProcessor  # noqa: E402

pytest.importorskip("aiohttp", reason="the extra `remote` is not installed")
yarl = pytest.importorskip("yarl")


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Clients and chunks of this test alone, and short limits."""
    remote._system.cache_clear()
    monkeypatch.setattr(remote, "ahead", remote.ReadAhead())
    monkeypatch.setattr(remote, "SILENCE_S", 0.5)
    monkeypatch.setattr(remote, "CHUNK", 5000)
    monkeypatch.setattr(index, "_absent", set())
    monkeypatch.setattr(index, "_told", set())
    yield
    remote._system.cache_clear()


@pytest.fixture
def folder(tmp_path: Path, make: SimpleNamespace) -> Path:
    make.shards(tmp_path / "store", "s", range(30), per_shard=10)
    return tmp_path / "store"


@pytest.fixture
def server(folder: Path) -> Iterator[FolderServer]:
    started = FolderServer(folder)
    yield started
    started.close()


def ledger(**more: Any) -> Ledger:
    return Budget({"s": SourceConfig(max_bad=1000, **more)}, max_in_a_row=1000).ledger()


def reader(*patterns: str, index_dir: str | None = None, book: Ledger | None = None, **more: Any) -> SourceReader:
    source = SourceConfig(shards=list(patterns), max_bad=1000, **{"epochs": 1.0, **more})
    return SourceReader(
        "s",
        expand("s", patterns),
        seed=0,
        stream=0,
        num_streams=1,
        ledger=book or ledger(),
        source=source,
        index_dir=index_dir,
    )


def contents(reader: SourceReader) -> list[tuple[str, dict[str, bytes]]]:
    found = []
    while (candidate := next(reader, None)) is not None:
        found.append((candidate.raw.key, candidate.raw.members))
    return found


NAMES = "s/s-{000000..000002}.tar"


def test_a_server_gives_the_samples_that_the_disk_gives_by_ranges(folder: Path, server: FolderServer) -> None:
    expected = contents(reader(f"{folder}/{NAMES}"))
    assert len(expected) == 30
    assert contents(reader(f"{server.url}/{NAMES}")) == expected
    asked = [asked for method, _, asked in server.requests if method == "GET"]
    assert asked and all(asked), "every GET is of a range"


def test_a_position_seeks_and_reads_no_more_than_the_sample(folder: Path, server: FolderServer) -> None:
    index_dir = str(folder / "indexes")
    for shard in expand("s", [f"{server.url}/{NAMES}"]):
        index.ensure_index(shard, index_dir)
    first = reader(f"{server.url}/{NAMES}", index_dir=index_dir)
    candidates = [next(first) for _ in range(14)]
    state = first.state()
    server.requests.clear()
    again = reader(f"{server.url}/{NAMES}", index_dir=index_dir)
    again.load_state(state)
    assert again.waiting.reread(candidates[12].place) == candidates[12]
    ranges = [asked.removeprefix("bytes=").split("-") for _, _, asked in server.requests if asked]
    assert sum(int(end) - int(start) + 1 for start, end in ranges) <= candidates[12].size + 2
    assert [next(again).raw.key for _ in range(5)] == [next(first).raw.key for _ in range(5)]


@pytest.mark.parametrize("indexed", [True, False])
def test_resuming_asks_a_few_times_a_shard_not_a_sample(
    folder: Path, server: FolderServer, processor: SailVLProcessor, monkeypatch: pytest.MonkeyPatch, indexed: bool
) -> None:
    monkeypatch.setattr(remote, "CHUNK", 1 << 20)
    for shard in expand("s", [f"{folder}/{NAMES}"]) if indexed else ():
        index.ensure_index(shard)
    source = SourceConfig(shards=f"{server.url}/{NAMES}")
    config = DataConfig(sources={"s": source}, seq_length=160, num_streams=2, batch_rows=2, shuffle_buffer=12,
                        pack_buffer=6, prefetch=0)  # fmt: skip
    first = Stream(config, processor, seed=0)
    for _ in range(3):
        first.next_row()
    positions = first.positions
    waiting = [place for number in "01" for name in ("shuffle", "pack") for place in positions[number][name]]
    assert len(waiting) >= 30
    # as a process that has just begun
    for known in (index._absent, shard_file._plain):
        known.clear()
    for remembered in (index._loaded, shard_file._index):
        remembered.cache_clear()
    monkeypatch.setattr(remote, "ahead", remote.ReadAhead())
    server.requests.clear()
    again = Stream(config, processor, seed=0)
    again.load_state(positions)
    asked = Counter((path, method) for method, path, _ in server.requests)
    for (path, method), count in asked.items():
        # each stream asks for its size and its samples, one whether it is compressed, and walks where no index is
        assert count <= (1 if path.endswith(".parquet") else 3 if method == "HEAD" else 4), asked
    rows = [[sample.key for _ in range(6) for sample in stream.next_row().samples] for stream in (again, first)]
    assert rows[0] == rows[1]


def test_samples_that_lie_close_together_are_fetched_at_once_and_forgotten_when_read(
    folder: Path, server: FolderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (folder / "s" / "s-000000.tar").read_bytes()
    file = ShardFile(f"{server.url}/s/s-000000.tar", source="s")
    monkeypatch.setattr(shard_file, "GAP", 100)
    monkeypatch.setattr(shard_file, "MAX_REQUEST", 1000)
    spans = [(5000, 5300), (0, 400), (500, 900), (500, 900), (950, 1200), (1400, 2900)]
    assert file.size() == len(content)
    file.expect(spans)
    ranges = sorted(asked for method, _, asked in server.requests if method == "GET")
    assert ranges == ["bytes=0-899", "bytes=1400-2899", "bytes=5000-5299", "bytes=950-1199"]
    for start, end in spans:
        assert file.read(start, end - start, ahead=False) == content[start:end]
    assert not file._fetched and len(server.requests) == 5, "one more for the size"
    assert file.read(500, 10, ahead=False) == content[500:510] and len(server.requests) == 6


@pytest.mark.parametrize(
    ("method", "fault"),
    [
        ("GET", lambda handler: handler.empty(500)),
        ("HEAD", lambda handler: handler.empty(500)),
        ("GET", lambda handler: handler.empty(429)),
        ("GET", lambda handler: handler.file(b"x" * 100_000, body=True, cut=50)),
        ("GET", slow(0.8)),
        ("HEAD", slow(0.8)),
    ],
    ids=["500", "500 to HEAD", "429", "cut off", "silent", "silent to HEAD"],
)
def test_failures_that_pass_lose_nothing(folder: Path, server: FolderServer, method: str, fault: Any) -> None:
    expected = contents(reader(f"{folder}/{NAMES}"))
    server.fault = times(2, fault, method=method)
    assert contents(reader(f"{server.url}/{NAMES}")) == expected


def test_a_server_that_keeps_failing_stops_the_run_with_the_shard_named(server: FolderServer) -> None:
    server.fault = times(1000, lambda handler: handler.empty(500))
    with pytest.raises(OSError, match=r"the server answers 500; source 's'.*s/s-00000\d.tar"):
        next(reader(f"{server.url}/{NAMES}"))


def test_a_shard_that_is_not_there_is_named_at_once_and_not_asked_for_again(server: FolderServer) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such object|answers 404"):
        next(reader(f"{server.url}/s/none.tar"))
    assert len(server.requests) <= 2


def test_a_shard_that_vanishes_is_left_out_where_that_is_asked_for(folder: Path, server: FolderServer) -> None:
    index_dir = str(folder / "indexes")
    for shard in expand("s", [f"{server.url}/{NAMES}"]):
        index.ensure_index(shard, index_dir)
    (folder / "s" / "s-000001.tar").unlink()
    book = ledger()
    found = contents(reader(f"{server.url}/{NAMES}", index_dir=index_dir, book=book, on_bad_shard="skip"))
    (record,) = book.take()
    assert len(found) == 20 and record["samples"] == 10 and record["reason"] == "shard_unreadable"
    assert record["shard"] == f"{server.url}/s/s-000001.tar" and book.apart == {"s": [0, 0, 10]}


def test_an_index_beside_a_remote_shard_is_kept_in_the_local_folder(folder: Path, server: FolderServer) -> None:
    for shard in expand("s", [f"{folder}/{NAMES}"]):
        index.add_columns(shard, {"score": [float(number) for number in range(10)]})
    kept = str(folder / "kept")
    options = {"index_dir": kept, "filter": ["score >= 8"]}
    assert len(contents(reader(f"{server.url}/{NAMES}", **options))) == 6
    assert len(list(Path(kept).iterdir())) == 3
    server.requests.clear()
    assert len(contents(reader(f"{server.url}/{NAMES}", **options))) == 6
    assert not any(path.endswith(".parquet") for _, path, _ in server.requests)


def test_an_index_beside_a_remote_shard_is_used_without_a_local_folder_and_fetched_once(
    folder: Path, server: FolderServer, caplog: pytest.LogCaptureFixture
) -> None:
    for shard in expand("s", [f"{folder}/{NAMES}"]):
        index.add_columns(shard, {"score": [float(number) for number in range(10)]})
    for epochs in (1.0, 2.0):
        assert len(contents(reader(f"{server.url}/{NAMES}", filter=["score >= 8"], epochs=epochs))) == 6 * epochs
    asked = [path for _, path, _ in server.requests if path.endswith(".parquet")]
    assert len(asked) == 3 and "has no index" not in caplog.text
    (folder / "s" / "s-000001.tar").unlink()
    book = ledger()
    assert len(contents(reader(f"{server.url}/{NAMES}", book=book, on_bad_shard="skip"))) == 20
    assert book.take()[0]["samples"] == 10, "its index says what is lost"


@pytest.mark.parametrize("status", [404, 403])
def test_a_remote_source_without_an_index_says_so_once_and_asks_for_each_once(
    folder: Path, server: FolderServer, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    server.fault = lambda handler: bool(handler.path.endswith(".parquet") and (handler.empty(status) or True))
    for _ in range(2):
        assert len(contents(reader(f"{server.url}/{NAMES}"))) == 30
    assert caplog.text.count("has no index that can be read") == 1 and "sail-train data index" in caplog.text
    assert len([path for _, path, _ in server.requests if path.endswith(".parquet")]) == 3


def test_a_shard_that_changed_on_the_server_is_not_read_by_its_old_index(folder: Path, server: FolderServer) -> None:
    url = f"{server.url}/s/s-000000.tar"
    index.ensure_index(url, str(folder / "kept"))
    (folder / "s" / "s-000000.tar").write_bytes((folder / "s" / "s-000001.tar").read_bytes() + bytes(512))
    with pytest.raises(ValueError, match="it was replaced; delete the index"):
        next(reader(url, index_dir=str(folder / "kept")))


# what a server must not do


def test_a_redirect_to_another_scheme_is_refused_and_one_within_it_followed(folder: Path, server: FolderServer) -> None:
    server.fault = lambda handler: bool(
        handler.path.startswith("/there/") and (handler.empty(302, Location=handler.path[6:]) or True)
    )
    assert len(contents(reader(f"{server.url}/there/s/s-000000.tar"))) == 10
    with_password = f"{server.url.replace('://', '://me:secret@')}/s/s-000002.tar"
    for target in ("ftp://127.0.0.1/s.tar", "file:///etc/passwd", with_password):
        server.fault = lambda handler, to=target: bool(handler.empty(302, Location=to) or True)
        with pytest.raises(OSError) as told:
            next(reader(f"{server.url}/s/s-000001.tar"))
        assert "secret" not in str(told.value)


def test_a_server_that_says_that_it_has_no_ranges_is_refused(server: FolderServer) -> None:
    def none(handler: Any) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.send_header("Accept-Ranges", "none")
        handler.end_headers()
        return True

    server.fault = lambda handler: handler.command == "HEAD" and none(handler)
    with pytest.raises(OSError, match="serves no ranges; copy the shards"):
        next(reader(f"{server.url}/s/s-000000.tar"))


def test_a_server_without_ranges_is_refused_before_it_sends_whole_shards(server: FolderServer) -> None:
    def whole(handler: Any) -> bool:
        if handler.command != "GET":
            return False
        del handler.headers["Range"]
        return False

    server.fault = whole
    with pytest.raises(PermissionError, match="answers a range with the whole file; copy the shards"):
        next(reader(f"{server.url}/s/s-000000.tar"))


def test_a_signed_list_is_read_and_its_signatures_are_written_nowhere(
    folder: Path, server: FolderServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    lines = [f"{server.url}/s/s-00000{number}.tar?X-Amz-Signature=canary" for number in range(3)]
    (folder / "list.txt").write_text("# all of them\n" + "\n".join(lines) + "\n")
    server.fault = times(2, lambda handler: handler.empty(500))
    book = ledger()
    opened = reader(f"@{folder}/list.txt", book=book)
    candidates = [next(opened) for _ in range(12)]
    assert any("canary" in path for _, path, _ in server.requests)
    assert all(candidate.raw.shard.endswith(".tar") for candidate in candidates)
    server.fault = times(1000, lambda handler: handler.empty(403))
    with pytest.raises(PermissionError) as told:
        while True:
            next(opened)
    error: BaseException | None = told.value
    while error is not None:
        assert "canary" not in str(error)
        error = error.__cause__
    assert "canary" not in caplog.text and "canary" not in str(book.take()) + str(opened.state())


def test_a_scheme_whose_client_is_not_installed_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    monkeypatch.setitem(sys.modules, "fsspec.implementations.http", None)
    with pytest.raises(ValueError, match=r"https:// needs .*pip install 'sail-train\[remote\]'"):
        remote.stat("https://127.0.0.1:1/a.tar")


def test_reading_ahead_is_bounded(folder: Path, server: FolderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "MAX_CHUNKS", 4)
    chunks = remote.ahead
    opened = reader(f"{server.url}/{NAMES}")
    for _ in range(30):
        next(opened)
        assert len(chunks._chunks) <= 4
    # a long read is one request, not dozens of chunks
    monkeypatch.setattr(remote, "ahead", remote.ReadAhead())
    file = ShardFile(f"{server.url}/s/s-000000.tar", source="s")
    whole = (folder / "s" / "s-000000.tar").read_bytes()
    monkeypatch.setattr(remote, "CHUNK", 3000)
    assert len(whole) > 9 * remote.CHUNK and file.read(10, len(whole)) == whole[10:]
    assert server.requests[-1][2] == f"bytes=10-{len(whole) - 1}"


def test_no_index_is_written_beside_a_remote_shard(server: FolderServer) -> None:
    with pytest.raises(ValueError, match="no index can be written beside it; give a local --index-dir"):
        index.ensure_index(f"{server.url}/s/s-000000.tar")


def test_an_index_that_is_too_large_to_fetch_is_refused(
    folder: Path, server: FolderServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    index.ensure_index(str(folder / "s" / "s-000000.tar"))
    monkeypatch.setattr(index, "MAX_INDEX_BYTES", 10)
    with pytest.raises(OSError, match="the limit is 10 bytes"):
        next(reader(f"{server.url}/s/s-000000.tar", index_dir=str(folder / "kept")))


# S3


@pytest.fixture
def store(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FolderServer]:
    pytest.importorskip("s3fs", reason="the extra `s3` is not installed")
    started = FolderServer(folder, s3=True)
    for name, value in {
        "AWS_ENDPOINT_URL": started.url,
        "AWS_ACCESS_KEY_ID": "someone",
        "AWS_SECRET_ACCESS_KEY": "canary-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():
        monkeypatch.setenv(name, value)
    yield started
    started.close()


def test_an_s3_store_gives_the_samples_that_the_disk_gives(
    folder: Path, store: FolderServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    expected = contents(reader(f"{folder}/{NAMES}"))
    assert contents(reader(f"s3://s/{NAMES[2:]}")) == expected
    assert expand("s", ["s3://s/*.tar"]) == [f"s3://s/s-00000{number}.tar" for number in range(3)]
    store.fault = times(2, lambda handler: handler.empty(503))
    assert contents(reader("s3://s/*.tar")) == expected
    assert "canary-secret" not in caplog.text


def test_an_object_that_is_not_in_the_store_is_named(store: FolderServer) -> None:
    with pytest.raises(FileNotFoundError, match="s3://s/none.tar"):
        next(reader("s3://s/none.tar"))
    with pytest.raises(ValueError, match=r"the pattern 's3://s/none-\*.tar' matches no file"):
        expand("s", ["s3://s/none-*.tar"])


def test_a_store_without_credentials_says_what_to_set(store: FolderServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(PermissionError):
        next(reader("s3://s/s-000000.tar"))


def test_a_config_may_name_a_server(server: FolderServer) -> None:
    config = DataConfig(sources={"s": SourceConfig(shards=f"{server.url}/{NAMES}")})
    assert len(expand("s", config.sources["s"].patterns)) == 3 and not server.requests, "nothing is asked at the start"
