"""The index beside a shard: where its samples are, their checksums, and whatever tools found out about them.

`x/000000.tar` has `x/000000.index.parquet`, one row per sample in the order of the shard, the bad ones included, so
that row i is place i of `tar.Index`. Columns `key`, `offset` (of the first header), `size` (bytes to the next sample)
and `crc32` (over those bytes), then any numeric or text columns: `score_vir`, `pass_rate`, `weight`, `duplicate_of`...
A null says that nothing is known of that sample. An index is written aside and renamed, and knows the size of its
shard: one that no longer fits is refused, never used. `bad` says why a sample cannot be used ("reason: detail"); what
an index says is good is checked again when it is read, since a stranger may have written it.
The index of a shard that stands where none can be written is looked for in a local folder (`data.index_dir`); that of
a remote shard beside it too, and is kept in the folder.
"""

from __future__ import annotations

import functools
import hashlib
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sail_train.data import remote, tar
from sail_train.data.conditions import all_hold, parse
from sail_train.data.crc import crc32
from sail_train.data.shard_file import ShardFile, UnreadableShard
from sail_train.types import BadSample

if TYPE_CHECKING:
    from pyarrow import Table

SUFFIX = ".index.parquet"
VERSION = b"1"
VERSION_FIELD = b"sail_index"
SIZE_FIELD = b"shard_bytes"
OWN_COLUMNS = ("key", "offset", "size", "crc32")
"""Made with the index; `add_columns` does not replace them."""
BAD = "bad"
"""Why a sample cannot be used; empty for one that can."""
WEIGHT = "weight"
"""How often a sample is shown in an epoch, see `tar.Index.shows`."""
MAX_WEIGHT = 1000.0
MAX_SAMPLE_BYTES = 1 << 30
"""A larger sample is refused by an index: it would be read at once."""
MAX_INDEX_BYTES = 1 << 28
"""A larger remote index is refused: it is fetched whole."""
CHUNK = 8 << 20
"""Bytes read at a time for a checksum."""


def index_path(shard: str, folder: str | None = None) -> str:
    """Where the index of a shard is, whether there is one or not: beside it, or in a folder of indexes."""
    path = remote.shown(shard).removesuffix(".tar")
    if folder is None:
        return path + SUFFIX
    digest = hashlib.blake2b(path.encode(), digest_size=6).hexdigest()
    return os.path.join(folder, f"{os.path.basename(path)}-{digest}{SUFFIX}")


def read_index(shard: str, folder: str | None = None) -> Table | None:
    """The index of a shard; None if it has none.

    Raises:
        UnreadableShard: it is of another shard (the size differs), or cannot be read.
    """
    file = ShardFile(shard, source="index")
    path = _found(file, folder)
    return None if path is None else _read(path, file.name, file.size())


def load(file: ShardFile, size: int, folder: str | None, conditions: Sequence[str]) -> tar.Index | None:
    """The index of an open shard as its reader takes it; None if it has none.

    Raises:
        UnreadableShard: as `read_index`.
        ValueError: conditions without an index, or on what it does not have; a weight that is none.
    """
    path = _found(file, folder)
    if path is None:
        if conditions:
            raise ValueError(
                f"source {file.source!r}: filter={list(conditions)!r} needs an index, and {file.name!r} has none; run "
                "`sail-train data index`"
            )
        return None
    return _loaded(path, os.stat(path).st_mtime_ns, file.name, size, tuple(conditions))


def without_shard(file: ShardFile, folder: str | None, conditions: Sequence[str]) -> tuple[tar.Index, int] | None:
    """The index of a shard that cannot be read, and the shard's size when it was made; None if there is none."""
    try:
        path = _found(file, folder)
        if path is None:
            return None
        import pyarrow.parquet

        size = int((pyarrow.parquet.read_schema(path).metadata or {})[SIZE_FIELD])
        return _loaded(path, os.stat(path).st_mtime_ns, file.name, size, tuple(conditions)), size
    except (OSError, UnreadableShard, KeyError):
        return None


def _found(file: ShardFile, folder: str | None) -> str | None:
    """The local file with the shard's index: in the folder, or beside it; a remote one's is fetched into the folder."""
    kept = None if folder is None else index_path(file.path, folder)
    if kept is not None and os.path.exists(kept):
        return kept
    if not remote.is_remote(file.path):
        beside = index_path(file.path)
        return beside if os.path.exists(beside) else None
    if kept is None:
        return None
    content = file.retry(lambda: remote.download(index_path(file.path), MAX_INDEX_BYTES), "its index")
    if content is None:
        return None
    os.makedirs(os.path.dirname(kept), exist_ok=True)
    _replace(kept, lambda out: out.write(content))
    return kept


def _read(path: str, shard: str, size: int) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path, memory_map=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableShard(f"{path} cannot be read ({error}); delete it and run `sail-train data index`") from error
    fields = table.schema.metadata or {}
    if fields.get(VERSION_FIELD) != VERSION or any(name not in table.column_names for name in OWN_COLUMNS):
        raise UnreadableShard(f"{path} is no index that this version reads; delete it and run `sail-train data index`")
    if fields.get(SIZE_FIELD) != str(size).encode():
        was = fields.get(SIZE_FIELD, b"").decode(errors="replace")
        raise UnreadableShard(
            f"{path} is of a shard of {was} bytes, {shard} has {size}: it was replaced; delete the index and run "
            "`sail-train data index`"
        )
    return table


