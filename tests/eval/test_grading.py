from __future__ import annotations

from collections.abc import Callable

import pytest

from sail_train.eval.config import MODES
from sail_train.eval.grading import figures, followed, prompt_text, request
from sail_train.rewards import verify
from sail_train.rewards.format import split_thought
from sail_train.types import Completion, Conversation, Message, Part

THOUGHT = "<think>\n1 2 3\n</think>\n\n\\boxed{123}"
DIRECT = "<think>\n\n</think>\n\n\\boxed{123}"


def graded(conversation: Conversation, text: str, mode: str, finish: str = "stop") -> dict[str, object]:
    question = request(conversation, text)
    completion = Completion(uid="u", token_ids=(1, 2, 3), logprobs=(0.0,) * 3, finish_reason=finish)
    score = verify(question.name, question.answer, question.response)
    return figures(conversation, question, score, completion, MODES[mode])


def test_a_right_thought_out_answer(make_conversation: Callable[..., Conversation]) -> None:
    record = graded(make_conversation(0), THOUGHT, "on")
    expected = {
        "score": 1.0,
        "thinks": 1.0,
        "followed": 1.0,
        "format": 1.0,
        "digits": 1.0,
        "tokens": 3,
        "truncated": 0.0,
    }
    assert {name: record[name] for name in expected} == expected


def test_digits_count_where_the_whole_is_wrong(make_conversation: Callable[..., Conversation]) -> None:
    record = graded(make_conversation(0), "<think>\n\n</think>\n\n124", "greedy")
    assert record["score"] == 0.0
    assert record["digits"] == pytest.approx(2 / 3)


def test_digits_are_for_grids_only(make_conversation: Callable[..., Conversation]) -> None:
    assert graded(make_conversation(0, verifier="number"), "123", "greedy")["digits"] is None


def test_a_cut_off_thought_is_wrong_and_not_followed(make_conversation: Callable[..., Conversation]) -> None:
    record = graded(make_conversation(0), "<think>\n1 2 3 and on", "on", finish="length")
    expected = {"score": 0.0, "status": "unparsable", "truncated": 1.0, "followed": 0.0, "format": 0.0, "thinks": 1.0}
    assert {name: record[name] for name in expected} == expected


def test_a_broken_truth_gives_no_score(make_conversation: Callable[..., Conversation]) -> None:
    record = graded(make_conversation(0, answer="Paris", verifier="choice"), "\\boxed{A}", "greedy")
    assert record["score"] is None and record["status"] == "error"


@pytest.mark.parametrize(
    ("text", "mode", "expected"),
    [
        (THOUGHT, "on", 1.0),
        (DIRECT, "on", 0.0),
        ("123", "on", 0.0),
        (DIRECT, "off", 1.0),
        ("123", "off", 1.0),
        (THOUGHT, "off", 0.0),
        ("<think>\n", "off", 0.0),
        (THOUGHT, "auto", None),
        (DIRECT, "greedy", None),
    ],
)
def test_whether_the_flag_was_followed(text: str, mode: str, expected: float | None) -> None:
    assert followed(text, split_thought(text)[0], MODES[mode]) == expected


def test_the_box_is_due_with_a_thought_or_a_boxed_reference(make_conversation: Callable[..., Conversation]) -> None:
    plain, boxed = make_conversation(0), make_conversation(0, reference="\\boxed{123}")
    answer = "<think>\n\n</think>\n\n123"
    assert graded(plain, answer, "greedy")["format"] is None
    assert graded(plain, answer, "off")["format"] is None
    assert graded(boxed, answer, "greedy")["format"] == 0.0
    assert graded(boxed, DIRECT, "greedy")["format"] == 1.0
    assert graded(plain, DIRECT, "on")["format"] == 0.0


def test_a_prompt_is_written_down_with_marks_for_images(make_conversation: Callable[..., Conversation]) -> None:
    assert prompt_text(make_conversation(1, images=2)) == "<image><image>Read 1 please "
    turns = ("user", "Hello"), ("assistant", "Hi"), ("user", "Sum?"), ("assistant", "5")
    chat = Conversation(
        key="k",
        source="s",
        messages=tuple(Message(role=role, content=(Part(type="text", text=text),)) for role, text in turns),
    )
    assert prompt_text(chat) == "user: Hello\n\nassistant: Hi\n\nuser: Sum?"
