"""Files of records: their spans, each span's records, and that none is lost between two."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.data.tools.import_plan import ImportOptions
from sail_train.data.tools.importing import import_records
from sail_train.data.tools.records import Span, inputs, read, spans
from sail_train.data.tools.records_hf import _opened, parse
from sail_train.types import BadSample

RECORDS = [{"n": n, "text": "é\u2028\n" * (n % 3)} for n in range(11)]


def table(path: Path, records: list[dict[str, Any]] = RECORDS, *, rows: int = 3) -> Path:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path, row_group_size=rows)
    return path


def made(folder: Path, kind: str, make: SimpleNamespace) -> str:
    path = folder / f"set{kind}"
    if kind == ".parquet":
        table(path)
    elif kind == ".tar":
        make.tar(path, [(f"{record['n']}.json", json.dumps(record).encode()) for record in RECORDS])
    elif kind == ".jsonl":
        path.write_text("\n".join(f"{json.dumps(record)}{chr(10) * (record['n'] % 2)}" for record in RECORDS))
    else:
        path.write_text("\ufeff" + json.dumps(RECORDS, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("size", [1, 4, 5, 11, 100])
@pytest.mark.parametrize("kind", [".json", ".jsonl", ".parquet", ".tar"])
def test_spans_hold_every_record_once_and_in_order(tmp_path: Path, make: SimpleNamespace, kind: str, size: int) -> None:
    path = made(tmp_path, kind, make)
    found = list(spans(path, size))
    assert [span.count for span in found] == [min(size, 11 - first) for first in range(0, 11, size)]
    assert [span.first for span in found] == list(range(0, 11, size))
    records = [record for span in found for record in read(span)]
    assert [{"n": record["n"], "text": record["text"]} for record in records] == RECORDS


@pytest.mark.parametrize("content", ["[]", " [ ] ", "[1]", '[1, {"a": [2]} , "]"]', "[[],[]]"])
def test_lists_of_any_form_are_read_as_json_reads_them(tmp_path: Path, content: str) -> None:
    (tmp_path / "a.json").write_text(content)
    assert [record for span in spans(str(tmp_path / "a.json"), 1) for record in read(span)] == json.loads(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1}', "holds dict, not a list"),
        (b"[1] [2]", "more after the list, at character 3.$"),
        (b'{"a": 1}\n{"a": 2}\n', "JSON lines belong in a .jsonl file: rename it"),
        (b'{"a": 1\n}', "holds dict"),
        (b'[{"a": 1},\n{"a"', "its list has no end: was the file cut short"),
        (b"[1, 2], 3]", "more after the list, at character 6.$"),
        (b" \n", "is not JSON .*: it is empty"),
        ('["\u4f60"]'.encode("gbk"), "is not JSON in UTF-8 .* at byte 2.*iconv -f GBK"),
        (b"[1 2]", "no comma at character 3"),
        (b"[1,", "is not JSON"),
        (b"[1,]", "is not JSON"),
        (b"", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
    ],
)
def test_what_is_no_list_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        list(spans(str(tmp_path / "a.json"), 2))


def test_a_file_that_became_another_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(RECORDS))
    *_, last = spans(str(path), 4)
    path.write_text(json.dumps(RECORDS[:3]))
    with pytest.raises(ValueError, match="changed while it was read"):
        list(read(last))
    path.write_text("x" * 5000)
    with pytest.raises(ValueError, match="changed while it was read"):
        list(read(last))


def test_a_bad_line_is_named_by_its_number_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"a": 1}\n\n{"a": 2}\n\n{broken\n')
    _, last = spans(str(tmp_path / "a.jsonl"), 2)
    (bad,) = read(last)
    assert isinstance(bad, BadSample) and bad.detail.startswith("a.jsonl, line 5")


def test_parquet_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet")
    first, *_ = spans(str(path), 4)
    path.write_bytes(path.read_bytes()[:40] + b"\0" * 60 + path.read_bytes()[100:])
    with pytest.raises(ValueError, match="cannot be read as Parquet|changed while it was read"):
        list(read(first))


def test_a_folder_is_its_files_or_those_of_its_folders(tmp_path: Path) -> None:
    for name in ("b/1.parquet", "a/0.parquet", "a/.hidden.json", "a/x.txt", "out/7.tar"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert inputs(str(tmp_path), apart_from=tmp_path / "out") == [
        str(tmp_path / "a" / "0.parquet"), str(tmp_path / "b" / "1.parquet"),
    ]  # fmt: skip
    (tmp_path / "top.json").touch()
    assert inputs(str(tmp_path)) == [str(tmp_path / "top.json")]
    assert inputs("hf:org/name") == ["hf:org/name"]
    with pytest.raises(ValueError, match="org/name does not exist; .*is named hf:org/name"):
        inputs("org/name")


def test_a_name_has_a_subset_and_a_split() -> None:
    assert parse("hf:org/name") == ("org/name", None, "train")
    assert parse("hf:org/name:CLEVR-Math(MathV360K)") == ("org/name", "CLEVR-Math(MathV360K)", "train")
    assert parse("hf:org/name::test") == ("org/name", None, "test")
    with pytest.raises(ValueError, match="names no data set"):
        parse("hf:")


@pytest.fixture
def saved(tmp_path: Path, make: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the library saved, of pictures as it stores them."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    datasets = pytest.importorskip("datasets")
    rows = [
        {"images": [{"bytes": make.image(n), "path": None}], "problem": "<image>?", "answer": str(n)} for n in range(5)
    ]
    features = datasets.Features(
        {"images": [datasets.Image()], "problem": datasets.Value("string"), "answer": datasets.Value("string")}
    )
    kept = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": kept, "test": kept.select([0])}).save_to_disk(tmp_path / "saved")
    _opened.cache_clear()
    return tmp_path / "saved"


def test_a_saved_data_set_keeps_its_pictures_bytes(saved: Path, make: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match=r"holds several splits \(test, train\); name one, as in .*saved/train"):
        inputs(str(saved))
    (path,) = inputs(str(saved / "train"))
    found = [record for span in spans(path, 2) for record in read(span)]
    assert [record["answer"] for record in found] == list("01234")
    assert found[3]["images"][0]["bytes"] == make.image(3)


def test_a_data_set_is_imported_by_name(saved: Path, tmp_path: Path, make: SimpleNamespace) -> None:
    folder = tmp_path / "local"
    folder.mkdir()
    table(folder / "train.parquet", [{"conversations": [{"from": "gpt", "value": "x"}], "id": str(n)} for n in (1, 2)])
    report = import_records(ImportOptions(input=f"hf:{folder}", output=tmp_path / "out", prefix="set"))
    assert (report.read, report.written) == (2, 2)


def test_what_the_library_does_not_find_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    with pytest.raises(ValueError, match="hf:.*gone cannot be opened"):
        list(spans(f"hf:{tmp_path}/gone", 2))
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r"pip install 'sail-train\[import\]'"):
        list(spans("hf:org/name", 2))


def test_a_tars_records_bring_their_pictures(tmp_path: Path, make: SimpleNamespace) -> None:
    files = [("a.0.png", make.image(1)), ("a.json", b'{"image": "x.jpg", "n": 1}'), ("b.json", b"{"), ("c.txt", b"x")]
    (span,) = spans(str(make.tar(tmp_path / "a.tar", files)), 9)
    good, *bad = read(span)
    assert good == {"id": "a", "n": 1, "images": [make.image(1)]}
    assert [error.reason for error in bad] == ["bad_json", "no_json"] and "a.tar" in bad[0].detail


def test_less_than_promised_is_an_error(tmp_path: Path) -> None:
    path = table(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="3 records from 8 on, not 9"):
        list(read(Span(path=str(path), first=8, count=9)))
