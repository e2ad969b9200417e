"""`sail-train chat`: text as it comes, thoughts apart from answers, the conversation kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from rich.console import Console

from sail_train.commands import chat
from sail_train.processor.processor import SailVLProcessor
from sail_train.serve.answer import Answer
from sail_train.types import Conversation, Prompt


class Letters:
    """A processor whose token ids are the bytes of the text."""

    def decode(self, ids: list[int], /) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def shown(text: str, *, opening: str = "") -> tuple[str, str]:
    """What stood on the console after `text` came byte by byte, and what of it was dimmed."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=200)
    answer, screen = Answer(Letters(), opening=opening), chat.Shown(console)
    for byte in text.encode():
        screen.add(answer.feed([byte]))
    screen.add(answer.end())
    whole, dimmed = "", ""
    for part in file.getvalue().split("\x1b["):
        code, _, rest = part.partition("m")
        whole += rest if _ else part
        dimmed += rest if code == "2;3" else ""
    return whole, dimmed


def test_a_thought_is_dimmed_and_tags_are_left_out() -> None:
    whole, dimmed = shown("<think>\nred? \n a < b\n</think>\n\nIt is red.")
    assert whole == "red? \n a < b\n\nIt is red." and dimmed.split() == ["red?", "a", "<", "b"]


@pytest.mark.parametrize("text", ["<think>\n\n</think>\n\nred", "red", "<think></think>red\n"])
def test_a_direct_answer_stands_without_blank_lines(text: str) -> None:
    assert shown(text) == ("red", "")


def test_a_forced_opening_is_part_of_the_turn() -> None:
    assert shown("red?\n</think>\n\nred", opening="<think>\n") == ("red?\n\nred", "red?")
    assert shown("red", opening="<think>\n\n</think>\n\n") == ("red", "")


def test_half_a_character_waits_for_its_other_half() -> None:
    assert shown("é 中")[0] == "é 中"


def test_a_question_about_an_image_is_answered(trained: Path, image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(trained), "What colour is it?", "--image", str(image), "--max-new-tokens", "8", "--think", "on"]
    assert chat.run(arguments) == 0
    first = capsys.readouterr().out
    assert chat.run(arguments) == 0
    assert capsys.readouterr().out == first, "greedy says the same again"
    assert chat.run([*arguments, "--temperature", "1.0", "--seed", "1", "--force"]) == 0


def test_a_conversation_keeps_what_was_said(
    trained: Path, image: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["What colour is it?", "And now?", ""])
    monkeypatch.setattr(Console, "input", lambda self, prompt: next(typed))
    turns: list[tuple[int, int]] = []
    ask = chat.Chat.ask

    def counted(self: chat.Chat, *arguments: Any, **files: Any) -> str:
        answer = ask(self, *arguments, **files)
        turns.append((len(self.messages), len(self.images)))
        return answer

    monkeypatch.setattr(chat.Chat, "ask", counted)
    assert chat.run([str(trained), "--image", str(image), "--max-new-tokens", "4"]) == 0
    assert turns == [(2, 1), (4, 1)]


def test_a_thought_that_was_cut_short_does_not_end_the_conversation(
    trained: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = iter(["What colour is it?", "And now?", ""])
    monkeypatch.setattr(Console, "input", lambda self, prompt: next(typed))
    assert chat.run([str(trained), "--think", "on", "--force", "--max-new-tokens", "3"]) == 0


def test_several_images_and_a_video_stand_before_the_question(
    trained: Path, image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "clip.mp4").write_bytes(clip())
    asked: list[Conversation] = []
    prompt = SailVLProcessor.prompt

    def noted(self: SailVLProcessor, conversation: Conversation, **options: Any) -> Prompt:
        asked.append(conversation)
        return prompt(self, conversation, **options)

    monkeypatch.setattr(SailVLProcessor, "prompt", noted)
    files = ["--image", str(image), "--video", str(tmp_path / "clip.mp4"), "--image", str(image)]
    assert chat.run([str(trained), "What differs?", *files, "--max-new-tokens", "2"]) == 0
    (message,) = asked[0].messages
    assert [part.type for part in message.content] == ["image", "image", "video", "text"]
    assert asked[0].images == (image.read_bytes(),) * 2 and len(asked[0].videos) == 1


def test_a_conversation_that_fills_the_context_is_told_so(trained: Path) -> None:
    with pytest.raises(ValueError, match=r"the conversation has \d+ tokens, the model's context \d+: ask less"):
        chat.run([str(trained), "What colour is it? " * 20_000])


def clip() -> bytes:
    """Four red frames in half a second."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for _ in range(4):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 64), "red"))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return file.getvalue()


def test_the_end_of_input_ends_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(self: Console, prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(Console, "input", ended)
    assert list(chat._questions(None, Console())) == []
    assert list(chat._questions("one?", Console())) == ["one?"]


@pytest.mark.parametrize("option", ["--image", "--video"])
def test_a_file_that_is_not_there_is_named(trained: Path, option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} nowhere: no such file"):
        chat.run([str(trained), "question", option, "nowhere"])


def test_a_file_that_is_no_image_is_named(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="undecodable|format|image"):
        chat.run([str(trained), "question", "--image", str(tmp_path / "x.png")])