@functools.lru_cache(maxsize=64)
def _loaded(path: str, modified: int, shard: str, size: int, conditions: tuple[str, ...]) -> tar.Index:
    table = _read(path, shard, size)
    starts, sizes = (np.asarray(table.column(name), dtype=np.int64) for name in ("offset", "size"))
    ends = starts + sizes
    whole = len(table) == 0 or bool(
        (sizes >= 0).all() and starts[0] >= 0 and (starts[1:] == ends[:-1]).all() and ends[-1] <= size + 1
    )
    if not whole:
        raise UnreadableShard(f"{path}: its samples do not follow each other; delete it, run `sail-train data index`")
    return tar.Index(
        starts=array("q", starts.tobytes()),
        end=int(ends[-1]) if len(table) else 0,
        bad=_bad(table, sizes),
        checksums=array("L", np.asarray(table.column("crc32"), dtype=np.uint64).tobytes()),
        keys=table.column("key").combine_chunks(),
        shows=_shows(table, conditions, path),
    )


def _bad(table: Table, sizes: np.ndarray) -> dict[int, tuple[str, BadSample]]:
    """What the index names bad, keys that come twice, and samples too large to read."""
    keys = table.column("key").to_pylist()
    found: dict[int, tuple[str, BadSample]] = {}
    if BAD in table.column_names:
        for place, text in enumerate(table.column(BAD).to_pylist()):
            if text:
                reason, _, detail = text.partition(": ")
                found[place] = keys[place], BadSample(reason, detail)
    seen: set[str] = set()
    for place, key in enumerate(keys):
        if key in seen:
            found.setdefault(place, (key, BadSample("duplicate_key", f"{key!r} was in this shard before")))
        seen.add(key)
    for place in np.flatnonzero(sizes > MAX_SAMPLE_BYTES).tolist():
        found.setdefault(place, (keys[place], BadSample("too_large", f"{sizes[place]} bytes")))
    return found


def _shows(table: Table, conditions: Sequence[str], path: str) -> np.ndarray | None:
    if not conditions and WEIGHT not in table.column_names:
        return None
    shows = np.ones(len(table))
    if WEIGHT in table.column_names:
        weights = table.column(WEIGHT).to_numpy().astype(np.float64)
        shows = np.where(np.isnan(weights), 1.0, weights)  # nothing known of a sample: shown once
        if not ((shows >= 0) & (shows <= MAX_WEIGHT)).all():
            raise ValueError(f"{path}: weights must be from 0 to {MAX_WEIGHT:g}; run the tool that wrote them again")
    return np.where(all_hold([parse(text) for text in conditions], table), shows, 0.0)


def write_index(shard: str, table: Table, folder: str | None = None) -> None:
    """Writes a shard's index; metadata of the table's schema is kept. What is there is replaced as a whole."""
    import pyarrow.parquet

    if remote.is_remote(shard) and folder is None:
        raise ValueError(f"{remote.shown(shard)}: no index can be written beside it; give a local --index-dir")
    size = str(ShardFile(shard, source="index").size()).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), VERSION_FIELD: VERSION, SIZE_FIELD: size})
    path = index_path(shard, folder)
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    _replace(path, lambda file: pyarrow.parquet.write_table(table, file))


def _replace(path: str, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file whole or not at all."""
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)


def build_index(shard: str) -> Table:
    """Reads a shard once: where its samples are, and the checksum of each."""
    import pyarrow

    file = ShardFile(shard, source="index")
    index = file.scan()
    columns: dict[str, list[Any]] = {name: [] for name in (*OWN_COLUMNS, BAD)}
    for place in range(len(index)):
        start, end = index.span(place)
        if place in index.bad:
            key, problem = index.bad[place]
            values = (key, start, end - start, checksum(file, start, end), str(problem))
        else:
            block = file.read(start, end - start)
            values = (tar.read_sample(block)[0], start, end - start, crc32(block), "")
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    file.close()
    types = (pyarrow.string(), pyarrow.int64(), pyarrow.int64(), pyarrow.uint32(), pyarrow.string())
    return pyarrow.table(
        {name: pyarrow.array(values, kind) for (name, values), kind in zip(columns.items(), types, strict=True)}
    )


def checksum(file: ShardFile, start: int, end: int) -> int:
    """crc32 of the bytes from `start` to `end`, or to the end of the file."""
    crc = 0
    while start < end and (block := file.read(start, min(CHUNK, end - start))):
        crc, start = crc32(block, crc), start + len(block)
    return crc


def ensure_index(shard: str, folder: str | None = None) -> Table:
    """The index of a shard, made and written if there is none; ValueError as `read_index`."""
    table = read_index(shard, folder)
    if table is None:
        table = build_index(shard)
        write_index(shard, table, folder)
    return table


def add_columns(shard: str, columns: Mapping[str, Any]) -> None:
    """Puts columns, one value per row (None: not known), into a shard's index; those of the same name are replaced.

    Raises:
        ValueError: a column of another length than the index, or one of its own columns.
    """
    import pyarrow

    table = ensure_index(shard)
    for name, values in columns.items():
        if name in OWN_COLUMNS:
            raise ValueError(f"column {name!r} is the index's own; choose another name")
        if len(values) != len(table):
            raise ValueError(f"column {name!r} has {len(values)} values for {len(table)} samples of {shard}")
        column = values if isinstance(values, pyarrow.Array) else pyarrow.array(values)
        place = table.schema.get_field_index(name)
        table = table.append_column(name, column) if place < 0 else table.set_column(place, name, column)
    write_index(shard, table)
