"""What each chat style writes, literally; Qwen3's strings are those of the code before there were styles."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from sail_train.config import choice
from sail_train.processor import STYLES
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor
from sail_train.types import Conversation, Message, Part, Visual

Make = Callable[..., Message]
X = "<IMG_CONTEXT>"
VIDEO = Part(type="video")
SHOWN = {
    "image": Visual(kind="image", data=b"", grids=((2, 4), (2, 2))),
    "video": Visual(kind="video", data=b"", grids=((2, 2),) * 3, seconds=(0.0, 1.5, 10 / 3)),
}
CHINESE = "你是由抖音内容理解组开发的多模态大模型，英文名叫UniVL, 是一个有用无害的人工智能助手。"
THINK_FIRST = (
    "You FIRST think about the reasoning process as an internal monologue and then provide the final answer. "
    "The reasoning process MUST BE enclosed within <think> </think> tags. The final answer MUST BE put in \\boxed{}."
)
SAIL_SYSTEM = f"<|im_start|>system\n{CHINESE}<|im_end|>"
ON = "Think about the question first, inside <think></think>, then give the answer."
OFF = "Answer the question directly."


@pytest.fixture(scope="module", params=STYLES)
def styled(request: pytest.FixtureRequest, tokenizer_dir: Path) -> SailVLProcessor:
    return make(tokenizer_dir, request.param)


def make(folder: Path, style: str, **options: object) -> SailVLProcessor:
    return build_processor(
        ProcessorConfig(tokenizer=str(folder), image={"patch_size": 4}, template=style, **options)  # type: ignore
    )


def talk(*messages: Message, mode: str | None = None) -> Conversation:
    return Conversation(key="0", source="test", messages=messages, mode=mode)


def written(
    processor: SailVLProcessor, conversation: Conversation, monkeypatch: pytest.MonkeyPatch, *, flag: bool
) -> str:
    """All of a training sample's text, what is trained on between « and »."""
    parts = [part.type for message in conversation.messages for part in message.content if part.type != "text"]
    with monkeypatch.context() as patched:
        patched.setattr(processor, "measure", lambda _: tuple(SHOWN[kind] for kind in parts))
        encoded = processor.encode(conversation, flag=flag)
    text, is_trained = "", [False, *(encoded.labels[:-1] >= 0)]
    for trained, run in itertools.groupby(zip(encoded.input_ids, is_trained, strict=True), key=lambda pair: pair[1]):
        part = processor.tokenizer.decode([token for token, _ in run], skip_special_tokens=False)
        text += f"«{part}»" if trained else part
    return text


def asked(processor: SailVLProcessor, conversation: Conversation, think: str, *, force: bool = False) -> str:
    parts = [part.type for message in conversation.messages for part in message.content if part.type != "text"]
    ids = processor.encode_prompt(conversation, think=think, force=force, measured=[SHOWN[kind] for kind in parts])
    assert processor.tokenizer.encode(text := processor.decode(ids, skip_special_tokens=False)) == ids.tolist()
    return text


SINGLE = (("user", None, "the sum?"), ("assistant", "<think> a grid </think> 7"))
TURNS = (
    ("user", None, "first?"),
    ("assistant", "<think>the row</think>so 3"),
    ("user", "4 is", None),
    ("assistant", "in the grid"),
)
FILM = (("user", VIDEO, "What?"), ("assistant", "the digits"))

