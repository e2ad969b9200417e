"""Bytes of a shard by offset, with retries and few open files; its index; and its samples.

A shard is a local file or an object that `remote` reads; the index parquet beside it is used if there is one (no
headers are walked then, and checksums are compared), else the headers are walked through.

Descriptors are kept by thread, the last used ones: a rank may read thousands of shards in turn, which is more than a
process may hold open, and a descriptor that another thread closed could be another file's a moment later.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import FileIO
from typing import TypeVar

from sail_train.data import remote, tar
from sail_train.data.crc import crc32
from sail_train.data.cut import read_sample
from sail_train.types import BadSample, RawSample

log = logging.getLogger(__name__)

WAITS = (0.1, 0.5, 2.0, 5.0)
"""Seconds before each new try of a read that failed."""
LASTING = frozenset({errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.ENAMETOOLONG,
                     errno.EINVAL, errno.EFBIG})  # fmt: skip
"""Errors that waiting does not cure."""
MAX_OPEN = 128
"""Files that a thread keeps open."""
GAP = 1 << 18
"""Bytes between two samples up to which they are fetched in one request: another one takes longer than these."""
MAX_REQUEST = 32 << 20
"""Bytes of such a request, unless one sample has more: several go on at a time."""


class _OpenFiles(threading.local):
    """This thread's files by path, the last used at the end. What a thread leaves open is closed with its end."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, FileIO] = OrderedDict()

    def descriptor(self, path: str) -> int:
        if path not in self._files:
            self._files[path] = FileIO(path)
            while len(self._files) > MAX_OPEN:
                self._files.popitem(last=False)[1].close()
        self._files.move_to_end(path)
        return self._files[path].fileno()

    def close(self, path: str) -> None:
        file = self._files.pop(path, None)
        if file is not None:
            file.close()


_open_files = _OpenFiles()


class _Scratch(threading.local):
    """Where this thread reads samples to, before their files are cut out."""

    def __init__(self) -> None:
        self.view = memoryview(bytearray(1 << 20))


_scratch = _Scratch()


Result = TypeVar("Result")


_plain: set[tuple[str, int, str]] = set()
"""Remote shards that this process found not to be compressed: address, bytes, mark."""


@dataclass(kw_only=True)
class _Fetched:
    """Bytes that are read before long."""

    start: int
    content: bytes
    reads: int
    """How many are still to come; then they are forgotten."""


class UnreadableShard(ValueError):
    """A shard that is there and cannot be used as a whole: it is compressed, or its index is of another file."""


