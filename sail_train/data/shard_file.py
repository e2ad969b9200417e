"""Bytes of a shard by offset, with retries and few open files; its index; and its samples.

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
from io import FileIO

from sail_train.data import tar
from sail_train.types import RawSample

log = logging.getLogger(__name__)

WAITS = (0.1, 0.5, 2.0, 5.0)
"""Seconds before each new try of a read that failed."""
LASTING = frozenset({errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.EPERM, errno.ENAMETOOLONG})
"""Errors that waiting does not cure."""
MAX_OPEN = 128
"""Files that a thread keeps open."""


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


class ShardFile:
    """Bytes of one shard by offset; a read that fails is tried again, then raises. It never skips."""

    def __init__(self, path: str, *, source: str) -> None:
        self.path = path
        self.source = source

    def read(self, offset: int, length: int) -> bytes:
        """The bytes at `offset`, fewer than `length` only at the end of the file."""
        for wait in (*WAITS, None):
            try:
                return self._read(offset, length)
            except OSError as error:
                self.close()
                if wait is None or error.errno in LASTING:
                    message = f"{error.strerror}; source {self.source!r}, byte {offset}"
                    raise OSError(error.errno, message, self.path) from error
                log.warning("source %s: %s failed (%s), trying again in %g s", self.source, self.path, error, wait)
                time.sleep(wait)
        raise AssertionError("the last try returns or raises")

    def _read(self, offset: int, length: int) -> bytes:
        descriptor = _open_files.descriptor(self.path)
        content = os.pread(descriptor, length, offset)
        # a read may be cut short by a signal or at 2 GiB; only an empty one means the end
        while len(content) < length:
            more = os.pread(descriptor, length - len(content), offset + len(content))
            if not more:
                break
            content += more
        return content

    def index(self) -> tar.Index:
        """Where the shard's samples are; remembered as long as the file stays the same."""
        self.close()  # a file that was put in this one's place has another descriptor
        if self.read(0, 2) == b"\x1f\x8b":
            raise ValueError(f"source {self.source!r}: shard {self.path!r} is gzip, and cannot be sought in; gunzip it")
        status = os.fstat(_open_files.descriptor(self.path))
        return _index(self.path, self.source, status.st_size, status.st_mtime_ns)

    def sample(self, index: tar.Index, place: int) -> RawSample:
        """The sample at `place` of the shard's index, or the BadSample that it is."""
        if place in index.bad:
            raise index.bad[place][1]
        start, end = index.span(place)
        block = self.read(start, end - start)
        if len(block) < end - start:
            raise OSError(errno.EIO, f"source {self.source!r}: shard became shorter while it was read", self.path)
        key, files = tar.read_sample(block)
        return RawSample(key=key, source=self.source, shard=self.path, offset=start, members=files)

    def close(self) -> None:
        """Closes the file, should this thread hold it open."""
        _open_files.close(self.path)


@functools.lru_cache(maxsize=64)
def _index(path: str, source: str, size: int, modified: int) -> tar.Index:
    return tar.index(ShardFile(path, source=source).read, size)
