"""Parts as they are published -> a model that is what `build_model` makes of them, without holding it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Aimv2VisionConfig, Aimv2VisionModel, Qwen3Config, Qwen3ForCausalLM

from sail_train.export import shards
from sail_train.export.assemble import assemble
from sail_train.export.write import export
from sail_train.model.build import build_model, load_model, save_model
from sail_train.model.config import ModelConfig
from sail_train.model.released import FAMILIES, part_tensors
from sail_train.model.rules import to_theirs
from sail_train.model.vision.patches import normalise, pictures, raster_index
from sail_train.processor.processor import load_processor

SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}


def weights(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def write_folder(folder: Path, config: dict[str, Any], tensors: Iterable[tuple[str, Tensor]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({name: tensor.contiguous() for name, tensor in tensors}, folder / "model.safetensors", {"format": "pt"})
    return folder


def transformers_aimv2() -> Aimv2VisionModel:
    torch.manual_seed(1)
    return Aimv2VisionModel(Aimv2VisionConfig(**SIZES, patch_size=4, image_size=16, use_head=True))


@pytest.fixture(scope="module")
def language(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3 folder whose embedding lacks rows for the tokens that the style adds."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("parts") / "qwen3"
    sizes = SIZES | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    Qwen3ForCausalLM(Qwen3Config(
        **sizes, vocab_size=300, tie_word_embeddings=False, max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )).to(torch.bfloat16).save_pretrained(folder)  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((tokenizer_dir / name).read_bytes())
    return folder


@pytest.fixture(scope="module")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same encoder in each family's names, the pooling head that we have not among them."""
    root = tmp_path_factory.mktemp("encoders")
    model = transformers_aimv2()
    model.save_pretrained(root / "transformers")
    head = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("head.")}
    ours = dict(part_tensors(root / "transformers", "vision"))
    config = {"model_type": "aimv2", **SIZES, "patch_size": 4, "image_size": 16, "rms_norm_eps": 1e-5}
    families = {family.name: family for family in FAMILIES}
    for name, family in {"apple": "AIMv2 as published", "sail": "SAIL-ViT as released"}.items():
        theirs = dict(to_theirs(ours.items(), families[family].parts["vision"]))
        extra = {f"head.{n}": t for n, t in head.items()} if name == "apple" else {}
        write_folder(root / name, config, {**theirs, **extra}.items())
    return {name: root / name for name in ("transformers", "apple", "sail")}


@pytest.fixture
def config(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    return make_config("aimv2", tie_word_embeddings=False, max_position_embeddings=64)


@pytest.mark.parametrize("family", ["transformers", "apple", "sail"])
def test_a_model_of_parts_is_the_one_that_a_stage_would_build(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path, family: str
) -> None:
    paths = {"vision": str(encoders[family]), "language": str(language)}
    out = assemble(config, paths, tmp_path / "out", dtype="float32", seed=3, shard_size="20KB")
    processor = load_processor(out)
    built = build_model(
        config, parents=paths, seed=3, token_ids=processor.token_ids, vocab_size=processor.vocab_size
    )  # fmt: skip
    save_model(built, tmp_path / "saved")
    for name in ("config.json", "generation_config.json"):
        assert (out / name).read_text() == (tmp_path / "saved" / name).read_text(), name
    loaded = load_model(out)
    found = dict(loaded.named_parameters())
    for name, parameter in built.named_parameters():
        assert torch.equal(found[name], parameter), name
    assert len(found["language_model.lm_head.weight"]) == processor.vocab_size > 300
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {file.name for file in out.glob("*.safetensors")}
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in weights(out).values())
    assert max(sum(t.nbytes for t in load_file(file).values()) for file in out.glob("*.safetensors")) <= 21_000


def test_the_encoder_sees_what_transformers_own_sees(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path
) -> None:
    paths = {"vision": str(encoders["apple"]), "language": str(language)}
    vision = load_model(assemble(config, paths, tmp_path / "out", dtype="float32")).vision
    patches = torch.randint(0, 256, (16, 48), dtype=torch.uint8)  # one tile in merge-block order
    pixels = pictures(normalise(patches, vision.config)[None], 4, 4, 2)
    with torch.no_grad():
        theirs = transformers_aimv2().eval()(pixel_values=pixels).last_hidden_state[0]
        ours = vision(patches, ((4, 4),))
    order = raster_index(4, 4, 2, theirs.device)
    torch.testing.assert_close(ours, theirs[order], rtol=1e-4, atol=1e-5)  # fp32, other order of summation


