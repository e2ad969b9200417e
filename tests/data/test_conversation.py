"""Both formats: what they read, and that whatever is wrong is a BadSample with its reason."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from sail_train.data import caption, conversation
from sail_train.types import BadSample, RawSample


def raw(members: dict[str, bytes]) -> RawSample:
    return RawSample(key="k", source="mix", shard="s.tar", offset=0, members=members)


def record(**more: Any) -> dict[str, Any]:
    user = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}
    return {"messages": [user, {"role": "assistant", "content": "a cat"}], **more}


def parse(data: Any, **images: bytes) -> Any:
    content = data if isinstance(data, bytes) else json.dumps(data).encode()
    return conversation.parse(
        raw({"json": content, **{name.replace("_", "."): value for name, value in images.items()}})
    )


def test_all_fields_are_read() -> None:
    full = record(answer="cat", verifier="exact", mode="direct", source="coco", meta={"id": 7})
    found = parse(full, jpg=b"j")
    assert (found.key, found.source, found.images) == ("k", "mix", (b"j",))
    assert [(message.role, message.text) for message in found.messages] == [("user", "what?"), ("assistant", "a cat")]
    assert (found.answer, found.verifier, found.mode) == ("cat", "exact", "direct")
    assert found.meta == {"source": "coco", "id": 7}


def test_images_come_in_the_order_of_their_numbers() -> None:
    images = {f"{number}.png": str(number).encode() for number in (10, 2, 0, 1, *range(3, 10))}
    data = {"messages": [{"role": "user", "content": [{"type": "image"}] * 11}]}
    found = conversation.parse(raw({"json": json.dumps(data).encode(), **images}))
    assert found.images == tuple(str(number).encode() for number in range(11))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"{", "bad_json"),
        (b"\xff", "bad_json"),
        (b"[" * 100_000, "bad_json"),
        (b"[1]", "bad_json"),
        (b"1" * 5000, "bad_json"),
        ({}, "bad_messages"),
        ({"messages": []}, "bad_messages"),
        ({"messages": ["hi"]}, "bad_messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "bad_messages"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "bad_messages"),
        ({"messages": [{"role": "user"}]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": [3]}]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": [{"type": "audio"}]}]}, "bad_messages"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "bad_text"),
        (record(mode="fast"), "bad_field"),
        (record(answer=4), "bad_field"),
        (record(meta=[]), "bad_field"),
        (record(verifier={}), "bad_field"),
    ],
)
def test_records_that_say_nothing_usable_are_bad_samples(data: Any, reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        parse(data, jpg=b"j")
    assert caught.value.reason == reason
    assert len(str(caught.value)) < 400


def test_a_wrong_number_of_images_is_a_bad_sample() -> None:
    for images in ({}, {"0_jpg": b"1", "1_jpg": b"2"}):
        with pytest.raises(BadSample, match="image_count: 1 image parts"):
            parse(record(), **images)


@pytest.mark.parametrize("images", [("1.jpg",), ("0.jpg", "2.jpg"), ("0.jpg", "0.png"), ("jpg", "0.png"), ("a.jpg",)])
def test_image_numbers_must_run_from_zero(images: tuple[str, ...]) -> None:
    with pytest.raises(BadSample, match="bad_image_name"):
        conversation.parse(raw({"json": json.dumps(record()).encode(), **dict.fromkeys(images, b"x")}))


def test_a_sample_without_json_and_a_huge_one_are_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadSample, match="no_json: has only txt"):
        conversation.parse(raw({"txt": b"x"}))
    monkeypatch.setattr(conversation, "MAX_JSON_BYTES", 20)
    with pytest.raises(BadSample, match="too_large"):
        parse(record(), jpg=b"j")


def test_a_caption_becomes_an_answer_to_the_image() -> None:
    found = caption.parse(raw({"jpg": b"j", "txt": b" a cat \n", "json": b'{"url": "x", "score": NaN}'}))
    assert [(message.role, message.text) for message in found.messages] == [("user", ""), ("assistant", "a cat")]
    assert found.messages[0].content[0].type == "image" and found.images == (b"j",)
    assert found.meta == {"url": "x", "score": None}


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"txt": b"a"}, "image_count"),
        ({"jpg": b"j"}, "no_txt"),
        ({"jpg": b"j", "txt": b"\xff\xfe"}, "bad_text"),
        ({"jpg": b"j", "txt": b"  "}, "bad_text"),
        ({"jpg": b"j", "txt": b"a", "json": b"["}, "bad_json"),
    ],
)
def test_captions_that_say_nothing_are_bad_samples(members: dict[str, bytes], reason: str) -> None:
    with pytest.raises(BadSample) as caught:
        caption.parse(raw(members))
    assert caught.value.reason == reason


def test_what_the_writer_stores_is_what_is_parsed(make: SimpleNamespace) -> None:
    from sail_train.data.writer import files_of

    sample = make.sample(3, images=2, mode="think", verifier="exact", meta={"n": 1})
    files = files_of(sample)
    key = files.pop("__key__")
    found = conversation.parse(RawSample(key=key, source="made", shard="", offset=0, members=files))
    assert (found.messages, found.images, found.answer) == (sample.messages, sample.images, sample.answer)
    assert found.meta == {"source": "made", "n": 1}
