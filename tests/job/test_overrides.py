"""Tokens: which are ours, which are Hydra's, and what is said about those that are neither."""

from __future__ import annotations

from typing import Any

import pytest

from sail_train.job.overrides import Assignment, flatten, parse_entries, parse_tokens


def test_our_keys_and_groups_are_told_from_values() -> None:
    request = parse_tokens(
        ["recipe=tiny", "stage=align", "parent=runs/x", "force=true", "model=big", "engine=zero2", "train.max_steps=2"]
    )
    assert (request.recipe, request.stage, request.parent, request.force) == ("tiny", "align", "runs/x", True)
    assert request.groups == {"model": "big", "engine": "zero2"}
    assert request.assignments == [Assignment(key="train.max_steps", value=2)]


@pytest.mark.parametrize(
    ("token", "value"),
    [
        ("a=1e-4", 1e-4),
        ("a=null", None),
        ("a=true", True),
        ("a=[1,2]", [1, 2]),
        ("a={x: 1}", {"x": 1}),
        ("a='x, y'", "x, y"),
        ("a=", ""),
        ("+a=3", 3),
        ("++a=3", 3),
        ("a=${data_dir}/x", "${data_dir}/x"),
        ("a=s3://bucket/{0..999}.tar", "s3://bucket/{0..999}.tar"),
        ("a=x/{000,001}.tar", "x/{000,001}.tar"),
        ("a=~/data", "~/data"),
        ("a=b=c", "b=c"),
        ("a=it's", "it's"),
        ("a=[on,off]", ["on", "off"]),
    ],
)
def test_values_are_hydra_literals_or_the_text_they_are(token: str, value: Any) -> None:
    assert parse_tokens([token]).assignments == [Assignment(key="a", value=value)]


def test_a_key_is_taken_away_with_a_tilde() -> None:
    assert parse_tokens(["~data.sources.x"]).assignments == [Assignment(key="data.sources.x", delete=True)]


@pytest.mark.parametrize(
    ("token", "message"),
    [
        ("align", "'align' is no override; write key=value"),
        ("=3", "'=3' is no override"),
        ("a b=3", "'a b=3' is no override"),
        ("~", "to take a key away write ~key"),
        ("a=1,2", r"is several values; write a list as a=\[1,2\]"),
        ("a=range(1,3)", "is several values"),
        ("a=[1,2", "check brackets and quotes"),
        ("force=yes", "force should be true or false"),
        ("stage=", "stage should be a name"),
        ("model=[a,b]", "model should be a name"),
    ],
)
def test_a_token_that_is_none_is_named(token: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tokens([token])


def test_a_recipes_overrides_may_be_a_mapping_a_list_or_both() -> None:
    request = parse_entries([{"optim.lr": {"vision": 1.0}, "model": "big"}, "train.max_steps=2"], where="here")
    assert request.groups == {"model": "big"}
    assert request.assignments == [
        Assignment(key="optim.lr.vision", value=1.0),
        Assignment(key="train.max_steps", value=2),
    ]
    assert parse_entries({}, where="here").assignments == []


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stage": "x"}, "here: stage cannot be overridden"),
        (["force=true"], "here: force cannot be overridden"),
        ([3], "here: 3 should be a mapping or a text"),
        ({"a b": 1}, "here: 'a b' is no dotted key"),
    ],
)
def test_a_recipes_wrong_overrides_are_named(overrides: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_entries(overrides, where="here")


def test_flatten_keeps_lists_and_empty_mappings_whole() -> None:
    assert flatten({"a": {"b": [1, {"c": 2}], "d": {}}, "e": 1}) == [("a.b", [1, {"c": 2}]), ("a.d", {}), ("e", 1)]
