"""The index beside a shard: where its samples are, their checksums, and whatever tools found out about them.

`x/000000.tar` has `x/000000.index.parquet`, one row per sample in the order of the shard, the bad ones included, so
that row i is place i of `tar.Index`. Columns `key`, `offset` (of the first header), `size` (bytes to the next sample)
and `crc32` (over those bytes), then any numeric or text columns: `score_vir`, `pass_rate`, `weight`, `duplicate_of`...
A null says that nothing is known of that sample. An index is written aside and renamed, and knows the size of its
shard: one that no longer fits is refused, never used.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sail_train.data.shard_file import ShardFile

if TYPE_CHECKING:
    from pyarrow import Table

SUFFIX = ".index.parquet"
VERSION = b"1"
VERSION_FIELD = b"sail_index"
SIZE_FIELD = b"shard_bytes"
OWN_COLUMNS = ("key", "offset", "size", "crc32")
"""Made with the index; `add_columns` does not replace them."""
CHUNK = 8 << 20
"""Bytes read at a time for a checksum."""


def index_path(shard: str) -> str:
    """Where the index of a shard is, whether there is one or not."""
    return shard.removesuffix(".tar") + SUFFIX


def read_index(shard: str) -> Table | None:
    """The index of a shard; None if it has none.

    Raises:
        ValueError: it is of another shard (the size differs), or cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    path = index_path(shard)
    if not os.path.exists(path):
        return None
    try:
        table = pyarrow.parquet.read_table(path, memory_map=False)
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); delete it and run `sail-train data index`") from error
    fields = table.schema.metadata or {}
    if fields.get(VERSION_FIELD) != VERSION or any(name not in table.column_names for name in OWN_COLUMNS):
        raise ValueError(f"{path} is no index that this version reads; delete it and run `sail-train data index`")
    size = os.path.getsize(shard)
    if fields.get(SIZE_FIELD) != str(size).encode():
        was = fields.get(SIZE_FIELD, b"").decode(errors="replace")
        raise ValueError(
            f"{path} is of a shard of {was} bytes, {shard} has {size}: it was replaced; delete the index and run "
            "`sail-train data index`"
        )
    return table


def write_index(shard: str, table: Table) -> None:
    """Writes a shard's index; metadata of the table's schema is kept. What is there is replaced as a whole."""
    import pyarrow.parquet

    size = str(os.path.getsize(shard)).encode()
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), VERSION_FIELD: VERSION, SIZE_FIELD: size})
    path = index_path(shard)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            pyarrow.parquet.write_table(table, file)
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
    index = file.index()
    columns: dict[str, list[Any]] = {name: [] for name in OWN_COLUMNS}
    for place in range(len(index)):
        start, end = index.span(place)
        key = index.bad[place][0] if place in index.bad else file.sample(index, place).key
        for name, value in zip(OWN_COLUMNS, (key, start, end - start, checksum(file, start, end)), strict=True):
            columns[name].append(value)
    file.close()
    types = (pyarrow.string(), pyarrow.int64(), pyarrow.int64(), pyarrow.uint32())
    return pyarrow.table(
        {name: pyarrow.array(columns[name], kind) for name, kind in zip(OWN_COLUMNS, types, strict=True)}
    )


def checksum(file: ShardFile, start: int, end: int) -> int:
    """crc32 of the bytes from `start` to `end`, or to the end of the file."""
    crc = 0
    while start < end and (block := file.read(start, min(CHUNK, end - start))):
        crc, start = zlib.crc32(block, crc), start + len(block)
    return crc


def ensure_index(shard: str) -> Table:
    """The index of a shard, made and written if there is none; ValueError as `read_index`."""
    table = read_index(shard)
    if table is None:
        table = build_index(shard)
        write_index(shard, table)
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
