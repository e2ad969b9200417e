"""`sail-train chat`: text as it comes, thoughts apart from answers, the conversation kept."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from sail_train.commands import chat


class Letters:
    """A processor whose token ids are the bytes of the text, special tags included."""

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def streamed(text: str, *, given: str = "") -> tuple[chat.Stream, str, str]:
    """The stream after `text` came byte by byte; what was shown, and what of it was dimmed."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="truecolor", width=200)
    stream = chat.Stream(Letters(), console, given=given)  # type: ignore[arg-type]
    stream.put(torch.tensor([[1, 2, 3]]))  # the prompt
    # a tag is one token to our tokenizers
    for piece in chat.TAGS.split(text):
        raw = piece.encode()
        for tokens in [raw] if piece in ("<think>", "</think>") else [bytes([byte]) for byte in raw]:
            stream.put(torch.tensor(list(tokens)))
    stream.end()
    shown, dimmed = "", ""
    for part in file.getvalue().split("\x1b["):
        code, _, rest = part.partition("m")
        shown += rest if _ else part
        dimmed += rest if code == "2;3" else ""
    return stream, shown, dimmed


def test_thoughts_are_dimmed_and_tags_left_out() -> None:
    stream, shown, dimmed = streamed("<think>\nred?\n</think>\n\nIt is red.")
    assert shown.split() == ["red?", "It", "is", "red."] and dimmed.split() == ["red?"]
    assert stream.text == "<think>\nred?\n</think>\n\nIt is red."


def test_a_forced_opening_counts_as_said() -> None:
    stream, shown, dimmed = streamed("red?\n</think>\n\nred", given="<think>\n")
    assert dimmed.split() == ["red?"] and stream.text == "<think>\nred?\n</think>\n\nred"
    stream, shown, dimmed = streamed("red", given="<think>\n\n</think>\n\n")
    assert dimmed == "" and shown.split() == ["red"]


def test_half_a_character_waits_for_its_other_half() -> None:
    _, shown, _ = streamed("é 中")
    assert shown.split() == ["é", "中"] and "\ufffd" not in shown


def test_a_question_about_an_image_is_answered(
    trained: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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

    def counted(self: chat.Chat, *arguments: Any) -> str:
        answer = ask(self, *arguments)
        turns.append((len(self.messages), len(self.images)))
        return answer

    monkeypatch.setattr(chat.Chat, "ask", counted)
    assert chat.run([str(trained), "--image", str(image), "--max-new-tokens", "4"]) == 0
    assert turns == [(2, 1), (4, 1)]


def test_the_end_of_input_ends_the_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(self: Console, prompt: str) -> str:
        raise EOFError

    monkeypatch.setattr(Console, "input", ended)
    assert list(chat._questions(None, Console())) == []
    assert list(chat._questions("one?", Console())) == ["one?"]


def test_an_image_that_is_not_there_is_named(trained: Path) -> None:
    with pytest.raises(ValueError, match="--image nowhere.png: no such file"):
        chat.run([str(trained), "question", "--image", "nowhere.png"])


def test_a_file_that_is_no_image_is_named(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="undecodable|format|image"):
        chat.run([str(trained), "question", "--image", str(tmp_path / "x.png")])