def test_parts_come_out_of_a_released_model_and_of_ours(
    make_run: Callable[..., Path], make_config: Callable[..., ModelConfig], tmp_path: Path
) -> None:
    first, second = (make_run(tmp_path / f"run{seed}", "aimv2", seed=seed) for seed in (1, 2))
    released = export(first, tmp_path / "released", format="released")
    paths = {"vision": str(released), "adapter": str(released), "language": str(second)}
    found = weights(assemble(make_config("aimv2"), paths, tmp_path / "out", dtype="float32"))
    one, two = weights(first / "model"), weights(second / "model")
    expected = {name: (two if name.startswith("language") else one)[name] for name in one}
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


def test_the_same_seed_draws_the_same_adapter(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path
) -> None:
    paths = {"vision": str(encoders["sail"]), "language": str(language)}
    one, same, other = (
        weights(assemble(config, paths, tmp_path / str(i), seed=seed)) for i, seed in enumerate((0, 0, 1))
    )  # fmt: skip
    changed = {name for name in one if not torch.equal(one[name], other[name])}
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert {"adapter.up.weight", "adapter.down.weight"} <= changed
    assert {name.split(".")[0] for name in changed} <= {"adapter", "language_model"}  # the rows that were added


def spoil(folder: Path, to: Path, change: Callable[[dict[str, Tensor]], None], **values: Any) -> Path:
    tensors = weights(folder)
    change(tensors)
    return write_folder(to, json.loads((folder / "config.json").read_text()) | values, tensors.items())


def rename(old: str, new: str) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        tensors[new] = tensors.pop(old)

    return change


PIECE = "vision_model.trunk.blocks.1.mlp.fc3.weight"
NORM = "vision_model.trunk.post_trunk_norm.weight"


