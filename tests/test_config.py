"""Configs: what is refused, with which words, and what comes back unchanged."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import pytest

from sail_train.config import choice, nearest, suggestion, to_dataclass, to_mapping


class Kind(Enum):
    COSINE = "cosine"
    LINEAR = "linear"


@dataclass(kw_only=True)
class Source:
    shards: str | list[str]
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise ValueError(f"weight={self.weight} must be 0 or more")


@dataclass(kw_only=True)
class Data:
    seq_length: int
    sources: dict[str, Source] = field(default_factory=dict)


@dataclass(kw_only=True)
class Optim:
    eps: float = 1.0

    def __post_init__(self) -> None:
        if self.eps <= 0:
            raise ValueError(f"optim.eps={self.eps} must be above 0")


@dataclass(kw_only=True)
class Root:
    data: Data
    name: str = "x"
    note: str | None = None
    optim: Optim | None = None
    flag: bool = False
    kind: Kind = Kind.COSINE
    betas: tuple[float, float] = (0.9, 0.95)
    steps: tuple[int, ...] = ()
    names: list[str] = field(default_factory=list)
    extra: dict[str, Any] = field(default_factory=dict)
    best: Source | None = None
    limit: int | str | None = None
    derived: int = field(init=False, default=3)


def build(**values: Any) -> Root:
    return to_dataclass(Root, {"data": {"seq_length": 8}, **values})


def test_nested_values_become_their_dataclasses() -> None:
    root = build(data={"seq_length": 8, "sources": {"caption": {"shards": ["a", "b"], "weight": 2}}})
    assert root.data.sources["caption"] == Source(shards=["a", "b"], weight=2.0)
    assert isinstance(root.data.sources["caption"].weight, float)


def test_a_mapping_comes_back_as_it_went_in() -> None:
    mapping = {
        "data": {"seq_length": 8, "sources": {"a": {"shards": "x", "weight": 1.5}}},
        "name": "y",
        "note": "n",
        "optim": {"eps": 0.5},
        "flag": True,
        "kind": "linear",
        "betas": [0.8, 0.9],
        "steps": [1, 2, 3],
        "names": ["p"],
        "extra": {"deep": {"list": [1, "two"]}},
        "best": {"shards": ["z"], "weight": 0.0},
        "limit": "none",
    }
    root = to_dataclass(Root, mapping)
    assert root.kind is Kind.LINEAR and root.betas == (0.8, 0.9) and root.steps == (1, 2, 3)
    assert to_mapping(root) == mapping
    assert to_dataclass(Root, to_mapping(root)) == root


def test_an_unknown_key_names_its_path_and_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"^data\.sources\.caption\.wieght: unknown key; did you mean 'weight'\?$"):
        build(data={"seq_length": 8, "sources": {"caption": {"shards": "x", "wieght": 2}}})


def test_an_unknown_key_without_a_neighbour_lists_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"^data\.zzzz: unknown key; known: seq_length, sources$"):
        build(data={"seq_length": 8, "zzzz": 1})


def test_a_derived_field_cannot_be_set() -> None:
    with pytest.raises(ValueError, match=r"^derived: unknown key"):
        build(derived=1)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(ValueError, match=r"^data\.seq_length: missing and has no default"):
        build(data={})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": {"seq_length": "8"}}, "data.seq_length='8' should be a whole number, not a string"),
        ({"data": {"seq_length": True}}, "data.seq_length=True should be a whole number, not true or false"),
        ({"data": {"seq_length": 8.0}}, "data.seq_length=8.0 should be a whole number, not a number"),
        ({"data": {"seq_length": None}}, "data.seq_length=null should be a whole number, not null"),
        ({"data": 3}, "data: 3 should be a mapping of keys to values"),
        ({"flag": 1}, "flag=1 should be true or false, not a whole number"),
        ({"name": 3}, "name=3 should be a string, not a whole number"),
        ({"note": 3}, "note=3 should be a string, not a whole number"),
        ({"betas": [0.9]}, "betas=[0.9] should have 2 values, not 1"),
        ({"betas": 0.9}, "betas=0.9 should be a list, as in betas=[a,b]"),
        ({"steps": [1, "x"]}, "steps[1]='x' should be a whole number, not a string"),
        ({"extra": 3}, "extra=3 should be a mapping of names to values"),
        ({"extra": {3: 4}}, "extra: the key 3 should be a string; write it in quotes"),
        ({"limit": [1]}, "limit=[1] should be a whole number or a string or null"),
        ({"best": {"shards": {}}}, "best.shards={} should be a string or a list"),
        ({"kind": "cosin"}, "kind='cosin' is none of cosine, linear; did you mean 'cosine'?"),
    ],
)
def test_a_wrong_type_names_field_value_and_remedy(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        build(**values)
    assert str(error.value) == message


def test_what_a_dataclass_refuses_is_given_its_path() -> None:
    with pytest.raises(ValueError, match=r"^data\.sources\.a: weight=-1\.0 must be 0 or more$"):
        build(data={"seq_length": 8, "sources": {"a": {"shards": "x", "weight": -1}}})


def test_a_message_that_names_its_path_is_left_as_it_is() -> None:
    with pytest.raises(ValueError, match=r"^optim\.eps=0\.0 must be above 0$"):
        build(optim={"eps": 0})


def test_choice_returns_the_entry_or_names_the_choices() -> None:
    table = {"cosine": 1, "constant": 2}
    assert choice("schedule.name", "cosine", table) == 1
    with pytest.raises(ValueError, match=r"^schedule\.name='cosin' is none of constant, cosine; did you mean 'cosine'"):
        choice("schedule.name", "cosin", table)
    with pytest.raises(ValueError, match=r"^schedule\.name='wsd' is none of constant, cosine$"):
        choice("schedule.name", "wsd", table)


def test_nearest_ignores_case_and_stays_silent_when_nothing_is_near() -> None:
    assert nearest("Wieght", ["weight", "shards"]) == "weight"
    assert nearest("qqq", ["weight"]) is None
    assert suggestion("a", []) == "there are none to choose from"
    assert suggestion("zzzz", [f"name_{i:02}" for i in range(25)]).endswith("name_19 and 5 more")


def test_importing_it_loads_no_heavy_package() -> None:
    code = "import sys, sail_train.config, sail_train.types; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
