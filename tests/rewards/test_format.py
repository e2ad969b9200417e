r"""The grammar of a response, and reading one that breaks it."""

import pytest

from sail_train.rewards.format import extract_boxed, final_answer, format_ok, split_thought

GOOD = "<think>\n1 + 2\n</think>\n\nSo it is \\boxed{3}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (GOOD, ("1 + 2", "So it is \\boxed{3}")),
        ("<think>\n\n</think>\n\n3", ("", "3")),
        ("3", (None, "3")),
        ("<think>\nnever ends", ("never ends", "")),
        ("forced away</think> 3", ("forced away", "3")),
        ("<think>a</think>b</think>c", ("a</think>b", "c")),
    ],
)
def test_thought_and_answer_are_split(text, expected):
    assert split_thought(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\\boxed{3}", "3"),
        ("\\boxed {3}", "3"),
        ("\\boxed{\\frac{1}{2}} then \\boxed{4}", "4"),
        ("\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{a \\} b}", "a \\} b"),
        ("\\boxed{\\frac{1}{2}", None),
        ("\\boxed 3", None),
        ("no box", None),
        ("\\boxed{}", ""),
        ("\\boxed{\\", None),
    ],
)
def test_boxes_end_where_their_braces_balance(text, expected):
    assert extract_boxed(text) == expected


def test_a_box_inside_the_thought_is_no_answer():
    assert final_answer("<think>\\boxed{7}</think>\n\nseven").text == "seven"
    assert not final_answer("<think>\\boxed{7}</think>\n\nseven").boxed
    assert final_answer("<think>\\boxed{7}</think>").problem == "no answer"
    assert final_answer("<think>\\boxed{7}").problem == "the thought never ends"


def test_several_boxes_are_no_answer():
    assert final_answer("\\boxed{5} or \\boxed{7}").problem == "2 boxes"
    assert "empty" in final_answer("\\boxed{ }").problem


@pytest.mark.parametrize("mode", ["think", "on", "auto", None])
def test_the_full_form_is_right(mode):
    assert format_ok(GOOD, "stop", mode).value == 1.0


@pytest.mark.parametrize("mode", ["direct", "off", "auto", None])
def test_the_empty_thought_is_right_where_none_is_asked_for(mode):
    assert format_ok("<think>\n\n</think>\n\n\\boxed{3}", "stop", mode).value == 1.0


@pytest.mark.parametrize("mode", ["direct", "off"])
def test_a_direct_answer_may_go_without_a_box(mode):
    assert format_ok("<think>\n\n</think>\n\n3", "stop", mode).value == 1.0


@pytest.mark.parametrize(
    ("text", "finish_reason", "mode", "why"),
    [
        (GOOD, "length", "on", "no end token"),
        (GOOD, "stop", "off", "where none was asked"),
        ("<think>\n\n</think>\n\n\\boxed{3}", "stop", "on", "empty"),
        ("\\boxed{3}", "stop", "auto", "exactly one"),
        ("<think>a</think><think>b</think>\\boxed{3}", "stop", "auto", "exactly one"),
        ("<think>a</think>b</think>\\boxed{3}", "stop", "auto", "exactly one"),
        ("Well. <think>a</think>\\boxed{3}", "stop", "auto", "before <think>"),
        ("</think><think>\\boxed{3}", "stop", "auto", "before <think>"),
        (" \n<think>a</think>", "stop", "auto", "0 boxes"),
        ("<think>\n\n</think>\n\n", "stop", "off", "no answer"),
        ("<think>\n\n</think>\n\n3", "stop", "auto", "0 boxes"),
        ("<think>\\boxed{3}</think>3", "stop", "auto", "0 boxes"),
        ("<think>a</think>\\boxed{3}\\boxed{3}", "stop", "auto", "2 boxes"),
        ("<think>a</think>\\boxed{}", "stop", "auto", "empty or not closed"),
        ("<think>a</think>\\boxed{3", "stop", "auto", "empty or not closed"),
    ],
)
def test_each_break_of_the_form_is_named(text, finish_reason, mode, why):
    score = format_ok(text, finish_reason, mode)
    assert score.value == 0.0 and not score.failed and why in score.detail


@pytest.mark.parametrize(("text", "mode", "value"), [
    ("\\boxed{3}", "auto", 1.0), ("3", "off", 1.0), ("3", "auto", 0.0), ("\\boxed{3}", "on", 0.0), ("", "off", 0.0),
    (GOOD, "on", 1.0), (GOOD, "off", 0.0), ("<think>a \\boxed{3}", "auto", 0.0),
])  # fmt: skip
def test_a_style_whose_direct_answers_open_with_no_block_needs_none(text, mode, value):
    assert format_ok(text, "stop", mode, block=False).value == value