@pytest.mark.parametrize(
    ("change", "values", "message"),
    [
        (lambda t: t.pop(PIECE), {}, f"lacks vision weights: {PIECE} \\(1 in all\\)"),
        (lambda t: t.pop(NORM), {}, "lacks vision weights: norm.weight"),
        (rename(NORM, "vision_model.trunk.other"), {}, "has vision weights that SAIL-ViT as released has not: .*other"),
        (lambda t: t.update({PIECE: t[PIECE][:, :8]}), {}, "the pieces of layers.1.gate_up.weight do not fit"),
        (lambda t: t.update({NORM: t[NORM][:8]}), {}, r"vision weight norm.weight is \(8,\), not \(16,\)"),
        (lambda t: t.update({NORM: t[NORM] * float("inf")}), {}, "vision.norm.weight holds values that are not finite"),
        (lambda t: [t.pop(name) for name in list(t)[:-1]], {}, "holds weights of no known kind .looked for SAIL-VL2"),
        (lambda t: None, {"hidden_size": 24}, "vision.hidden_size=16 in the config, 24 in"),
        (lambda t: None, {"image_size": 32}, "vision.position_grid=4 in the config, 8 in"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused_and_nothing_is_left(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path,
    change: Callable[[dict[str, Tensor]], None], values: dict[str, Any], message: str,
) -> None:  # fmt: skip
    bad = spoil(encoders["sail"], tmp_path / "bad", change, **values)
    with pytest.raises(ValueError, match=message):
        assemble(config, {"vision": str(bad), "language": str(language)}, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_parts_that_a_folder_has_not_are_refused_by_name(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path
) -> None:
    vision = str(encoders["sail"])
    with pytest.raises(ValueError, match="language= is missing"):
        assemble(config, {"vision": vision}, tmp_path / "out")
    with pytest.raises(ValueError, match="holds SAIL-ViT as released, which has no adapter part; it has vision"):
        assemble(config, {"vision": vision, "language": str(language), "adapter": vision}, tmp_path / "out")
    with pytest.raises(ValueError, match="sail holds a vision encoder, which has no language part; is it the one for"):
        assemble(config, {"vision": vision, "language": vision}, tmp_path / "out")


def tie(folder: Path, to: Path, *, apart: bool) -> Path:
    """A language folder whose config says tied, and which has an output layer nevertheless."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    tensors = weights(folder)
    if not apart:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize("how", ["assembled", "built"])
def test_an_output_layer_that_is_not_the_embedding_is_never_dropped(
    encoders: dict[str, Path], language: Path, make_config: Callable[..., ModelConfig], tmp_path: Path, how: str
) -> None:
    def make(tied: bool, folder: Path, name: str) -> dict[str, Tensor]:
        config = make_config("aimv2", tie_word_embeddings=tied, max_position_embeddings=64)
        paths = {"vision": str(encoders["sail"]), "language": str(folder)}
        if how == "assembled":
            return weights(assemble(config, paths, tmp_path / name, dtype="bfloat16"))
        ids = {"image": 318, "eos": 317, "pad": 319}
        return dict(build_model(config, parents=paths, seed=0, token_ids=ids, vocab_size=320).named_parameters())

    same, apart = (tie(language, tmp_path / name, apart=name == "apart") for name in ("same", "apart"))
    assert "language_model.lm_head.weight" not in make(True, same, "one")
    message = "lm_head differs from embed_tokens; set model.language.tie_word_embeddings=false"
    with pytest.raises(ValueError, match=message):
        make(True, apart, "two")
    found = make(False, apart, "three")["language_model.lm_head.weight"]  # what the message says to do
    assert torch.equal(found[:300].to(torch.bfloat16), weights(language)["lm_head.weight"])
    tensors = weights(same)
    del tensors["lm_head.weight"]
    save_file(tensors, same / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="language.tie_word_embeddings=False in the config, True in"):
        make(False, same, "four")


@pytest.mark.parametrize("part", ["vision", "language"])
def test_weights_of_all_parts_are_looked_for_before_anything_is_written(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path, part: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    folders = {"vision": encoders["sail"], "language": language}
    bare = Path(shutil.copytree(folders[part], tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    monkeypatch.setattr("sail_train.export.parts.ShardWriter", lambda *_: pytest.fail("something was written"))
    with pytest.raises(ValueError, match="bare has no model.safetensors"):
        assemble(config, {name: str(folder) for name, folder in (folders | {part: bare}).items()}, tmp_path / "out")


def test_a_language_folder_without_a_tokenizer_says_what_it_lacks(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path
) -> None:
    bare = Path(shutil.copytree(language, tmp_path / "bare"))
    (bare / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="bare holds no tokenizer that loads: it has no tokenizer.json; write one"):
        assemble(config, {"vision": str(encoders["sail"]), "language": str(bare)}, tmp_path / "out")


def test_an_encoder_of_other_colours_is_refused(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(encoders["apple"], tmp_path / "other"))
    (other / "preprocessor_config.json").write_text(json.dumps({"image_mean": [0.5, 0.5, 0.5]}))
    with pytest.raises(ValueError, match=r"vision.image_mean=\[0.485, .*\[0.5, 0.5, 0.5\] in .*; they must agree"):
        assemble(config, {"vision": str(other), "language": str(language)}, tmp_path / "out")


def test_a_disk_without_room_is_told_before_anything_is_written(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("usage", (), {"free": 1000})
    monkeypatch.setattr(shards.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ValueError, match=r"out needs 0.00 GB, but its disk has 0.00 GB left"):
        assemble(config, {"vision": str(encoders["sail"]), "language": str(language)}, tmp_path / "new" / "out")
    assert not (tmp_path / "new").exists()


def test_settings_of_the_processor_are_those_of_the_config(
    encoders: dict[str, Path], language: Path, config: ModelConfig, tmp_path: Path
) -> None:
    out = assemble(
        config, {"vision": str(encoders["sail"]), "language": str(language)}, tmp_path / "out", system="Be brief."
    )  # fmt: skip
    processor = load_processor(out)
    assert asdict(processor.image_spec) == asdict(config.image_spec)
    assert (processor.template, processor.system) == ("sail_vl2", "Be brief.")
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
