"""Importing foreign records: what is kept, what is refused, and that nothing is dropped without a word."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from records_made import chat, import_list, llava, shape

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.tools.import_plan import ImportOptions
from sail_train.data.tools.importing import import_records, run
from sail_train.data.tools.media import load_image, load_video
from sail_train.types import BadSample


def test_llava_records_become_conversations_with_their_original_images(pictures: Path) -> None:
    records = [
        llava(id=7, image="a.png"),
        llava("Compare <image>\nand\n<image> please", image=["a.png", "sub/b.png"]),
        llava("No picture", answer="<think>\nHm.\n</think>\n\nRight."),
    ]
    report, found, refused = import_list(pictures, records)
    assert (report.written, refused, report.refused_file) == (3, [], None)
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
    _, found, refused = import_list(pictures, records)
    assert refused == []
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
    _, found, refused = import_list(pictures, records)
    assert refused == []
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
    assert report.refused == {"bad_json": 1} and report.refused_file is not None
    assert "a.jsonl, line 3" in report.refused_file.read_text()


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
def test_what_cannot_be_used_is_refused_by_reason_and_the_rest_is_imported(
    pictures: Path, make: SimpleNamespace, record: Any, reason: str
) -> None:
    inside = pictures / "inside"
    inside.mkdir()
    (inside / "cut.png").write_bytes(make.broken_image())
    (inside / "a.png").write_bytes(make.image(1))
    (inside / "link.png").symlink_to(pictures / "a.png")
    report, found, refused = import_list(inside, [llava("before"), record, llava("after")])
    assert [shape(conversation)[0][1][0] for conversation in found] == ["before", "after"]
    assert [(line["record"], line["reason"]) for line in refused] == [(1, reason)] and refused[0]["detail"]
    assert report.written == 2 and report.refused == {reason: 1}


def test_an_image_over_the_limit_is_refused_unread(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sail_train.data.tools.media.MAX_MEMBER_BYTES", 100)
    url = "data:image/png;base64," + base64.b64encode((pictures / "a.png").read_bytes()).decode()
    for ref in ("a.png", url):
        with pytest.raises(BadSample, match="image_too_large"):
            load_image(ref, [pictures.resolve()])


@pytest.mark.parametrize(
    ("content", "more", "message"),
    [
        (b"{}", {}, "holds dict, not a list of records"),
        (b"{}\n{}", {}, "is not JSON .*JSON lines belong in a .jsonl file"),
        (b"[]", {"layout": "lava"}, "layout='lava' is none of .*; did you mean 'llava'"),
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
        ("a.csv", "input file type='.csv' is none of"),
        ("a.parquet", "cannot be read as Parquet"),
    ):
        with pytest.raises(ValueError, match=message):
            import_records(ImportOptions(input=tmp_path / name, output=tmp_path / "out", prefix="set"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no .json, .jsonl, .parquet, .tar file"):
        import_records(ImportOptions(input=tmp_path / "empty", output=tmp_path / "out", prefix="set"))


def test_a_limit_and_a_layout_hold(pictures: Path) -> None:
    report, found, _ = import_list(pictures, [llava("a"), llava("b"), llava("c")], limit=2)
    assert report.written == len(found) == 2
    report, _, refused = import_list(pictures, [llava("a")], layout="messages", overwrite=True)
    assert refused[0]["reason"] == "unknown_layout"


def test_the_command_reports_and_exits_by_the_share_of_refused(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "r.json").write_text(json.dumps([llava("a"), llava("b"), llava(image="gone.png")]))
    command = [str(pictures / "r.json"), str(pictures / "set")]
    assert run(command) == 1
    printed = capsys.readouterr().out
    assert "read 3 records = 2 written + 1 refused; 1 shards, 0 images" in printed
    assert "refused 1: image_missing" in printed and "set-refused.jsonl" in printed
    assert run([*command, "--max-refused", "0.5"]) == 0 and "1 shards were there already" in capsys.readouterr().out
    with pytest.raises(SystemExit) as stopped:
        run([*command, "--license", "MIT"])
    assert stopped.value.code == 2 and "with other settings; choose another folder" in capsys.readouterr().err
    assert run([*command, "--license", "MIT", "--overwrite", "--max-refused", "0.5", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["refused"] == {"image_missing": 1}
    with pytest.raises(SystemExit) as stopped:
        run(["--help"])
    printed = capsys.readouterr().out
    assert stopped.value.code == 0 and "example: sail-train data import" in printed and "geometry3k" in printed


def test_where_data_come_from_stands_in_the_folder_and_with_every_sample(pictures: Path) -> None:
    records = [llava(image="a.png"), llava(image="gone.png")]
    _, found, _ = import_list(pictures, records, license="MIT", origin="https://example.org/set")
    assert found[0].meta == {"source": "set", "license": "MIT", "origin": "https://example.org/set"}
    described = json.loads((pictures / "out" / "dataset.json").read_text())
    assert described["license"] == "MIT" and described["source"] == "https://example.org/set"
    assert (described["samples"], described["read"], described["shards"]) == (1, 2, 1) and described["complete"]
    assert described["bytes"] == (pictures / "out" / "set-000000.tar").stat().st_size
    assert described["refused"] == {"image_missing": 1} and described["map"]["layout"] == "auto"


def test_sharegpt_brings_a_system_text_and_lists_of_images(pictures: Path) -> None:
    records = [
        llava("<image><image>Which?", images=["a.png", "sub/b.png"], system="Be brief."),
        {**llava("x"), "tools": "[]", "system": ""},
    ]
    _, found, refused = import_list(pictures, records, layout="sharegpt")
    assert shape(found[0])[:2] == [("system", ["Be brief."]), ("user", ["<img>", "<img>", "Which?"])]
    assert found[0].images == ((pictures / "a.png").read_bytes(), (pictures / "sub/b.png").read_bytes())
    assert [line["reason"] for line in refused] == ["tools"]


def test_questions_keep_the_answer_that_they_are_graded_by(pictures: Path) -> None:
    records = [
        {"images": ["a.png"], "problem": "<image>Find x.", "answer": "17"},
        {"question": "Find y.", "answer": 0.5, "verifier": "number"},
        {"question": "Find z.", "answer": "3", "solution": "<think>\n1+2\n</think>\n\n3"},
    ]
    _, found, refused = import_list(pictures, records, verifier="math")
    assert refused == [] and shape(found[0]) == [("user", ["<img>", "Find x."])]
    assert [(one.answer, one.verifier, one.mode) for one in found] == [
        ("17", "math", None), ("0.5", "number", None), ("3", "math", "think"),
    ]  # fmt: skip


def test_a_preference_pair_stands_in_the_samples_json(pictures: Path) -> None:
    better, worse = "A cat.", "A dog."
    records = [
        {"image": "a.png", "question": "<image>\nWhat?", "chosen": better, "rejected": worse},
        {
            "images": ["a.png"],
            "prompt": [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}],
            "chosen": [{"role": "assistant", "content": better}],
            "rejected": [{"role": "assistant", "content": [{"type": "text", "text": worse}]}],
        },
        {"prompt": "What?", "chosen": better, "rejected": worse},
    ]
    _, found, refused = import_list(pictures, records)
    assert refused == []
    for one in found:
        assert one.messages[-1].text == better and one.meta["preference"] == {"chosen": better, "rejected": worse}
    assert found[0].images == found[1].images == ((pictures / "a.png").read_bytes(),) and found[2].images == ()


def test_films_are_taken_as_they_are_and_looked_into(
    pictures: Path, encoded_video: Callable[..., bytes], make: SimpleNamespace
) -> None:
    film = encoded_video(count=4)
    (pictures / "a.mp4").write_bytes(film)
    (pictures / "b.mp4").write_bytes(film[:200])
    records = [
        llava("<video>\nWhat happens?", video="a.mp4"),
        llava("<image>\nWhat happens?", video="a.mp4"),
        chat([{"type": "video_url", "video_url": {"url": "a.mp4"}}, {"type": "text", "text": "What?"}]),
        llava("<video><image>both", video="a.mp4", image="a.png"),
        llava("<video>", video="b.mp4"),
        llava("<video>", video="a.png"),
        llava("a word of HTML: <video>"),
    ]
    report, found, refused = import_list(pictures, records)
    assert report.videos == 4 and [one.videos for one in found] == [(film,)] * 4 + [()]
    assert [part.type for part in found[3].messages[0].content] == ["video", "image", "text"]
    assert [line["reason"] for line in refused] == ["video_no_frames", "video_unreadable"]
    assert found[4].messages[0].text == "a word of HTML: <video>"


def test_a_film_is_taken_by_its_first_bytes_without_pyav(
    pictures: Path, encoded_video: Callable[..., bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cut = encoded_video(count=4)[:200]
    monkeypatch.setattr("sail_train.data.tools.media.importlib.util.find_spec", lambda name: None)
    assert load_video(cut, [pictures]) == cut
    with pytest.raises(BadSample, match="video_unreadable"):
        load_video(b"GIF89a", [pictures])


@pytest.mark.parametrize("encoded", ["plain", "url"])
def test_base64_is_no_path(pictures: Path, encoded: str) -> None:
    content = (pictures / "a.png").read_bytes()
    ref = base64.b64encode(content).decode()
    assert load_image(ref if encoded == "plain" else f"data:image/png;base64,{ref}", [pictures]) == (content, "")
    with pytest.raises(BadSample, match="image_unreadable"):
        load_image(ref[:-1], [pictures])


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ({"problem": "x", "answer": "1"}, "no_verifier"),
        ({"problem": "x", "answer": None, "verifier": "math"}, "bad_messages"),
        ({"problem": " ", "answer": "1", "verifier": "math"}, "bad_messages"),
        ({"problem": "x", "answer": "1", "verifier": "maths"}, "bad_field"),
        ({"problem": "x", "answer": True, "verifier": "math"}, "bad_field"),
        ({"question": "x", "chosen": "a", "rejected": "a "}, "no_preference"),
        ({"question": "x", "chosen": "", "rejected": "a"}, "empty_answer"),
        ({"question": "x", "chosen": [], "rejected": "a"}, "bad_messages"),
        ({"prompt": "x", "chosen": [{"role": "assistant", "content": [{"type": "image"}]}], "rejected": "a"},
         "bad_messages"),
        ({"texts": []}, "bad_messages"),
        ({"texts": [{"user": "x", "assistant": None}]}, "bad_messages"),
        ({**llava("x"), "system": "a", "conversations": [{"from": "system", "value": "b"}]}, "bad_messages"),
        (llava("x", video="a.mp4"), "video_count"),
        (llava("<video>", video="../a.mp4"), "outside_folder"),
        (llava("<video>", video="gone.mp4"), "video_missing"),
        (llava("<video>", video="https://example.org/a.mp4"), "remote_video"),
    ],
)  # fmt: skip
def test_records_of_the_other_layouts_are_refused_by_reason_too(
    pictures: Path, record: dict[str, Any], reason: str
) -> None:
    _, found, refused = import_list(pictures, [record, llava("after")])
    assert len(found) == 1 and [line["reason"] for line in refused] == [reason] and refused[0]["detail"]


def test_images_without_a_mark_come_first_where_that_is_asked_for(pictures: Path) -> None:
    records = [llava("What?", image="a.png"), llava("<image>What?", image=["a.png", "a.png"]), llava("none")]
    _, found, refused = import_list(pictures, records, marks="prepend")
    assert shape(found[0])[0] == ("user", ["<img>", "What?"]) and shape(found[1])[0] == ("user", ["none"])
    assert [line["reason"] for line in refused] == ["image_count"]
    only = {"conversations": [{"from": "gpt", "value": "Hello."}], "image": "a.png"}
    (pictures / "out").rename(pictures / "before")
    assert import_list(pictures, [only], marks="prepend")[2][0]["reason"] == "bad_messages"
