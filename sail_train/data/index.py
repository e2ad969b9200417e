"""The index beside a shard: where its samples are, their checksums, and whatever tools found out about them.

`x/000000.tar` has `x/000000.index.parquet`, one row per sample in the order of the shard, the bad ones included, so
that row i is place i of `tar.Index`. Columns `key`, `offset` (of the first header), `size` (bytes to the next sample)
and `crc32` (over those bytes), then any numeric or text columns: `score_vir`, `pass_rate`, `weight`, `duplicate_of`...
A null says that nothing is known of that sample. An index is written aside and renamed, and knows the size of its
shard: one that no longer fits is refused, never used. A column may say what made it (`column_origin`). `bad` says why
a sample cannot be used ("reason: detail"); what an index says is good is checked again when it is read, since a
stranger may have written it.
The index of a shard that stands where none can be written is looked for in a local folder (`data.index_dir`); that of
a remote shard beside it too, and is kept in the folder, or in memory where there is none.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from sail_train.data import remote, tar
from sail_train.data.conditions import all_hold, parse
from sail_train.data.crc import crc32
from sail_train.data.cut import read_sample
from sail_train.data.shard_file import ShardFile, UnreadableShard
from sail_train.types import BadSample

if TYPE_CHECKING:
    from pyarrow import Table

log = logging.getLogger(__name__)

SUFFIX = ".index.parquet"
VERSION = b"1"
VERSION_FIELD = b"sail_index"
SIZE_FIELD = b"shard_bytes"
ORIGIN_FIELD = b"sail_origin"
"""What a column was made by, in the metadata of its field: it travels with the column."""
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

_absent: set[str] = set()
"""Addresses at which this process found no index; it does not ask again."""
_told: set[str] = set()
"""Sources whose lack of an index was told."""


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
    place = _found(file, folder)
    return None if place is None else _read(place, file.name, file.size())


def load(file: ShardFile, size: int, folder: str | None, conditions: Sequence[str]) -> tar.Index | None:
    """The index of an open shard as its reader takes it; None if it has none.

    Raises:
        UnreadableShard: as `read_index`.
        ValueError: conditions without an index, or on what it does not have; a weight that is none.
    """
    place = _found(file, folder)
    index = None if place is None else _loaded(place, file.name, size, tuple(conditions))
    if index is None and conditions:
        raise ValueError(
            f"source {file.source!r}: filter={list(conditions)!r} needs an index, and {file.name!r} has none; run "
            "`sail-train data index`"
        )
    if index is None and remote.is_remote(file.path) and file.source not in _told:
        _told.add(file.source)
        log.warning(
            "source %s: %s has no index that can be read, so that its headers are walked through, which over a network "
            "reads shards twice; run `sail-train data index`, with --index-dir and data.index_dir where nothing can be "
            "written beside them",
            file.source,
            file.name,
        )
    return index


def without_shard(file: ShardFile, folder: str | None, conditions: Sequence[str]) -> tuple[tar.Index, int] | None:
    """The index of a shard that cannot be read, and the shard's size when it was made; None if there is none."""
    try:
        place = _found(file, folder)
        content = None if place is None else place.content()
        if place is None or content is None:
            return None
        import pyarrow.parquet

        size = int((pyarrow.parquet.read_schema(content).metadata or {})[SIZE_FIELD])
        index = _loaded(place, file.name, size, tuple(conditions))
        return None if index is None else (index, size)
    except (OSError, UnreadableShard, KeyError):
        return None


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an index is."""

    path: str
    """A local file, or the address of a remote one."""
    modified: int = 0
    """When the file was; 0 of a remote one, which is taken as unchanged as long as its shard is."""
    shard: ShardFile | None = field(default=None, compare=False)
    """Of a remote one."""

    def content(self) -> str | io.BytesIO | None:
        """What pyarrow reads; None if there is no such object."""
        if self.shard is None:
            return self.path
        fetched = _fetched(self.shard)
        return None if fetched is None else io.BytesIO(fetched)


def _found(file: ShardFile, folder: str | None) -> _Place | None:
    """The index in the folder, or beside the shard; a remote one is fetched into the folder, if there is one."""
    kept = None if folder is None else index_path(file.path, folder)
    beside = index_path(file.path)
    if kept is not None and os.path.exists(kept):
        return _Place(path=kept, modified=os.stat(kept).st_mtime_ns)
    if not remote.is_remote(file.path):
        return _Place(path=beside, modified=os.stat(beside).st_mtime_ns) if os.path.exists(beside) else None
    if beside in _absent:
        return None
    if kept is None:
        return _Place(path=beside, shard=file)
    content = _fetched(file)
    if content is None:
        return None
    os.makedirs(os.path.dirname(kept), exist_ok=True)
    _replace(kept, lambda out: out.write(content))
    return _Place(path=kept, modified=os.stat(kept).st_mtime_ns)


def _fetched(file: ShardFile) -> bytes | None:
    """The index beside a remote shard; None if there is none, or none for us: stores that list nothing to strangers
    answer "not allowed" for what is not there, and a signature of a shard's is not its index's."""
    path = index_path(file.path)
    try:
        content = file.retry(lambda: remote.download(path, MAX_INDEX_BYTES), "its index")
    except PermissionError:
        content = None
    if content is None:
        _absent.add(path)
    return content


def _read(place: _Place, shard: str, size: int) -> Table | None:
    table = _parquet(place)
    was = -1 if table is None else _shard_bytes(table)
    if table is None or was == size:
        return table
    told = f"{place.path} is of a shard of {was} bytes, {shard} has {size}: it was replaced"
    if size > was:
        raise UnreadableShard(f"{told}; delete the index, or run `sail-train data index --rebuild`")
    lost = _num_beyond(table, size)
    raise UnreadableShard(
        f"{told} or cut short, and {lost} of {len(table)} samples that were indexed do not end within it; copy the "
        "shard again, or take what is left with `sail-train data index --rebuild`"
    )


def _shard_bytes(table: Table) -> int:
    """Of the shard when it was indexed; -1 if that is not told."""
    text = (table.schema.metadata or {}).get(SIZE_FIELD, b"").decode(errors="replace")
    return int(text) if text.isdecimal() else -1


def _num_beyond(table: Table, size: int) -> int:
    """Samples that end after so many bytes."""
    starts, sizes = (np.asarray(table.column(name), dtype=np.int64) for name in ("offset", "size"))
    return int((starts + sizes > size).sum())


def last_known(shard: str, folder: str | None = None) -> tuple[int, int] | None:
    """(samples that could be used, bytes of the shard) as its index has them, whether it still fits or not; None if
    there is no index that can be read."""
    place = _found(ShardFile(shard, source="index"), folder)
    try:
        table = None if place is None else _parquet(place)
    except UnreadableShard:
        return None
    return None if table is None else (num_usable(table), _shard_bytes(table))


def num_usable(table: Table) -> int:
    """Samples that the index does not call bad."""
    return len(table) - sum(map(bool, table.column(BAD).to_pylist())) if BAD in table.column_names else len(table)


def _parquet(place: _Place) -> Table | None:
    """What the file holds, of whatever shard."""
    import pyarrow
    import pyarrow.parquet

    path, content = place.path, place.content()
    if content is None:
        return None
    try:
        table = pyarrow.parquet.read_table(content, memory_map=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise UnreadableShard(f"{path} cannot be read ({error}); delete it and run `sail-train data index`") from error
    fields = table.schema.metadata or {}
    if fields.get(VERSION_FIELD) != VERSION or any(name not in table.column_names for name in OWN_COLUMNS):
        raise UnreadableShard(f"{path} is no index that this version reads; delete it and run `sail-train data index`")
    return table


@functools.lru_cache(maxsize=64)
def _loaded(place: _Place, shard: str, size: int, conditions: tuple[str, ...]) -> tar.Index | None:
    path, table = place.path, _read(place, shard, size)
    if table is None:
        return None
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
    file = ShardFile(shard, source="index")
    file.close()  # of a shard that was just replaced, this thread's descriptor would tell the old one's size
    size = str(file.size()).encode()
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
            values = (read_sample(memoryview(block), indexed=False)[0], start, end - start, crc32(block), "")
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


def add_columns(shard: str, columns: Mapping[str, Any], origin: str = "") -> None:
    """Puts columns, one value per row (None: not known), into a shard's index; those of the same name are replaced.

    Args:
        origin: what they were made by, for `column_origin`.

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
        field = pyarrow.field(name, column.type, metadata={ORIGIN_FIELD: origin.encode()} if origin else None)
        place = table.schema.get_field_index(name)
        table = table.append_column(field, column) if place < 0 else table.set_column(place, field, column)
    write_index(shard, table)


def column_origin(table: Table, name: str) -> str:
    """What a column was made by, as the tool that wrote it says; empty if it does not, or there is no such column."""
    place = table.schema.get_field_index(name)
    metadata = None if place < 0 else table.schema.field(place).metadata
    return (metadata or {}).get(ORIGIN_FIELD, b"").decode(errors="replace")
