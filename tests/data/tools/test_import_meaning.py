"""What a record means beside its texts: it is kept, refused by name, or told of; never dropped without a word."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from records_made import chat, import_list, llava, shape

from sail_train.data.tools.answers import settled_text
from sail_train.data.tools.field_map import FieldMap, load_map
from sail_train.data.tools.noted import Noted, unused
from sail_train.types import BadSample

THOUGHT = "<think>\nIt has whiskers.\n</think>\n\n"


def turn(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


def answered(*turns: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": [turn("user", "What?"), *turns], **more}


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (answered(turn("assistant", "No.", loss=False), turn("user", "?"), turn("assistant", "Yes.")), "loss_flag"),
        (answered(turn("assistant", "No.", weight=0)), "loss_flag"),
        (answered(turn("assistant", "No.", weight=0.5)), "loss_flag"),
        (answered(turn("assistant", "No.", train="never")), "loss_flag"),
        ({"messages": [turn("user", "?", loss=True), turn("assistant", "Yes.")]}, "loss_flag"),
        ({"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!", "weight": 0}]}, "loss_flag"),
        (answered(turn("assistant", "Sunny.", tool_calls=[{"id": "1"}])), "tools"),
        (answered(turn("assistant", None, function_call={"name": "f"}), turn("assistant", "x")), "tools"),
        (answered(turn("assistant", "Sunny."), tools=[{"type": "function"}]), "tools"),
        (answered(turn("assistant", "Sunny."), functions=[{"name": "f"}]), "tools"),
        ({"instruction": "x", "output": "y", "tools": "[{}]"}, "tools"),
        (answered(turn("assistant", "A <bbox>."), objects={"bbox": [[1, 2, 3, 4]]}), "boxes"),
        (answered(turn("assistant", "<ref-object>"), objects={"ref": ["dog"]}), "boxes"),
        (answered(), "no_answer"),
        (answered(answer="7"), "no_answer"),
        (answered(verifier="math"), "no_answer"),
        (answered(answer=" ", verifier="math"), "empty_answer"),
        (answered(turn("assistant", "")), "empty_answer"),
        (answered(turn("assistant", " \n"), turn("user", "?"), turn("assistant", "Yes.")), "empty_answer"),
        (answered(turn("assistant", THOUGHT)), "empty_answer"),
        (answered(turn("assistant", "<think>\n\n</think>\n\n")), "empty_answer"),
        ({"texts": [{"user": "?", "assistant": " "}]}, "empty_answer"),
        ({"question": "?", "answer": "1", "solution": ""}, "empty_answer"),
        ({"query": "?", "response": ""}, "empty_answer"),
        (answered(turn("assistant", "whiskers</think>A cat.")), "bad_thought"),
        (answered(turn("assistant", "<think>whiskers")), "bad_thought"),
        (answered(turn("assistant", "Hm. <think>whiskers</think>A cat.")), "bad_thought"),
        (answered(turn("assistant", "<think>a<think>b</think>A cat.")), "bad_thought"),
        (answered(turn("assistant", THOUGHT + "A cat.", reasoning_content="Hm.")), "bad_thought"),
        (answered(turn("assistant", "A cat.", reasoning_content=["Hm."])), "bad_thought"),
        (answered(turn("assistant", [{"type": "image_url", "image_url": {"url": "a.png"}}])), "assistant_image"),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "bad_messages"),
        ({"instruction": "x", "output": "y", "history": "a"}, "bad_messages"),
        (answered(rejected_response="A dog."), "bad_messages"),
        (answered(turn("assistant", "A cat."), rejected_response=["A dog."]), "bad_messages"),
        ({"question": "?", "chosen": "<think>\n\n</think>\n\nA cat.", "rejected": "A cat."}, "no_preference"),
        ({"question": "?", "chosen": "A cat.", "rejected": "A</think> dog."}, "bad_thought"),
        ({"prompt": "?", "chosen": [turn("assistant", "A cat.", weight=0)], "rejected": "A dog."}, "loss_flag"),
    ],
)  # fmt: skip
def test_what_a_sample_cannot_say_is_refused_by_name(pictures: Path, record: dict[str, Any], reason: str) -> None:
    _, found, refused = import_list(pictures, [record, chat("after")])
    assert [line["reason"] for line in refused] == [reason] and refused[0]["detail"] and len(found) == 1


def test_flags_that_say_what_a_sample_does_anyway_are_no_obstacle(pictures: Path) -> None:
    records = [
        {"messages": [turn("user", "?", loss=False, weight=None), turn("assistant", "Yes.", loss=True, weight=1.0)]},
        answered(turn("assistant", "Yes.", tool_calls=[], tools=None), tools=[]),
        answered(turn("assistant", "<bbox>1 2 3 4</bbox>"), objects={"bbox": [[1, 2, 3, 4]]}),
        answered(turn("assistant", "HTML has no <bbox>.")),
    ]
    report, found, refused = import_list(pictures, records)
    assert refused == [] and report.unused == {"objects": 1}


def test_a_thought_kept_apart_becomes_the_answers_block(pictures: Path) -> None:
    records = [
        answered(turn("assistant", "A cat.", reasoning_content="It has whiskers.\n")),
        {"conversations": [{"from": "human", "value": "?"},
                           {"from": "gpt", "value": "A cat.", "reasoning": "It has whiskers."}]},
        answered(turn("assistant", [{"type": "text", "text": "A cat."}], reasoning_content="It has whiskers.")),
        answered(turn("assistant", "A cat.", reasoning_content=" ")),
        {"prompt": "?", "chosen": [turn("assistant", "A cat.", reasoning_content="It has whiskers.")], "rejected": "A"},
    ]  # fmt: skip
    _, found, refused = import_list(pictures, records)
    assert refused == [] and [one.mode for one in found] == ["think", "think", "think", "direct", "think"]
    for one in (*found[:3], found[4]):
        assert one.messages[-1].text == THOUGHT + "A cat."
    assert found[4].meta["preference"]["chosen"] == THOUGHT + "A cat."


@pytest.mark.parametrize("block", ["<think>\n\n</think>\n\n", "<think></think>", "\n<think> </think>\n"])
def test_an_empty_block_is_a_direct_answer(pictures: Path, block: str) -> None:
    record = answered(turn("assistant", f"{block}A cat."), turn("user", "?"), turn("assistant", f"{block}  A dog."))
    _, (found,), _ = import_list(pictures, [record])
    assert found.mode == "direct" and [each.text for each in found.messages[1::2]] == ["A cat.", "  A dog."]


def test_an_answer_without_a_block_stays_as_it_is() -> None:
    assert settled_text("  x\n") == "  x\n" and settled_text("<think>a</think> b ") == "<think>a</think> b "
    with pytest.raises(BadSample, match="bad_thought: <think> is not closed"):
        settled_text("<think>a")


def test_ms_swifts_worse_answer_makes_a_pair(pictures: Path) -> None:
    asked = turn("user", "<image>What?")
    records = [
        {"messages": [asked, turn("assistant", "A cat.")], "images": ["a.png"], "rejected_response": "A dog."},
        {"query": "What?", "response": "A cat.", "rejected_response": "A dog."},
        answered(turn("assistant", "A cat."), rejected_messages=[turn("user", "What?"), turn("assistant", "A dog.")]),
        answered(turn("assistant", "A cat."), rejected_response=None),
    ]
    report, found, refused = import_list(pictures, records)
    assert refused == [] and "preference" not in found[3].meta and not report.unused
    for one in found[:3]:
        assert one.meta["preference"] == {"chosen": "A cat.", "rejected": "A dog."}
        assert [each.role for each in one.messages] == ["user", "assistant"] and one.messages[-1].text == "A cat."
    assert len(found[0].images) == 1


def test_llama_factorys_pairs_and_questions_with_a_picture_and_no_mark(pictures: Path) -> None:
    pair = {"chosen": {"from": "gpt", "value": "A cat."}, "rejected": {"from": "gpt", "value": "A dog."}}
    human = {"from": "human", "value": "<image>What?"}
    records = [
        {"image": "a.png", "question": "What?", "chosen": "A cat.", "rejected": "A dog."},
        {"conversations": [human], "images": ["a.png"], **pair},
        {"messages": [turn("user", "<image>What?")], "images": ["a.png"],
         "chosen": turn("assistant", "A cat."), "rejected": turn("assistant", "A dog.")},
        {"instruction": "What?", "chosen": "A cat.", "rejected": "A dog.", "images": ["a.png"]},
    ]  # fmt: skip
    _, found, refused = import_list(pictures, records)
    assert refused == []
    for one in found:
        assert shape(one) == [("user", ["<img>", "What?"]), ("assistant", ["A cat."])]
        assert one.meta["preference"] == {"chosen": "A cat.", "rejected": "A dog."}


def test_alpacas_and_ms_swifts_fields_become_turns(pictures: Path) -> None:
    records = [
        {"instruction": "Name it.", "input": "In Latin.", "output": "Felis.", "system": "Be brief.",
         "history": [["Hi", "Hello"]], "images": [], "tools": ""},
        {"query": "<image>What?", "response": THOUGHT + "A cat.", "images": ["a.png"], "history": None},
    ]  # fmt: skip
    report, found, refused = import_list(pictures, records)
    assert refused == [] and not report.unused
    assert shape(found[0]) == [
        ("system", ["Be brief."]), ("user", ["Hi"]), ("assistant", ["Hello"]), ("user", ["Name it.\nIn Latin."]),
        ("assistant", ["Felis."]),
    ]  # fmt: skip
    assert shape(found[1])[0] == ("user", ["<img>", "What?"]) and found[1].mode == "think"


def test_questions_show_unmarked_pictures_first_and_conversations_name_the_remedy(pictures: Path) -> None:
    question = {"image": "a.png", "problem": "Find x.", "answer": "1", "verifier": "math"}
    _, (found,), refused = import_list(pictures, [question, llava("What?", image="a.png")])
    assert shape(found) == [("user", ["<img>", "Find x."])]
    assert refused[0]["detail"] == "0 image placeholders for 1 images; --marks prepend shows them first"
    _, found, refused = import_list(pictures, [question], overwrite=True, marks="refuse")
    assert not found and [line["reason"] for line in refused] == ["image_count"]
    assert not FieldMap(layout="llava").prepends("llava") and load_map("mmpr_v1_2").prepends("preference")


def test_fields_that_were_not_used_are_counted(pictures: Path) -> None:
    used = {"id": 1, "verifier": None, "level": 3, "hint": "", "objects": []}
    records = [
        llava("x", **used),
        llava("x", level=4, width=1),
        answered({**turn("assistant", "y"), "name": "bot"}),
        {"image": "a.png", "question": "?", "chosen": "a", "rejected": "b", "system": "lost"},
        llava("refused", level=5, image="gone.png"),
    ]
    report, _, _ = import_list(pictures, records)
    assert report.unused == {"level": 2, "width": 1, "messages[].name": 1, "system": 1}
    described = json.loads((pictures / "out" / "dataset.json").read_text())
    assert described["fields_not_used"] == dict(report.unused)


def test_a_maps_fields_and_meta_are_used_and_the_rest_is_told() -> None:
    record = {"q": "x", "label": {"text": "1"}, "level": 2, "a.b": 3, "c": 4, "d": None}
    fields = {"problem": "q", "answer": "label.text", "system": "c"}
    named = Noted(FieldMap(fields=fields).apply(record))
    for name in ("problem", "answer"):
        named.get(name)
    assert unused(record, named, fields, {"level": "level"}) == ["a.b", "c"]
    assert unused(record, named, fields, {"x": "a.b", "c": "c"}) == ["level"]
