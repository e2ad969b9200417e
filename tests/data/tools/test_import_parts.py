"""An import in processes and parts, cut off and gone on with, and what it leaves alone."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from records_made import import_list, llava

from sail_train.data.tools import import_span
from sail_train.data.tools.import_plan import ImportOptions
from sail_train.data.tools.importing import ImportReport, import_records
from sail_train.data.writer import write_shard


def many(pictures: Path, count: int = 23) -> Path:
    """Three files of records of three kinds, some of them bad."""
    folder = pictures / "many"
    folder.mkdir()
    records = [llava("<image>" if n % 5 else "no mark", image="a.png", id=n) for n in range(count)]
    (folder / "a.json").write_text(json.dumps(records, indent=1))
    (folder / "b.jsonl").write_text("\n".join([json.dumps(record) for record in records] + ["{", ""]))
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), folder / "c.parquet", row_group_size=4)
    return folder


def imported(folder: Path, out: Path, **more: Any) -> ImportReport:
    images = folder.parent
    return import_records(
        ImportOptions(input=folder, output=out, prefix="set", images=(images,), samples_per_shard=5, **more)
    )


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


def test_processes_and_parts_make_the_same_bytes(pictures: Path) -> None:
    folder = many(pictures)
    one = imported(folder, pictures / "one")
    assert (one.read, one.written, one.refused) == (70, 54, {"image_count": 15, "bad_json": 1}) and one.complete
    assert len(one.shards) == 15
    several = imported(folder, pictures / "several", jobs=2)
    first = imported(folder, pictures / "parts", part=(0, 2))
    assert not first.complete and 0 < len(first.shards) < 15
    assert imported(folder, pictures / "parts", part=(1, 2)).complete
    assert content(pictures / "one") == content(pictures / "several") == content(pictures / "parts")
    assert several.refused_file is not None and len(several.refused_file.read_text().splitlines()) == 16


def test_an_import_that_was_cut_off_goes_on_with_what_is_missing(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = many(pictures)
    imported(folder, pictures / "whole")
    written = []

    def killed(samples: Any, path: Path) -> None:
        if len(written) == 4:
            raise KeyboardInterrupt
        written.append(path)
        write_shard(samples, path)

    monkeypatch.setattr("sail_train.data.tools.import_span.write_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        imported(folder, pictures / "cut")
    monkeypatch.undo()
    # killed between a shard and its entry, an entry half written, and a shard that was lost
    entries = sorted((pictures / "cut" / ".import").glob("*.json"))
    entries[0].unlink()
    entries[1].write_text(entries[1].read_text()[:20])
    written[2].unlink()
    kept = written[3].stat().st_mtime_ns
    report = imported(folder, pictures / "cut")
    assert report.complete and report.skipped == 1 and written[3].stat().st_mtime_ns == kept
    assert content(pictures / "cut") == content(pictures / "whole")


def test_a_file_that_changes_is_not_mixed_in(pictures: Path) -> None:
    folder = many(pictures)
    imported(folder, pictures / "out")
    with open(folder / "b.jsonl", "a") as file:
        file.write(json.dumps(llava("one more")) + "\n")
    with pytest.raises(ValueError, match="imported from another state of .*b.jsonl"):
        imported(folder, pictures / "out")
    assert imported(folder, pictures / "out", overwrite=True).read == 71


def test_shards_of_something_else_are_left_alone(pictures: Path, make: SimpleNamespace) -> None:
    other = make.tar(pictures / "out" / "set-000000.tar", [("a.json", make.json())])
    with pytest.raises(ValueError, match="set-000000.tar is there already, from another import"):
        import_list(pictures, [llava("x")])
    assert other.stat().st_size > 0
    assert import_list(pictures, [llava("x")], overwrite=True)[0].written == 1


def test_an_input_that_vanishes_meanwhile_fails_its_shard_by_name(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = many(pictures)
    real = import_span.read

    def gone(span: Any) -> Any:
        if span.path.endswith("b.jsonl") and span.first == 5:
            raise FileNotFoundError(span.path)
        return real(span)

    monkeypatch.setattr("sail_train.data.tools.import_span.read", gone)
    report = imported(folder, pictures / "out")
    assert list(report.failed) == [str(pictures / "out" / "set-00001-000001.tar")] and not report.complete
    monkeypatch.undo()
    assert imported(folder, pictures / "out").complete


@pytest.mark.parametrize("prefix", ["", "a/b", ".hidden"])
def test_a_prefix_that_names_no_file_is_refused(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be the first part of a file's name"):
        ImportOptions(input=tmp_path, output=tmp_path, prefix=prefix)


def test_a_folder_of_images_that_is_none_is_refused(pictures: Path) -> None:
    with pytest.raises(ValueError, match="--images .*gone is not a folder"):
        import_list(pictures, [llava("x")], images=(pictures / "gone",))