SAMPLES = {
    ("qwen3", SINGLE, "think"): (
        f"<|im_start|>user\n<img>{X * 3}</img>the sum? /think<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\na grid\n</think>\n\n7<|im_end|>»\n"
    ),
    ("qwen3", TURNS, "direct"): (
        f"<|im_start|>user\n<img>{X * 3}</img>first?<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\nso 3<|im_end|>\n"
        f"<|im_start|>user\n4 is<img>{X * 3}</img> /no_think<|im_end|>\n"
        "<|im_start|>assistant\n«<think>\n\n</think>\n\nin the grid<|im_end|>»\n"
    ),
    ("qwen3", FILM, None): (
        f"<|im_start|>user\n[0.0 second]<img>{X}</img>[1.5 second]<img>{X}</img>[3.3 second]<img>{X}</img>What?"
        "<|im_end|>\n<|im_start|>assistant\n«<think>\n\n</think>\n\nthe digits<|im_end|>»\n"
    ),
    ("sail_vl2", SINGLE, "think"): (
        f"{SAIL_SYSTEM}<|im_start|>user\n<img>{X * 3}</img>\nthe sum?\n{THINK_FIRST}<|im_end|>"
        "<|im_start|>assistant\n«<think>\na grid\n</think>\n\n7<|im_end|>»"
    ),
    ("sail_vl2", TURNS, "direct"): (
        f"{SAIL_SYSTEM}<|im_start|>user\nImage-1: <img>{X * 3}</img>\nfirst?<|im_end|>"
        "<|im_start|>assistant\nso 3<|im_end|>"
        f"<|im_start|>user\n4 isImage-2: <img>{X * 3}</img>\n<|im_end|>"
        "<|im_start|>assistant\n«in the grid<|im_end|>»"
    ),
    ("sail_vl2", FILM, None): (
        f"{SAIL_SYSTEM}<|im_start|>user\nFrame-1: <img>{X}</img>\nFrame-2: <img>{X}</img>\nFrame-3: <img>{X}</img>\n"
        "What?<|im_end|><|im_start|>assistant\n«the digits<|im_end|>»"
    ),
    ("seed1_5_vl", SINGLE, "think"): (
        f"<|im_start|>system\n{ON}<|im_end|>\n<|im_start|>user\n[SOI]{X * 3}[EOI]the sum?<|im_end|>\n"
        "<|im_start|>assistant\n«<think>a grid</think>7<|im_end|>»\n"
    ),
    ("seed1_5_vl", TURNS, "direct"): (
        f"<|im_start|>system\n{OFF}<|im_end|>\n<|im_start|>user\n[SOI]{X * 3}[EOI]first?<|im_end|>\n"
        "<|im_start|>assistant\nso 3<|im_end|>\n"
        f"<|im_start|>user\n4 is[SOI]{X * 3}[EOI]<|im_end|>\n"
        "<|im_start|>assistant\n«in the grid<|im_end|>»\n"
    ),
    ("seed1_5_vl", FILM, None): (
        f"<|im_start|>user\n[0.0 second][SOI]{X}[EOI][1.5 second][SOI]{X}[EOI][3.3 second][SOI]{X}[EOI]What?"
        "<|im_end|>\n<|im_start|>assistant\n«the digits<|im_end|>»\n"
    ),
}


@pytest.mark.parametrize(("style", "turns", "mode"), SAMPLES)
def test_a_sample_is_written_in_the_words_of_its_style(
    tokenizer_dir: Path,
    make_message: Make,
    monkeypatch: pytest.MonkeyPatch,
    style: str,
    turns: tuple,
    mode: str | None,
) -> None:
    expected = SAMPLES[style, turns, mode]
    conversation = talk(*(make_message(*turn) for turn in turns), mode=mode)
    assert written(make(tokenizer_dir, style), conversation, monkeypatch, flag=True) == expected


@pytest.mark.parametrize(
    ("style", "think", "start", "end"),
    [
        ("qwen3", "on", "<|im_start|>user\n2? /think<|im_end|>\n<|im_start|>assistant\n", "<think>\n"),
        (
            "qwen3",
            "off",
            "<|im_start|>user\n2? /no_think<|im_end|>\n<|im_start|>assistant\n",
            "<think>\n\n</think>\n\n",
        ),
        ("qwen3", "auto", "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n", ""),
        (
            "sail_vl2",
            "on",
            f"{SAIL_SYSTEM}<|im_start|>user\n2?\n{THINK_FIRST}<|im_end|><|im_start|>assistant\n",
            "<think>\n",
        ),
        ("sail_vl2", "off", f"{SAIL_SYSTEM}<|im_start|>user\n2?<|im_end|><|im_start|>assistant\n", ""),
        ("sail_vl2", "auto", f"{SAIL_SYSTEM}<|im_start|>user\n2?<|im_end|><|im_start|>assistant\n", ""),
        (
            "seed1_5_vl",
            "on",
            f"<|im_start|>system\n{ON}<|im_end|>\n<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n",
            "<think>",
        ),
        (
            "seed1_5_vl",
            "off",
            f"<|im_start|>system\n{OFF}<|im_end|>\n<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n",
            "",
        ),
        ("seed1_5_vl", "auto", "<|im_start|>user\n2?<|im_end|>\n<|im_start|>assistant\n", ""),
    ],
)
def test_each_mode_is_asked_for_and_forced_in_the_words_of_its_style(
    tokenizer_dir: Path, make_message: Make, style: str, think: str, start: str, end: str
) -> None:
    processor, conversation = make(tokenizer_dir, style), talk(make_message("user", "2?"))
    assert asked(processor, conversation, think) == start
    assert asked(processor, conversation, think, force=True) == start + end and processor.opening(think) == end