class ShardFile:
    """Bytes of one shard by offset; a read that fails is tried again, then raises. It never skips."""

    def __init__(self, path: str, *, source: str) -> None:
        self.path = path
        self.name = remote.shown(path)
        """As it is logged and written down: without a signature."""
        self.source = source
        self.bytes = 0
        """When `index` was last called."""
        self._is_remote = remote.is_remote(path)
        self._remote: tuple[int, str] | None = None
        self._fetched: list[_Fetched] = []

    def read(self, offset: int, length: int, *, ahead: bool = True) -> bytes:
        """The bytes at `offset`, fewer than `length` only at the end of the file.

        Args:
            ahead: of a remote shard, fetch what follows as well: for reading in order.
        """
        return self.retry(lambda: self._read(offset, length, ahead), f"byte {offset}")

    def expect(self, spans: Sequence[tuple[int, int]]) -> None:
        """Fetches what will be read of a remote shard, [start, end) each, neighbours in one request. The bytes are
        kept until each span was read as often as it is given."""
        if not self._is_remote or not spans:
            return
        groups = _joined(sorted(spans))
        with ThreadPoolExecutor(remote.THREADS, thread_name_prefix="data-resume") as threads:
            contents = list(threads.map(lambda group: self.read(group[0], group[1] - group[0], ahead=False), groups))
        self._fetched = [
            _Fetched(start=start, content=content, reads=reads)
            for (start, _, reads), content in zip(groups, contents, strict=True)
        ]

    def size(self) -> int:
        """Its bytes, now."""
        return self.retry(lambda: self._status()[0], "its size")

    def index(self, folder: str | None = None, conditions: Sequence[str] = (), *, ahead: bool = True) -> tar.Index:
        """Where the shard's samples are; remembered as long as the file stays the same.

        Args:
            folder: of indexes of shards beside which none can stand (`data.index_dir`).
            conditions: on the columns of its index; samples for which they do not hold are left out.

            ahead: as for `read`.

        Raises:
            UnreadableShard: it is compressed; or its index file is of another shard, or damaged.
            ValueError: conditions that its index does not fit, or no index for them.
        """
        from sail_train.data.index import load  # stands on this module

        size, mark = self._opened(ahead)
        found = load(self, size, folder, conditions)
        return _index(self.path, self.source, size, mark) if found is None else found

    def scan(self) -> tar.Index:
        """The same from the headers alone, whatever index files there are."""
        return _index(self.path, self.source, *self._opened())

    def _opened(self, ahead: bool = True) -> tuple[int, str]:
        self.close()  # a file that was put in this one's place has another descriptor
        status = self.retry(self._status, "its size")
        self.bytes = status[0]
        if (self.path, *status) not in _plain and self.read(0, 2, ahead=ahead) == b"\x1f\x8b":
            raise UnreadableShard(
                f"source {self.source!r}: shard {self.name!r} is gzip, and cannot be sought in; gunzip it"
            )
        if self._is_remote:
            _plain.add((self.path, *status))
        return status

    def sample(self, index: tar.Index, place: int, *, ahead: bool = True) -> RawSample:
        """The sample at `place` of the shard's index, or the BadSample that it is."""
        if place in index.bad:
            raise index.bad[place][1]
        start, end = index.span(place)
        block = self._block(start, end - start, ahead)
        if len(block) < end - start:
            raise OSError(errno.EIO, f"source {self.source!r}: shard became shorter while it was read", self.name)
        if index.checksums is not None:
            _compare(block, index, place)
        key, files = read_sample(block, indexed=index.checksums is not None)
        return RawSample(key=key, source=self.source, shard=self.name, offset=start, members=files)

    def close(self) -> None:
        """Closes the file, should this thread hold it open."""
        _open_files.close(self.path)
        self._remote = None

    def retry(self, attempt: Callable[[], Result], what: str) -> Result:
        """What `attempt` returns, after as many tries as it takes; OSError when it is one too many."""
        for wait in (*WAITS, None):
            try:
                return attempt()
            except OSError as error:
                self.close()
                if wait is None or error.errno in LASTING:
                    message = f"{error.strerror}; source {self.source!r}, {what}"
                    raise OSError(error.errno, message, self.name) from error
                log.warning("source %s: %s failed (%s), trying again in %g s", self.source, self.name, error, wait)
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _read(self, offset: int, length: int, ahead: bool) -> bytes:
        if self._is_remote:
            if (content := self._expected(offset, length)) is not None:
                return content
            size, mark = self._status()
            if ahead:
                return remote.ahead.read(self.path, mark, size, offset, length)
            length = min(length, max(size - offset, 0))
            return remote.fetch(self.path, offset, length) if length else b""
        descriptor = _open_files.descriptor(self.path)
        content = os.pread(descriptor, length, offset)
        # a read may be cut short by a signal or at 2 GiB; only an empty one means the end
        while len(content) < length:
            more = os.pread(descriptor, length - len(content), offset + len(content))
            if not more:
                break
            content += more
        return content

    def _expected(self, offset: int, length: int) -> bytes | None:
        for place, one in enumerate(self._fetched):
            begin = offset - one.start
            if begin >= 0 and begin + length <= len(one.content):
                one.reads -= 1
                if not one.reads:
                    del self._fetched[place]
                return one.content[begin : begin + length]
        return None

    def _block(self, offset: int, length: int, ahead: bool) -> memoryview:
        """As `read`, of what is used before this thread's next read: most samples fit the same few pages each time,
        which spares the kernel finding new ones."""
        if not self._is_remote and length <= len(_scratch.view):
            view = _scratch.view[:length]
            try:
                if os.preadv(_open_files.descriptor(self.path), [view], offset) == length:
                    return view
            except OSError:  # it is read again, patiently
                pass
        return memoryview(self.read(offset, length, ahead=ahead))

    def _status(self) -> tuple[int, str]:
        """Bytes, and a mark that changes when the content does; of a remote shard as it was when it was opened."""
        if self._is_remote:
            self._remote = known = self._remote or remote.stat(self.path)
            return known
        status = os.fstat(_open_files.descriptor(self.path))
        return status.st_size, str(status.st_mtime_ns)


def _joined(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """(start, end, spans) of what to fetch at once, of spans in their order."""
    joined: list[tuple[int, int, int]] = []
    for start, end in spans:
        if joined and start - joined[-1][1] <= GAP and end - joined[-1][0] <= MAX_REQUEST:
            first, last, count = joined.pop()
            joined.append((first, max(end, last), count + 1))
        else:
            joined.append((start, end, 1))
    return joined


def _compare(block: memoryview, index: tar.Index, place: int) -> None:
    assert index.checksums is not None
    known, found = index.checksums[place], crc32(block)
    if known != found:
        raise BadSample("checksum", f"crc32 is {found:08x} and was {known:08x} when the shard was indexed")


@functools.lru_cache(maxsize=64)
def _index(path: str, source: str, size: int, mark: str) -> tar.Index:
    return tar.index(ShardFile(path, source=source).read, size)
