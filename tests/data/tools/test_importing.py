"""Importing foreign records: what is kept, what is refused, and that nothing is dropped without a word."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.tools.importing import ImportOptions, ImportReport, import_records, load_image, run
from sail_train.types import BadSample, Conversation


def import_list(folder: Path, records: list[Any] | bytes, **more: Any) -> tuple[ImportReport, list[Conversation], Any]:
    """(report, what training then reads, the rejected lines)."""
    path = folder / "records.json"
    path.write_bytes(records if isinstance(records, bytes) else json.dumps(records).encode())
    report = import_records(ImportOptions(input=path, output=folder / "out", prefix="set", **more))
    found = held_out({"set": SourceConfig(shards=[str(path) for path in report.shards])}) if report.shards else []
    lines = report.rejected_file.read_text().splitlines() if report.rejected_file else []
    return report, found, [json.loads(line) for line in lines]


def llava(value: str = "<image>\nWhat is it?", answer: str = "A cat.", **more: Any) -> dict[str, Any]:
    return {"conversations": [{"from": "human", "value": value}, {"from": "gpt", "value": answer}], **more}


def chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content}, {"role": "assistant", "content": "A cat."}], **more}


def shape(conversation: Conversation) -> list[tuple[str, list[str]]]:
    return [
        (message.role, [part.text if part.type == "text" else "<img>" for part in message.content])
        for message in conversation.messages
    ]


@pytest.fixture
def pictures(tmp_path: Path, make: SimpleNamespace) -> Path:
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(["a.png", "sub/b.png"]):
        (tmp_path / name).write_bytes(make.image(number))
    return tmp_path


def test_llava_records_become_conversations_with_their_original_images(pictures: Path) -> None:
    records = [
        llava(id=7, image="a.png"),
        llava("Compare <image>\nand\n<image> please", image=["a.png", "sub/b.png"]),
        llava("No picture", answer="<think>\nHm.\n</think>\n\nRight."),
    ]
    report, found, rejected = import_list(pictures, records)
    assert (report.imported, rejected, report.rejected_file) == (3, [], None)
    assert shape(found[0]) == [("user", ["<img>", "What is it?"]), ("assistant", ["A cat."])]
    assert shape(found[1])[0] == ("user", ["Compare ", "<img>", "and", "<img>", " please"])
    assert found[0].images == ((pictures / "a.png").read_bytes(),)
    assert found[1].images[1] == (pictures / "sub" / "b.png").read_bytes()
    assert [conversation.mode for conversation in found] == ["direct", "direct", "think"]
    assert found[0].key == "00000000" and found[0].meta == {"source": "set", "id": "7"}


def test_openai_messages_take_paths_and_data_urls(pictures: Path) -> None:
    url = "data:image/png;base64," + base64.b64encode((pictures / "a.png").read_bytes()).decode()
    records = [
        chat([{"type": "text", "text": "What <image> is"}, {"type": "image_url", "image_url": {"url": url}}]),
        chat([{"type": "image_url", "image_url": "sub/b.png"}, {"type": "text", "text": "this?"}], answer="cat"),
        chat([{"type": "image", "image": f"file://{pictures}/a.png"}], verifier="exact", mode="direct"),
    ]
    _, found, rejected = import_list(pictures, records)
    assert rejected == []
    assert shape(found[0])[0] == ("user", ["What <image> is", "<img>"])
    assert found[0].images == found[2].images == ((pictures / "a.png").read_bytes(),)
    assert shape(found[1])[0] == ("user", ["<img>", "this?"]) and found[1].answer == "cat"
    assert found[2].verifier == "exact"


def test_listed_images_fill_marks_and_empty_parts_in_order(pictures: Path) -> None:
    records = [
        {
            "messages": [
                {"role": "user", "content": "<image> first"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "plain"},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "second"}]},
            ],
            "images": ["a.png", {"bytes": None, "path": "sub/b.png"}],
        },
        chat("a literal <image> without any"),
    ]
    _, found, rejected = import_list(pictures, records)
    assert rejected == []
    assert [images for _, images in shape(found[0])] == [["<img>", " first"], ["yes"], ["plain"], ["<img>", "second"]]
    assert found[0].images == ((pictures / "a.png").read_bytes(), (pictures / "sub/b.png").read_bytes())
    assert shape(found[1])[0] == ("user", ["a literal <image> without any"]) and found[0].mode is None


def test_json_lines_and_parquet_are_read_and_folders_of_them(pictures: Path, make: SimpleNamespace) -> None:
    import pyarrow
    import pyarrow.parquet

    folder = pictures / "records"
    folder.mkdir()
    (folder / "a.jsonl").write_text(json.dumps(llava("Hi")) + "\n\n{broken\n" + json.dumps(chat("Ho")) + "\n")
    rows = [{"id": "p", "images": [{"bytes": make.image(9), "path": None}], **chat("<image>what")}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "b.parquet")
    report = import_records(ImportOptions(input=folder, output=pictures / "out", prefix="set"))
    found = held_out({"set": SourceConfig(shards=str(pictures / "out" / "*.tar"))})
    assert [shape(conversation)[0][1][-1] for conversation in found] == ["Hi", "Ho", "what"]
    assert found[2].images == (make.image(9),)
    assert report.rejected == {"bad_json": 1} and report.rejected_file is not None
    assert "a.jsonl, line 3" in report.rejected_file.read_text()


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (3, "bad_record"),
        ({"text": "hi"}, "unknown_layout"),
        ({"conversations": []}, "bad_messages"),
        ({"conversations": [{"from": "human"}]}, "bad_messages"),
        ({"conversations": [{"from": "robot", "value": "x"}]}, "bad_role"),
        ({"messages": "hi"}, "bad_messages"),
        ({"messages": ["hi"]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": None}]}, "bad_messages"),
        ({"messages": [{"role": [], "content": "x"}]}, "bad_role"),
        (chat([{"type": "audio"}]), "bad_messages"),
        (llava("no mark", image="a.png"), "image_count"),
        (llava("<image><image>", image="a.png"), "image_count"),
        (chat("no mark", images=["a.png"]), "image_count"),
        (chat([{"type": "image"}]), "image_count"),
        (llava(image="gone.png"), "image_missing"),
        (llava(image="a\0.png"), "image_missing"),
        (llava(image="x" * 5000), "image_missing"),
        (llava(image="../a.png"), "outside_folder"),
        (llava(image="/etc/passwd"), "outside_folder"),
        (llava(image="link.png"), "outside_folder"),
        (llava(image="file:///etc/passwd"), "outside_folder"),
        (llava(image="http://169.254.169.254/latest"), "remote_image"),
        (llava(image="s3://bucket/a.png"), "remote_image"),
        (llava(image="records.json"), "image_unreadable"),
        (llava(image="cut.png"), "image_undecodable"),
        (llava(image="data:image/png;base64,@@"), "image_unreadable"),
        (llava(image="data:text/html,x"), "image_unreadable"),
        (llava(image=5), "image_unreadable"),
        (llava("x", answer="\ud800"), "bad_text"),
        (llava("x", id="\ud800"), "bad_text"),
        ({**llava("x"), "answer": 4}, "bad_field"),
        ({**llava("x"), "mode": "slow"}, "bad_field"),
    ],
)
def test_what_cannot_be_used_is_rejected_by_reason_and_the_rest_is_imported(
    pictures: Path, make: SimpleNamespace, record: Any, reason: str
) -> None:
    inside = pictures / "inside"
    inside.mkdir()
    (inside / "cut.png").write_bytes(make.broken_image())
    (inside / "a.png").write_bytes(make.image(1))
    (inside / "link.png").symlink_to(pictures / "a.png")
    report, found, rejected = import_list(inside, [llava("before"), record, llava("after")])
    assert [shape(conversation)[0][1][0] for conversation in found] == ["before", "after"]
    assert [(line["record"], line["reason"]) for line in rejected] == [(1, reason)] and rejected[0]["detail"]
    assert report.imported == 2 and report.rejected == {reason: 1}


def test_an_image_over_the_limit_is_rejected_unread(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sail_train.data.tools.importing.MAX_MEMBER_BYTES", 100)
    url = "data:image/png;base64," + base64.b64encode((pictures / "a.png").read_bytes()).decode()
    for ref in ("a.png", url):
        with pytest.raises(BadSample, match="image_too_large"):
            load_image(ref, pictures.resolve())


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"{}", {}, "holds dict, not a list of records"),
        (b"{}\n{}", {}, "is not JSON .*JSON lines belong in a .jsonl file"),
        (b"[]", {"layout": "lava"}, "layout='lava' is none of llava, messages; did you mean 'llava'"),
        (b"[]", {"samples_per_shard": 0}, "samples_per_shard=0 must be"),
    ],
)
def test_impossible_imports_say_what_to_do(tmp_path: Path, content: bytes, more: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        import_list(tmp_path, content, **more)


def test_missing_and_unknown_inputs_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for name, message in (
        ("gone.json", "gone.json does not exist"),
        ("a.csv", "input file type='.csv' is none of .json, .jsonl, .parquet"),
        ("a.parquet", "cannot be read as Parquet"),
    ):
        with pytest.raises(ValueError, match=message):
            import_records(ImportOptions(input=tmp_path / name, output=tmp_path / "out", prefix="set"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .json, .jsonl, .parquet file"):
        import_records(ImportOptions(input=tmp_path / "empty", output=tmp_path / "out", prefix="set"))


def test_a_limit_and_a_layout_hold(pictures: Path) -> None:
    report, found, _ = import_list(pictures, [llava("a"), llava("b"), llava("c")], limit=2)
    assert report.imported == len(found) == 2
    report, _, rejected = import_list(pictures, [llava("a")], layout="messages", overwrite=True)
    assert rejected[0]["reason"] == "unknown_layout"


def test_the_command_reports_and_exits_by_the_share_of_rejects(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "r.json").write_text(json.dumps([llava("a"), llava("b"), llava(image="gone.png")]))
    command = [str(pictures / "r.json"), "--out", str(pictures / "out"), "--prefix", "set"]
    assert run(command) == 1
    printed = capsys.readouterr().out
    assert "imported 2 records into 1 shards" in printed and "rejected 1: image_missing" in printed
    assert "set-rejected.jsonl" in printed
    assert run([*command, "--overwrite", "--max-rejected", "0.5"]) == 0
    with pytest.raises(SystemExit) as stopped:
        run(command)
    assert stopped.value.code == 2 and "choose another prefix" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        run(["--help"])
    assert stopped.value.code == 0 and "example: sail-train data import" in capsys.readouterr().out
