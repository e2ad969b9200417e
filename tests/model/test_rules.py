"""Rules between others' names of weights and ours, and how a folder's family is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sail_train.model.released import FAMILIES, detect, part_tensors
from sail_train.model.rules import LoadReport, Rule, to_ours, to_theirs

RULES = (
    Rule(ours="patch.weight", theirs=("conv.weight",), shape="convolution"),
    Rule(ours="table", theirs=("pos",), shape="one row of positions"),
    Rule(ours="layers.{n}.gate_up.{rest}", theirs=("blocks.{n}.fc1.{rest}", "blocks.{n}.fc3.{rest}")),
    Rule(ours="layers.{n}.down.{rest}", theirs=("blocks.{n}.fc2.{rest}",)),
)


def theirs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "conv.weight": (4, 3, 2, 2), "pos": (1, 9, 4), "blocks.0.fc1.weight": (3, 4), "blocks.10.fc3.bias": (3,),
        "blocks.10.fc1.bias": (3,), "blocks.0.fc3.weight": (3, 4), "blocks.0.fc2.weight": (4, 3),
    }  # fmt: skip
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def test_there_and_back_is_the_same_bit_for_bit() -> None:
    report = LoadReport()
    ours = dict(to_ours(theirs().items(), RULES, report))
    assert {name: tuple(tensor.shape) for name, tensor in ours.items()} == {
        "patch.weight": (4, 12), "table": (9, 4), "layers.0.gate_up.weight": (6, 4), "layers.10.gate_up.bias": (6,),
        "layers.0.down.weight": (4, 3),
    }  # fmt: skip
    assert sorted(report.loaded) == sorted(ours) and not report.unexpected and not report.missing
    assert set(report.reshaped) == set(ours) - {"layers.0.down.weight"}
    back = dict(to_theirs(ours.items(), RULES))
    assert back.keys() == theirs().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in theirs().items())


def test_pieces_stand_in_the_order_of_the_rule_whatever_that_of_the_folder() -> None:
    given = theirs()
    ours = dict(to_ours(reversed(given.items()), RULES, LoadReport()))
    assert torch.equal(
        ours["layers.0.gate_up.weight"], torch.cat((given["blocks.0.fc1.weight"], given["blocks.0.fc3.weight"]))
    )


def test_what_is_unknown_and_what_lacks_a_piece_is_reported() -> None:
    report = LoadReport()
    weights = {"other": torch.ones(1), "blocks.3.fc3.weight": torch.ones(2, 2), "xpos": torch.ones(1)}
    assert not list(to_ours(weights.items(), RULES, report))
    assert report.unexpected == ["other", "xpos"] and report.missing == ["blocks.3.fc1.weight"]


def test_a_weight_that_the_rules_have_no_name_for_is_refused() -> None:
    with pytest.raises(ValueError, match="the weight extra has no name there"):
        list(to_theirs([("extra", torch.ones(1))], RULES))


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_each_family_is_told_by_its_sign(family: object, tmp_path: Path) -> None:
    assert family in FAMILIES
    names = {name.format(n=0, rest="weight") for rules in family.parts.values() for rule in rules
             for name in rule.theirs} | {family.sign}  # fmt: skip
    save_file({name: torch.ones(1) for name in names}, tmp_path / "model.safetensors")
    assert detect(tmp_path) is family


def test_a_folder_of_no_family_is_answered_with_what_was_looked_for(tmp_path: Path) -> None:
    save_file({"a.strange.weight": torch.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"looked for SAIL-VL2 as released: mlp1.0.weight; .*a.strange.weight \(1 in"):
        detect(tmp_path)


def test_harmless_weights_are_left_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    names = ("model.embed_tokens.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", "model.norm.weight")
    save_file({f"language_model.{name}": torch.ones(2) for name in names} | {"mlp1.0.weight": torch.ones(2)},
              tmp_path / "model.safetensors")  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sailvl"}))
    assert {name for name, _ in part_tensors(tmp_path, "language")} == {names[0], names[2]}
    assert "inv_freq" in caplog.text
    assert [name for name, _ in part_tensors(tmp_path, "adapter")] == ["norm.weight"]
