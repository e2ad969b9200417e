"""Conditions: how they are read, where they hold, and what is refused."""

from __future__ import annotations

import pyarrow
import pytest

from sail_train.data.conditions import all_hold, parse

TABLE = pyarrow.table(
    {
        "score": pyarrow.array([5, 3, 2, None], pyarrow.int8()),
        "rate": [0.0, 0.75, float("nan"), 0.5],
        "language": ["en", "zh", None, ""],
        "large": pyarrow.array([2**40, 1, 2, 3], pyarrow.int64()),
        "unknown": pyarrow.nulls(4),
    }
)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("score >= 3", [True, True, False, False]),
        ("score<3", [False, False, True, False]),
        ("score != 3", [True, False, True, False]),
        ("rate <= .75", [True, True, False, True]),
        ("rate != 9", [True, True, False, True]),
        ("large > 1e12", [True, False, False, False]),
        ("language == en", [True, False, False, False]),
        ("language == 'zh'", [False, True, False, False]),
        ("language == ''", [False, False, False, True]),
        ('language != "en"', [False, True, False, True]),
        ("unknown == 'x'", [False] * 4),
    ],
)
def test_a_condition_holds_where_it_says_and_never_on_nothing(text: str, holds: list[bool]) -> None:
    assert parse(text).mask(TABLE).tolist() == holds


def test_all_conditions_have_to_hold() -> None:
    conditions = [parse("rate > -1"), parse("score >= 3")]
    assert all_hold(conditions, TABLE).tolist() == [True, True, False, False]
    assert all_hold([], TABLE).all()


@pytest.mark.parametrize(
    "text", ["", "score", "score >=", ">= 3", "score = 3", "score >= 3 and rate > 0 ==", "f(x) > 1", "a.b > 1", "1 < x"]
)
def test_what_is_no_condition_is_refused(text: str) -> None:
    if text == "score >= 3 and rate > 0 ==":  # reads as a text, which a number is not compared with
        with pytest.raises(ValueError, match="is a number"):
            parse(text).mask(TABLE)
        return
    with pytest.raises(ValueError, match="should be a column"):
        parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("scores >= 3", "did you mean 'score'"),
        ("score >= high", "is a number, 'high' is none"),
        ("score == '3'", "is a number"),
        ("language > en", "compared by == or != only"),
    ],
)
def test_what_does_not_fit_the_index_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse(text).mask(TABLE)


@pytest.mark.parametrize("text", ["a == 'b", "a == '", "a == 'b'c'"])
def test_quotes_must_match(text: str) -> None:
    with pytest.raises(ValueError, match="quotes"):
        parse(text)
