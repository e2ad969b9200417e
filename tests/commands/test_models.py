"""`sail-train assemble`, `import` and `export`: what they are told, and what is wrong with it, in one line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Aimv2VisionConfig, Aimv2VisionModel, Qwen3Config, Qwen3ForCausalLM

from sail_train import cli
from sail_train.processor.processor import load_processor

PRESET = """
vision: {type: aimv2, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1,
         position_grid: 2}
language: {hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 1, num_key_value_heads: 1,
           head_dim: 8, vocab_size: 300}
image: {mode: tile, tile_size: 28}
template: sail_vl2
"""


@pytest.fixture(scope="module")
def parts(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vision/ and language/ as downloaded, and configs/ with a preset for them."""
    root = tmp_path_factory.mktemp("parts")
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    Aimv2VisionModel(Aimv2VisionConfig(**sizes, patch_size=14, image_size=28)).save_pretrained(root / "vision")
    rope = {"rope_type": "default", "rope_theta": 1e6}
    text = Qwen3Config(
        **sizes, num_key_value_heads=1, head_dim=8, vocab_size=300, tie_word_embeddings=True, rope_parameters=rope
    )
    Qwen3ForCausalLM(text).save_pretrained(root / "language")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (root / "language" / name).write_bytes((trained.parent / "tokenizer" / name).read_bytes())
    (root / "configs" / "model").mkdir(parents=True)
    (root / "configs" / "model" / "preset.yaml").write_text(PRESET)
    return root


@pytest.fixture
def assemble(parts: Path) -> list[str]:
    folders = [f"vision={parts / 'vision'}", f"language={parts / 'language'}"]
    return ["assemble", "model=preset", "--config-dir", str(parts / "configs"), *folders]


def test_parts_to_a_model_to_the_released_format_and_back(assemble: list[str], tmp_path: Path) -> None:
    ours, released, back = tmp_path / "ours", tmp_path / "released", tmp_path / "back"
    assert cli.main([*assemble, f"out={ours}", "dtype=float32", "seed=5", "model.image.max_tiles=3"]) == 0
    assert load_processor(ours).image_spec.max_tiles == 3
    assert cli.main(["export", str(ours), str(released), "--format", "released", "--shard-size", "2KB"]) == 0
    assert json.loads((released / "config.json").read_text())["max_dynamic_patch"] == 3
    assert len(list(released.glob("model-*-of-*.safetensors"))) > 1
    assert cli.main(["import", str(released), f"out={back}", "model.image.max_tiles=4"]) == 0
    assert load_processor(back).image_spec.max_tiles == 4
    one, two = (load_file(folder / "model.safetensors") for folder in (ours, back))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert (back / "config.json").read_text() == (ours / "config.json").read_text()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "out= is missing"),
        (["out=x", "out=y"], "out=y: out= comes twice"),
        (["out="], "out=: out= needs a value"),
        (["out=x", "seed=-1"], "seed=-1 should be a whole number"),
        (["out=x", "dtype=int8"], "dtype='int8' is none of"),
        (["out=x", "--shard-size", "5"], "shard_size='5' must be a number above 0 with a unit"),
        (["out=x", "--shard-size", "0GB"], "shard_size='0GB' must be a number above 0"),
        (["out=x", "model.vision.hidden_sze=8"], "model.vision.hidden_sze: unknown key"),
        (["out=x", "model.vision.num_hidden_layers=2"], "vision.num_hidden_layers=2 in the config, 1 in"),
        (["out=x", "visoin=aimv2"], "visoin: unknown key; did you mean 'vision'"),
        (["out=x", "adaptor=a"], "adaptor: unknown key; did you mean 'adapter'"),
        (["out=x", "dtypes=float32"], "dtypes: unknown key; did you mean 'dtype'"),
        (["out=x", "language.hidden_size=3"], "language.hidden_size: unknown key; did you mean 'model.language.hidden"),
        (["out=x", "stage=align"], "a model by itself takes model=NAME"),
        (["out=configs"], "configs exists; give a new folder"),
        (["out=vision/config.json/x"], "cannot be made: .*config.json is a file"),
        (["out=x", "adapter=nowhere"], "nowhere is not a directory"),
    ],
)
def test_what_is_wrong_with_parts_is_one_line(
    assemble: list[str], parts: Path, words: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(parts)
    assert cli.main([*assemble, *words]) == cli.EXIT_USAGE
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    assert re.search(message, said), said
    assert not (parts / "x").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out=x"], "holds a 'sail_vl' model, not a released SAIL-VL2"),
        ([], "out= is missing"),
        (["out=x", "image.max_tiles=3"], "image.max_tiles: unknown key; did you mean 'model.image.max_tiles'"),
        (["out=x", "dtyp=float32"], "dtyp: unknown key; did you mean 'dtype'"),
        (["out=x", "train.max_steps=3"], "train.max_steps: import takes out=PATH, dtype=NAME and model.KEY=VALUE"),
        (["out=x", "model=tiny"], "model: import takes out=PATH"),
        (["out=x", "~model.template"], "model.template: import takes"),
    ],
)
def test_what_is_wrong_with_an_import_is_one_line(
    trained: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert cli.main(["import", str(trained), *words]) == cli.EXIT_USAGE
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and message in said
    assert not (tmp_path / "x").exists()
