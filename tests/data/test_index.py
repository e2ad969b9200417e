"""The index beside a shard: what it says, when it is refused, and how tools add to it."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from sail_train.data import index
from sail_train.data.shard_file import ShardFile


@pytest.fixture
def shard(tmp_path: Path, make: SimpleNamespace) -> str:
    files = [(f"s{n}.{kind}", body) for n in range(3) for kind, body in (("0.png", make.image(n)), ("json", b"{}"))]
    return str(make.tar(tmp_path / "000000.tar", [*files, ("bad.pickle", b"x")]))


def test_an_index_tells_place_and_checksum_of_every_sample_the_bad_ones_too(shard: str) -> None:
    table = index.build_index(shard)
    assert table.column("key").to_pylist() == ["s0", "s1", "s2", "bad"]
    content = Path(shard).read_bytes()
    for row in table.to_pylist():
        assert zlib.crc32(content[row["offset"] : row["offset"] + row["size"]]) == row["crc32"]
    file = ShardFile(shard, source="x")
    found = file.index()
    assert table.column("offset").to_pylist() == list(found.starts) and set(found.bad) == {3}


def test_an_index_comes_back_as_it_was_written_with_its_metadata(shard: str) -> None:
    assert index.read_index(shard) is None
    table = index.build_index(shard).replace_schema_metadata({"mine": "kept"})
    index.write_index(shard, table)
    again = index.read_index(shard)
    assert again is not None and again.equals(table) and again.schema.metadata[b"mine"] == b"kept"
    assert sorted(os.listdir(Path(shard).parent)) == ["000000.index.parquet", "000000.tar"]


def test_columns_are_added_and_replaced_and_may_hold_nulls(shard: str) -> None:
    index.add_columns(shard, {"weight": [1.0, 2.0, None, 0.5], "language": ["en", "zh", None, ""]})
    index.add_columns(shard, {"weight": [0, 0, 0, 0]})
    table = index.ensure_index(shard)
    assert table.column("weight").to_pylist() == [0] * 4
    assert table.column("language").to_pylist() == ["en", "zh", None, ""]


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [("weight", [1], "has 1 values for 4 samples"), ("crc32", [1] * 4, "the index's own")],
)
def test_columns_that_do_not_fit_are_refused(shard: str, name: str, values: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        index.add_columns(shard, {name: values})


def test_the_index_of_another_shard_is_refused(shard: str) -> None:
    index.ensure_index(shard)
    with open(shard, "ab") as file:
        file.write(bytes(512))
    with pytest.raises(ValueError, match="it was replaced; delete the index"):
        index.read_index(shard)


def test_what_is_no_index_is_refused(shard: str) -> None:
    path = index.index_path(shard)
    Path(path).write_bytes(b"PAR1 nonsense")
    with pytest.raises(ValueError, match="cannot be read"):
        index.read_index(shard)
    pyarrow.parquet.write_table(pyarrow.table({"key": ["a"]}), path)
    with pytest.raises(ValueError, match="is no index that this version reads"):
        index.read_index(shard)


def test_a_half_shard_has_an_index_of_what_is_there(shard: str) -> None:
    with open(shard, "r+b") as file:
        file.truncate(700)
    table = index.ensure_index(shard)
    assert len(table) >= 1 and index.read_index(shard) is not None


def test_a_column_says_what_it_was_made_by_wherever_its_index_goes(shard: str) -> None:
    index.add_columns(shard, {"score": [1, 2, None, 4]}, origin="the judge")
    index.add_columns(shard, {"weight": [1, 1, 1, 1]})
    table = index.ensure_index(shard)
    assert index.column_origin(table, "score") == "the judge" == index.column_origin(table.slice(1, 2), "score")
    assert index.column_origin(table, "weight") == index.column_origin(table, "none") == ""
    index.add_columns(shard, {"score": [1, 2, 3, 4]})
    assert index.column_origin(index.ensure_index(shard), "score") == ""


def test_an_index_is_of_the_shard_that_stands_there_now(shard: str, tmp_path: Path) -> None:
    table = index.ensure_index(shard)
    (tmp_path / "new").write_bytes(Path(shard).read_bytes() + bytes(1024))
    os.replace(tmp_path / "new", shard)
    index.write_index(shard, table)
    assert index.last_known(shard) == (3, os.path.getsize(shard)), "and not of the one that this thread has open"
