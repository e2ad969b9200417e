"""Parameters, tokens and costs of the presets: ours, exact, beside what the reports round."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from sail_train.commands import model
from sail_train.cost import state_bytes

LARGE = ("model.vision.hidden_size=1024", "model.vision.intermediate_size=2816", "model.vision.num_attention_heads=8")

# (vision, adapter, language, total, active)
EXACT = {
    "sail_vl2_1b": (682_031_616, 7_354_368, 596_049_920, 1_285_435_904, 1_285_435_904),
    "sail_vl2_2b": (682_031_616, 16_793_600, 1_720_574_976, 2_419_400_192, 2_419_400_192),
    "sail_vl2_2b_anyres": (682_031_616, 16_793_600, 1_720_574_976, 2_419_400_192, 2_419_400_192),
    "sail_vl2_8b": (682_031_616, 41_963_520, 8_190_735_360, 8_914_730_496, 8_914_730_496),
    "sail_vl2_30b_a3b": (682_031_616, 16_793_600, 30_532_122_624, 31_230_947_840, 4_051_857_920),
    "seed1_5_vl": (532_044_800, 32_780_800, 200_911_770_624, 201_476_596_224, 20_282_663_424),
}


def facts(capsys: pytest.CaptureFixture[str], *tokens: str) -> dict[str, Any]:
    assert model.run([*tokens, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_exactly_those_of_the_published_shapes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    counted = facts(capsys, f"model={name}")["parameters"]
    assert tuple(counted[key] for key in ("vision", "adapter", "language", "total", "active")) == EXACT[name]


def test_the_reports_round_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    two, eight = (facts(capsys, f"model=sail_vl2_{size}") for size in ("2b", "8b"))
    assert two["parameters"]["total"] / 1e9 == pytest.approx(2.419, abs=5e-4)
    assert (two["parameters"]["total"] + two["tied_embedding"]) / 1e9 == pytest.approx(2.731, abs=5e-4)
    assert two["parameters"]["adapter"] / 1e6 == pytest.approx(16.8, abs=0.05)
    assert eight["parameters"]["total"] / 1e9 == pytest.approx(8.915, abs=5e-4)
    assert eight["parameters"]["adapter"] / 1e6 == pytest.approx(42.0, abs=0.05)
    assert not eight["tied_embedding"]
    assert facts(capsys, "model=sail_vl2_30b_a3b")["parameters"]["total"] / 1e9 == pytest.approx(31.23, abs=5e-3)
    assert facts(capsys, "model=seed1_5_vl")["parameters"]["vision"] / 1e6 == pytest.approx(532.04, abs=5e-3)


def test_sail_vit_large_is_the_huge_one_with_other_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    vision = facts(capsys, "model=sail_vl2_2b", *LARGE)["parameters"]["vision"]
    width, inner, layers = 1024, 2816, 24
    layer = 4 * width**2 + 3 * width * inner + 2 * width
    assert vision == layers * layer + (3 * 14**2 + 1) * width + width + 32**2 * width + width
    assert vision / 1e9 == pytest.approx(0.31, abs=5e-3)


def test_seed_vit_has_the_parameters_of_table_1(capsys: pytest.CaptureFixture[str]) -> None:
    width, inner, layers = 1280, 5120, 27
    matrices = 4 * width**2 + 2 * width * inner
    vectors = 3 * width + width + inner + width + 2 * 2 * width  # biases, and two LayerNorms
    embedding = (3 * 14**2 + 1) * width
    assert facts(capsys, "model=seed1_5_vl")["parameters"]["vision"] == layers * (matrices + vectors) + embedding


def test_tokens_of_images(capsys: pytest.CaptureFixture[str]) -> None:
    def tokens(name: str) -> dict[tuple[int, int], int]:
        return {(i["height"], i["width"]): i["tokens"] for i in facts(capsys, f"model={name}")["images"]}

    assert tokens("sail_vl2_2b")[448, 448] == 256
    assert tokens("sail_vl2_2b_anyres")[1792, 1792] == 4096
    assert tokens("seed1_5_vl")[1792, 1792] == 4096


def test_a_token_costs_two_flops_a_weight_that_it_meets(capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(capsys, "model=sail_vl2_30b_a3b")
    rows, width = 151_936, 2048
    met = found["parameters"]["active"] - found["parameters"]["vision"] - found["parameters"]["adapter"] - rows * width
    assert found["flops_per_token"]["first"] == pytest.approx(2 * met, rel=1e-3)  # norms are left out
    assert found["flops_per_token"]["after_8192"] > found["flops_per_token"]["first"]


def test_the_documented_table_is_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    for name in EXACT:
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        numbers = [int(cell.replace(",", "")) for cell in re.findall(r"\b\d{1,3}(?:,\d{3})+\b", row)]
        counted = facts(capsys, f"model={name}")["parameters"]
        assert numbers == [counted[key] for key in ("vision", "adapter", "language", "total", "active")], name


@pytest.mark.parametrize("name", [name for name in EXACT if name != "sail_vl2_2b_anyres"])
def test_the_documented_memory_is_what_is_computed(name: str) -> None:
    text, total = (Path(__file__).parents[2] / "docs" / "models.md").read_text(), EXACT[name][3]
    row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
    computed = [
        sum(state_bytes(total, total, zero_stage=stage, num_devices=devices, bf16=True).values())
        for devices in (8, 64)
        for stage in (1, 2, 3)
    ]
    assert row.split("|")[2:-1] == [f" {each / 1e9:,.1f} " for each in (*computed, 2 * total)]


def test_the_tables_show_what_the_json_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.run(["model=tiny_moe"]) == 0
    shown = capsys.readouterr().out
    counted = facts(capsys, "model=tiny_moe")["parameters"]
    assert f"{counted['total']:,}" in shown and f"{counted['active']:,}" in shown and "8 experts" in shown
    assert counted["active"] < counted["total"]


def test_without_a_name_the_presets_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert model.run([]) == 0
    assert {*EXACT, "tiny", "tiny_anyres", "tiny_moe", "tiny_native"} <= set(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (["model=sail_vl2_3b"], "did you mean"),
        (["model=tiny", "model.language.hidden=3"], "unknown key; did you mean 'hidden_size'"),
        (["model=tiny", "model.language.vocab_size=null"], "vocab_size is null"),
        (["--json"], "which model"),
    ],
)
def test_what_is_wrong_is_named(tokens: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model.run(tokens)
