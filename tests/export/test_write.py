from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sail_train.export.shards import ShardWriter
from sail_train.export.write import export
from sail_train.model.build import build_model, load_model, save_model
from sail_train.model.config import LanguageConfig, ModelConfig, VisionConfig
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import build_processor, load_processor
from sail_train.processor.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("export")
    train_tokenizer(["some words"] * 3, 270).save_pretrained(root / "tokenizer")
    shapes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = VisionConfig(**shapes)
    language = LanguageConfig(**shapes, num_key_value_heads=1, head_dim=8)
    processor = build_processor(ProcessorConfig(tokenizer=str(root / "tokenizer")))
    vlm = build_model(
        ModelConfig(vision=vision, language=language),
        parents={},
        seed=0,
        token_ids=processor.token_ids,
        vocab_size=processor.vocab_size,
    )
    save_model(vlm, root / "run" / "model")
    processor.save_pretrained(root / "run" / "model")
    return root / "run"


@pytest.fixture
def run(saved: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def test_an_exported_folder_stands_alone(run: Path, tmp_path: Path) -> None:
    source = load_model(run).state_dict()
    (run / "model" / "optimizer.pt").write_bytes(b"not to travel")
    out = export(run, tmp_path / "out" / "model")
    shutil.rmtree(run)
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
    }
    again = load_model(out).state_dict()
    assert all(torch.equal(source[name], again[name]) for name in source)
    assert load_processor(out).vocab_size == len(again["language_model.lm_head.weight"])
    assert [path.name for path in out.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_travel_in_the_dtype_asked_for_and_keep_it(run: Path, tmp_path: Path, dtype: str) -> None:
    out = export(run / "model", tmp_path / "half", dtype)
    assert {str(t.dtype) for t in load_file(out / "model.safetensors").values()} == {f"torch.{dtype}"}
    again = export(out, tmp_path / "again")
    assert json.loads((again / "config.json").read_text())["dtype"] == dtype


def spoil_config(**values: object) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = json.loads((folder / "processor_config.json").read_text())
        (folder / "processor_config.json").write_text(json.dumps({**config, "image": {**config["image"], **values}}))

    return spoil


def spoil_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["adapter.up.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def spoil_tokenizer(folder: Path) -> None:
    processor = load_processor(folder)
    processor.tokenizer.add_tokens(["one", "more"])
    processor.save_pretrained(folder)


def spoil_image_token(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "image_token_id": 3}))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_config(patch_size=16), "patch_size is 14 for the model, 16 for the processor"),
        (spoil_config(merge_size=1), "merge_size is 2 for the model, 1 for the processor"),
        (spoil_image_token, "image_token_id is 3 for the model"),
        (spoil_tokenizer, "the tokenizer has .* tokens, the model .* embeddings"),
        (spoil_weight, "adapter.up.bias holds values that are not finite in float32"),
        (lambda folder: (folder / "processor_config.json").unlink(), "holds no processor"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no model.safetensors"),
        (lambda folder: (folder / "config.json").unlink(), "neither config.json nor model/config.json"),
    ],
)
def test_what_is_not_fit_to_travel_is_refused_and_leaves_nothing(
    run: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(run / "model")
    with pytest.raises(ValueError, match=message):
        export(run, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_an_existing_folder_is_not_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists; give a new folder"):
        export(run, tmp_path / "out")


def test_an_unknown_dtype_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dtype='int8' is none of"):
        export(run, tmp_path / "out", "int8")


def test_an_unknown_format_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="format='gguf' is none of code, released, sail"):
        export(run, tmp_path / "out", format="gguf")


def test_large_models_travel_in_shards_with_an_index(run: Path, tmp_path: Path) -> None:
    out = export(run, tmp_path / "out", shard_size="10KB")
    files = {file.name for file in out.glob("*.safetensors")}
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert len(files) > 1 and set(index["weight_map"].values()) == files
    source, again = load_model(run).state_dict(), load_model(out).state_dict()
    assert all(torch.equal(source[name], again[name]) for name in source)


@pytest.mark.parametrize("format", ["sail", "code", "released"])
def test_weights_pass_one_by_one_and_no_model_is_held(
    make_run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str
) -> None:
    run = make_run(tmp_path / "run", "aimv2")
    monkeypatch.setattr("sail_train.export.write.load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    waiting: list[int] = []
    add = ShardWriter.add

    def watched(self: ShardWriter, name: str, tensor: torch.Tensor) -> None:
        add(self, name, tensor)
        waiting.append(sum(held.nbytes for held in self._waiting.values()))

    monkeypatch.setattr(ShardWriter, "add", watched)
    out = export(run, tmp_path / "out", format=format, shard_size="10KB")
    largest = max(tensor.nbytes for file in out.glob("*.safetensors") for tensor in load_file(file).values())
    assert len(waiting) > 10 and max(waiting) <= max(10_000, largest) < sum(
        file.stat().st_size for file in out.glob("*.safetensors")
    )


def change(**values: torch.Tensor | None) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors") | {k.replace("__", "."): v for k, v in values.items()}
        kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})

    return spoil


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(adapter__up__bias=None), "lacks model weights: adapter.up.bias"),
        (change(adapter__extra=torch.ones(1)), "has unknown model weights: adapter.extra"),
        (change(adapter__up__bias=torch.ones(3)), r"adapter.up.bias is \(3,\), not \(8,\)"),
        (change(language_model__model__embed_tokens__weight=torch.ones(3, 8)), r"embed_tokens.weight is \(3, 8\), not"),
        (change(language_model__lm_head__weight=torch.ones(271, 8)), "lm_head differs from embed_tokens"),
    ],
)
def test_a_model_whose_weights_are_not_its_configs_is_refused(
    run: Path, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(run / "model")
    with pytest.raises(ValueError, match=message):
        export(run, tmp_path / "out")
    assert not list(tmp_path.glob("out*"))


def test_a_model_with_names_of_transformers_own_is_loaded_to_be_checked(
    make_run: Callable[..., Path], tmp_path: Path
) -> None:
    run = make_run(tmp_path / "run", "aimv2", model_type="glm", tie_word_embeddings=False)
    out = export(run, tmp_path / "out")
    source, again = load_model(run).state_dict(), load_model(out).state_dict()
    assert all(torch.equal(source[name], again[name]) for name in source)
    change(adapter__up__bias=None)(run / "model")
    with pytest.raises(ValueError, match="has missing keys: adapter.up.bias"):
        export(run, tmp_path / "other")