@pytest.mark.parametrize(("mode", "think"), [("think", "on"), ("direct", "off"), (None, "auto")])
@pytest.mark.parametrize("turns", [SINGLE, TURNS, FILM])
def test_what_is_asked_is_what_was_trained(
    styled: SailVLProcessor,
    make_message: Make,
    monkeypatch: pytest.MonkeyPatch,
    turns: tuple,
    mode: str | None,
    think: str,
) -> None:
    messages = [make_message(*turn) for turn in turns]
    if mode == "think":
        messages[-1] = make_message("assistant", "<think>a row</think>3")
    elif mode == "direct":
        messages[-1] = make_message("assistant", "3")
    conversation = talk(*messages, mode=mode)
    measured = tuple(SHOWN[part.type] for message in messages for part in message.content if part.type != "text")
    monkeypatch.setattr(styled, "measure", lambda _: measured)
    ids = styled.encode(conversation, flag=True).input_ids
    for force in (False, True):
        prompt = styled.encode_prompt(conversation, think=think, force=force)
        assert ids[: len(prompt)].tolist() == prompt.tolist()


def test_the_processors_and_the_conversations_own_system_message(tokenizer_dir: Path, make_message: Make) -> None:
    plain, own = talk(make_message("user", "2?")), talk(make_message("system", "Mine."), make_message("user", "2?"))
    sail = make(tokenizer_dir, "sail_vl2", system="Be kind.")
    assert asked(sail, plain, "auto").startswith("<|im_start|>system\nBe kind.<|im_end|><|im_start|>user")
    assert asked(sail, own, "auto").startswith("<|im_start|>system\nMine.<|im_end|><|im_start|>user")
    assert asked(make(tokenizer_dir, "sail_vl2", system=""), plain, "auto").startswith("<|im_start|>user")
    seed = make(tokenizer_dir, "seed1_5_vl", system="Be kind.")
    assert asked(seed, plain, "off").startswith(f"<|im_start|>system\n{OFF}\n\nBe kind.<|im_end|>\n<|im_start|>user")
    assert asked(seed, own, "on").startswith(f"<|im_start|>system\n{ON}\n\nMine.<|im_end|>\n<|im_start|>user")
    assert asked(seed, own, "auto").startswith("<|im_start|>system\nMine.<|im_end|>\n<|im_start|>user")


def test_a_dropped_thought_leaves_its_answer_and_is_not_trained(
    styled: SailVLProcessor, make_message: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = ("user", "1?"), ("assistant", "<think>hidden</think>one"), ("user", "2?"), ("assistant", "two")
    text = written(styled, talk(*(make_message(*turn) for turn in turns)), monkeypatch, flag=False)
    assert "hidden" not in text and f"<|im_start|>assistant\n{styled.style.direct}one<|im_end|>" in text
    assert text.count("«") == 1 and f"«{styled.style.direct}two<|im_end|>»" in text


def test_a_folder_remembers_its_style(styled: SailVLProcessor, make_message: Make, tmp_path: Path) -> None:
    from sail_train.processor.processor import load_processor

    styled.save_pretrained(tmp_path)
    again = load_processor(tmp_path)
    assert (again.template, again.style, again.token_ids) == (styled.template, styled.style, styled.token_ids)
    conversation = talk(make_message("user", VIDEO, "2?", None))
    assert asked(again, conversation, "on") == asked(styled, conversation, "on")
    assert again.chat_template == styled.chat_template == (tmp_path / "chat_template.jinja").read_text()


def test_every_style_is_known_by_name_without_torch() -> None:
    for style in STYLES.values():
        assert style.control_tokens[-1] == X and len(set(style.control_tokens)) == 6
        json.dumps(dataclasses.asdict(style))
    with pytest.raises(ValueError, match="model.template='sail-vl2' is none of .*did you mean 'sail_vl2'"):
        choice("model.template", "sail-vl2", STYLES)
