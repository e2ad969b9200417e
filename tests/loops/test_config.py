"""What a whole run may ask for across its sections; each section's own values are tested where they are owned."""

from __future__ import annotations

from typing import Any

import pytest

from sail_train.config import to_dataclass
from sail_train.loops import LOOPS
from sail_train.loops.config import RunConfig

PARTS = {
    "vision": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
    "language": {
        "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}  # fmt: skip


def make(**values: Any) -> RunConfig:
    config: RunConfig = to_dataclass(RunConfig, {"loop": "supervised", "run_dir": "runs/x", "model": PARTS, **values})
    return config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loop": "supervize"}, "loop='supervize' is none of rl, sample, soup, supervised; did you mean 'supervised'"),
        ({"parents": {"modle": "runs/a"}}, "parents='modle'"),
        (
            {"model": {**PARTS, "template": "sail_vl"}},
            "model.template='sail_vl' is none of qwen3, sail_vl2, seed1_5_vl",
        ),
        ({"parents": {"model": "a", "vision": "b"}}, "give a whole model, or its parts, not both"),
        ({"valid": {"mine": {"shards": "a.tar"}}}, "valid names mine, and train.valid_every=0 measures nothing"),
        ({"valid": {"mine": {}}}, "valid.mine: there is no such source, and a new one needs valid.mine.shards"),
    ],
)
def test_what_no_run_can_be_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        make(**values)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "parents",
    [{}, {"model": "a"}, {"vision": "a", "adapter": "b", "language": "c"}, {"member_1": "a", "member_12": "b"}],
)
def test_every_role_of_a_parent_is_taken(parents: dict[str, str]) -> None:
    assert make(parents=parents).parents == parents


def test_every_loop_can_be_chosen() -> None:
    assert {make(loop=name).loop for name in LOOPS} == {"supervised", "rl", "soup", "sample"}
