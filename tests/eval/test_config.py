from __future__ import annotations

import pytest

from sail_train.config import to_dataclass
from sail_train.eval.config import MODES, EvalConfig, SuiteConfig

SUITES = {"read": {"shards": "a.tar"}, "steps": {"shards": ["b.tar"], "limit": 40}}


def build(**values: object) -> EvalConfig:
    return to_dataclass(EvalConfig, {"suites": SUITES, **values}, path="eval")


def test_a_stage_chooses_suites_and_modes() -> None:
    config = build(modes={"steps": ["on", "off"]})
    assert config.modes == {"steps": ["on", "off"]}
    assert config.prompts_of("steps") == 40


def test_an_empty_list_leaves_a_suite_out() -> None:
    assert build(modes={"steps": [], "read": ["on"]}).modes == {"read": ["on"]}


def test_the_smaller_limit_holds_and_zero_is_all() -> None:
    assert build(limit=16).prompts_of("steps") == 16
    assert build(limit=100).prompts_of("steps") == 40
    assert SuiteConfig(shards="a", limit=0).limit == 0
    assert EvalConfig(suites={"read": SuiteConfig(shards="a", limit=0)}).prompts_of("read") is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"modes": {"stepz": ["on"]}}, "did you mean 'steps'"),
        ({"modes": {"steps": ["greddy"]}}, "did you mean 'greedy'"),
        ({"max_new_tokens": 0}, "max_new_tokens=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"samples": 0}, "samples=0"),
        ({"limit": -1}, "limit=-1"),
        ({"show": -1}, "show=-1"),
        ({"suites": {"read": {"shards": "a", "limit": -2}}}, r"eval.suites.read: limit=-2"),
        ({"suites": {"read": {"shard": "a"}}}, "did you mean 'shards'"),
        ({"suites": {"read": {"shards": "a", "max_tiles": 0}}}, "eval.suites.read: max_tiles=0 must be at least 1"),
        ({"suites": {"read": {"shards": "a", "fps": 0.0}}}, "eval.suites.read: fps=0.0 must be above 0"),
    ],
)
def test_wrong_values_are_refused_by_name(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**values)


def test_greedy_modes_are_greedy_and_flags_are_flags() -> None:
    assert MODES["greedy"] == MODES["auto"]
    assert [MODES[name].think for name in ("on", "off", "auto")] == ["on", "off", "auto"]
    assert MODES["on_t1"].temperature == 1.0 and MODES["on"].temperature == 0.0
