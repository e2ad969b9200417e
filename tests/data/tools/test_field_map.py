"""The shipped maps of public data sets, each on records of that set's shape; and what a map may say."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.data.config import SourceConfig
from sail_train.data.held_out import held_out
from sail_train.data.tools.field_map import FieldMap, load_map, shipped
from sail_train.data.tools.import_plan import ImportOptions
from sail_train.data.tools.importing import ImportReport, import_records, run
from sail_train.rewards.verifiers import verify
from sail_train.types import BadSample, Conversation


def turns(question: str, answer: str) -> list[dict[str, str]]:
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def taken(name: str, source: Path, out: Path, *, images: Path | None = None) -> tuple[ImportReport, list[Conversation]]:
    folders = () if images is None else (images,)
    report = import_records(
        ImportOptions(input=source, output=out, prefix=name, map=load_map(name), images=folders, samples_per_shard=2)
    )
    assert report.read == report.written + report.refused.total() and report.complete
    return report, held_out({name: SourceConfig(shards=[str(path) for path in report.shards])})


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        path.write_text(json.dumps(records))
    return path


def parts(conversation: Conversation) -> list[str]:
    return [part.text or f"<{part.type}>" for message in conversation.messages for part in message.content]


@pytest.fixture
def picture(tmp_path: Path, make: SimpleNamespace) -> bytes:
    """Also as images/a.png and images/sub/b.png."""
    for name in ("a.png", "sub/b.png"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make.image(1))
    return make.image(1)


@pytest.mark.parametrize(
    ("name", "record"),
    [
        ("llava_pretrain", {"id": "004539375", "image": "a.png", "blip_caption": "a cat"}),
        ("llava_instruct_150k", {"id": "000000033471", "image": "sub/b.png"}),
        ("mathv360k", {"id": "identity_156232", "image": "sub/b.png"}),
    ],
)
def test_json_of_llavas_shape(tmp_path: Path, picture: bytes, name: str, record: dict[str, Any]) -> None:
    source = write(tmp_path / "set.json", [{**record, "conversations": turns("<image>\nWhat?", "A cat.")}] * 3)
    _, found = taken(name, source, tmp_path / "out", images=tmp_path / "images")
    assert [parts(one) for one in found] == [["<image>", "What?", "A cat."]] * 3
    assert found[0].images == (picture,) and found[0].meta["id"] == record["id"]


def test_llava_onevision_has_text_alone_where_the_image_is_null(tmp_path: Path, picture: bytes) -> None:
    rows: list[dict[str, Any]] = [
        {"id": "a", "image": {"bytes": picture, "path": None}, "conversations": turns("<image>\nWhat?", "A cat."),
         "data_source": "tqa(cauldron,llava_format)"},
        {"id": "b", "image": None, "conversations": turns("1+1?", "2"), "data_source": "magpie"},
    ]  # fmt: skip
    write(tmp_path / "set" / "tqa" / "train-00000.parquet", rows)
    write(tmp_path / "set" / "magpie" / "train-00000.parquet", rows[1:])
    _, found = taken("llava_onevision", tmp_path / "set", tmp_path / "out")
    assert [len(one.images) for one in found] == [0, 1, 0] and found[1].images == (picture,)
    assert [one.meta["data_source"] for one in found] == ["magpie", "tqa(cauldron,llava_format)", "magpie"]
    assert [one.key for one in found] == ["00000-00000000", "00001-00000000", "00001-00000001"]


def test_llava_video_marks_films_as_images(tmp_path: Path, encoded_video: Callable[..., bytes]) -> None:
    film = encoded_video(count=3)
    (tmp_path / "0_30_s").mkdir()
    (tmp_path / "0_30_s" / "v.mp4").write_bytes(film)
    record = {"id": "v", "conversations": turns("<image>\nWhat?", "A cat."), "data_source": "0_30_s", "video": "v.mp4"}
    _, (found,) = taken(
        "llava_video_178k", write(tmp_path / "s.json", [record]), tmp_path / "out", images=tmp_path / "0_30_s"
    )
    assert found.videos == (film,) and parts(found)[0] == "<video>" and found.meta["data_source"] == "0_30_s"


def mmpr(folder: Path, make: SimpleNamespace) -> Path:
    """MMPR-v1.2 as it is unpacked."""
    root = folder / "MMPR-v1.2"
    pairs = [
        {"image": "x.png", "question": "What?", "chosen": "A cat.", "rejected": "A dog."},
        {"image": ["x.png", "y.png"], "question": "<image><image>Same?", "chosen": "No.", "rejected": "Yes."},
    ]
    for name in ("x.png", "y.png"):
        path = root / "images" / "geo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make.image(3))
    write(root / "annotations" / "geo_en.jsonl", pairs)
    table = {"geo": {"root": "MMPR-v1.2/images/geo", "annotation": "MMPR-v1.2/annotations/geo_en.jsonl"}}
    (root / "meta.json").write_text(json.dumps(table))
    return root


def test_mmpr_names_the_folder_of_each_files_images(tmp_path: Path, make: SimpleNamespace) -> None:
    root = mmpr(tmp_path, make)
    _, found = taken("mmpr_v1_2", root / "annotations", tmp_path / "out", images=tmp_path)
    assert [parts(one) for one in found] == [["<image>", "What?", "A cat."], ["<image>", "<image>", "Same?", "No."]]
    assert found[1].meta["preference"] == {"chosen": "No.", "rejected": "Yes."} and found[1].images[0] == make.image(3)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (None, "no meta.json beside"),
        ("[]", "is no table"),
        ('{"a": {"root": "x"}}', "is no table"),
        ('{"a": {"root": "x", "annotation": "other.jsonl"}}', "has no entry for geo_en.jsonl"),
    ],
)
def test_a_table_of_folders_that_does_not_fit_is_refused(
    tmp_path: Path, make: SimpleNamespace, table: str | None, message: str
) -> None:
    root = mmpr(tmp_path, make)
    (root / "meta.json").unlink()
    if table is not None:
        (root / "meta.json").write_text(table)
    with pytest.raises(ValueError, match=message):
        taken("mmpr_v1_2", root / "annotations", tmp_path / "out", images=tmp_path)


def test_geometry3k_is_asked_and_graded(tmp_path: Path, picture: bytes) -> None:
    row = {"images": [{"bytes": picture, "path": None}], "problem": "<image>Find x.", "answer": "2 \\sqrt { 221 }"}
    _, (found,) = taken("geometry3k", write(tmp_path / "train.parquet", [row]), tmp_path / "out")
    assert parts(found) == ["<image>", "Find x."] and found.images == (picture,) and found.verifier == "math"
    assert verify("math", str(found.answer), "\\boxed{2\\sqrt{221}}").value == 1.0


def test_virl39k_keeps_pass_rates_and_boxed_answers(tmp_path: Path, picture: bytes) -> None:
    row = {
        "question": "<image>How many?", "answer": "\\boxed{17}", "PassRate_32BTrained": 0.5, "PassRate_7BBase": None,
        "category": "counting", "source": "clevr", "qid": "q1", "image": ["images/a.png"],
    }  # fmt: skip
    rows = [row, {**row, "question": "How many?", "PassRate_7BBase": 0.25}]
    _, found = taken("virl39k", write(tmp_path / "39Krelease.parquet", rows), tmp_path / "out")
    assert [parts(one) for one in found] == [["<image>", "How many?"]] * 2
    assert found[0].meta == {
        "source": "virl39k", "category": "counting", "from_set": "clevr", "pass_rate_32b_trained": 0.5, "id": "q1",
        "license": "MIT", "origin": "https://huggingface.co/datasets/TIGER-Lab/ViRL39K",
    }  # fmt: skip
    assert found[1].meta["pass_rate_7b_base"] == 0.25
    assert verify("math", str(found[0].answer), "It is \\boxed{17}.").value == 1.0


def test_llava_cots_stages_become_a_thought_and_an_answer(tmp_path: Path, picture: bytes) -> None:
    staged = "<SUMMARY> Look. </SUMMARY>\n\n<CAPTION> A cat. </CAPTION>\n\n<REASONING> Whiskers. </REASONING>\n\n"
    whole = f"{staged}<CONCLUSION> B </CONCLUSION>"
    records = [
        {"id": "1", "image": "sub/b.png", "conversations": turns("<image>\nWhat?", whole)},
        {"id": "2", "image": "sub/b.png", "conversations": turns("<image>\nWhat?", staged)},
    ]  # fmt: skip
    report, (found,) = taken(
        "llava_cot_100k", write(tmp_path / "train.jsonl", records), tmp_path / "out", images=tmp_path / "images"
    )
    assert found.messages[1].text == "<think>\nLook.\n\nA cat.\n\nWhiskers.\n</think>\n\nB" and found.mode == "think"
    assert report.refused == {"bad_thought": 1}


def test_r1_onevision_has_its_pictures_as_base64(tmp_path: Path, picture: bytes) -> None:
    encoded = base64.b64encode(picture).decode()
    answer = "<think>\nA cat.\n</think>\n\nB"
    rows = [
        {"id": "1", "image": encoded, "conversations": turns("What?", answer)},
        {"id": "2", "image": f"data:image/png;base64,{encoded}", "conversations": turns("<image>\nWhat?", answer)},
        {"id": "3", "image": None, "conversations": turns("What?", answer)},
    ]
    _, found = taken("r1_onevision", write(tmp_path / "r1.parquet", rows), tmp_path / "out")
    assert [one.images for one in found] == [(picture,), (picture,), ()] and found[0].mode == "think"
    assert parts(found[0])[:2] == ["<image>", "What?"]


def test_visualwebinstruct_lists_its_images_or_has_none(tmp_path: Path, picture: bytes) -> None:
    records = [
        {"image": ["a.png", "sub/b.png"], "conversations": turns("<image><image>Same?", "Yes.")},
        {"image": ["a.png"], "conversations": turns("What?", "A cat.")},
        {"image": None, "conversations": turns("1+1?", "2")},
    ]
    source = write(tmp_path / "mixed_conversation.jsonl", records)
    _, found = taken("visualwebinstruct", source, tmp_path / "out", images=tmp_path / "images")
    assert [len(one.images) for one in found] == [2, 1, 0]


def test_mmathcot_has_worked_solutions(tmp_path: Path, picture: bytes) -> None:
    record = {"image_url": "sub/b.png", "instruction": "Question: Find x.", "output": "Step 1: x = 2\n†Answer: 2"}
    source = write(tmp_path / "train.jsonl", [record])
    _, (found,) = taken("mmathcot_1m", source, tmp_path / "out", images=tmp_path / "images")
    assert parts(found) == ["<image>", record["instruction"], record["output"]] and found.mode == "direct"


def test_the_cauldrons_questions_become_one_conversation(tmp_path: Path, picture: bytes) -> None:
    texts = [{"user": f"{n}?", "assistant": f"{n}.", "source": "VQAv2"} for n in range(2)]
    rows = [{"images": [{"bytes": picture, "path": None}] * 2, "texts": texts}]
    _, (found,) = taken("the_cauldron", write(tmp_path / "vqav2" / "train-0.parquet", rows), tmp_path / "out")
    assert parts(found) == ["<image>", "<image>", "0?", "0.", "1?", "1."] and found.images == (picture, picture)


def test_infinity_mms_tars_hold_the_pictures_themselves(tmp_path: Path, picture: bytes) -> None:
    record = {
        "id": "10",
        "source": "llava",
        "image": "elsewhere.jpg",
        "conversations": turns("<image>\nWhat?", "A cat."),
    }
    text = {"id": "11", "source": "magpie", "conversations": turns("1+1?", "2")}
    members = [
        ("000.png", picture), ("000.json", json.dumps(record).encode()), ("001.json", json.dumps(text).encode()),
        ("002.png", picture), ("003.pickle", b"x"),
    ]  # fmt: skip
    (tmp_path / "stage3").mkdir()
    with tarfile.open(tmp_path / "stage3" / "000.tar", "w") as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    report, found = taken("infinity_mm", tmp_path / "stage3", tmp_path / "out")
    assert [one.images for one in found] == [(picture,), ()] and found[0].meta["from_set"] == "llava"
    assert report.refused == {"no_json": 1, "refused_file": 1}


def test_every_shipped_map_is_tried_above_and_says_what_it_was_checked_against() -> None:
    text = Path(__file__).read_text()
    for name, path in shipped().items():
        assert f'"{name}"' in text, f"no test imports with the map {name}"
        assert load_map(name).about and load_map(name).origin.startswith("https://") and load_map(name).license
        assert path.read_text().startswith("# Fields checked against: ")


def test_the_page_in_docs_lists_every_map_and_its_example_loads(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "your_data.md").read_text()
    assert [name for name in shipped() if f"| `{name}` |" not in page] == []
    (tmp_path / "my.yaml").write_text(page.partition("```yaml\n")[2].partition("```")[0])
    assert load_map(str(tmp_path / "my.yaml")).fields["answer"] == "label.text"


def test_fields_that_are_not_mapped_are_not_read() -> None:
    named = FieldMap(fields={"problem": "q", "answer": "a.b"}).apply({"q": "x", "a": {"b": "1"}, "solution": "y"})
    assert named == {"problem": "x", "answer": "1"}
    assert FieldMap(fields={"problem": "a.b"}).apply({"a.b": "x"}) == {"problem": "x"}
    with pytest.raises(BadSample, match="missing_field: no 'q' among a"):
        FieldMap(fields={"problem": "q"}).apply({"a": 1})
    assert FieldMap(meta={"list": "l", "n": "n", "gone": "g"}).kept({"l": [1], "n": 2}) == {"list": "[1]", "n": 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("layout: lava", "layout='lava' is none of .*did you mean 'llava'"),
        ("fields: {picture: image}", "fields='picture' is none of"),
        ("verifier: maths", "verifier='maths' is none of .*did you mean 'math'"),
        ("marks: ignore", "marks='ignore' is none of auto, prepend, refuse"),
        ("meta: {license: l}", "license is written by the import itself"),
        ("thought: {think: [], answer: [A]}", "must each name at least one tag"),
        ("feilds: {}", "unknown key; did you mean 'fields'"),
        ("fields: [", "while parsing"),
        ("!!python/object/apply:os.system [exit 1]", "could not determine a constructor"),
    ],
)
def test_a_map_that_makes_no_sense_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_map(str(tmp_path / "m.yaml"))


def test_a_map_of_ones_own_is_a_file_and_an_unknown_name_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.yaml").write_text("fields: {problem: q, solution: a}\n")
    source = write(tmp_path / "s.json", [{"q": "x", "a": "y"}])
    assert run(["--map", str(tmp_path / "m.yaml"), str(source), str(tmp_path / "out")]) == 0
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(["--map", "geometry3", str(source), str(tmp_path / "out")])
    assert "did you mean 'geometry3k'" in capsys.readouterr().err
