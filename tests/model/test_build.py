from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from sail_train.model.build import build_model, load_model, save_model
from sail_train.model.config import ModelConfig
from sail_train.model.names import part_of
from sail_train.model.vlm import SailVLForConditionalGeneration

Make = Callable[..., SailVLForConditionalGeneration]
TOKENS = {"image": 61, "eos": 62, "pad": 63}


def weights(vlm: torch.nn.Module, part: str) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in vlm.named_parameters() if part_of(name) == part}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def parent(make_model: Make, tmp_path: Path) -> Path:
    """A saved run directory whose weights differ from those of seed 0."""
    save_model(make_model(seed=7), tmp_path / "run" / "model")
    return tmp_path / "run"


@pytest.fixture
def qwen(tmp_path: Path, config: ModelConfig) -> Path:
    """A plain Hugging Face Qwen3 folder of the config's shapes, with a smaller vocabulary."""
    language = config.language
    shapes = {
        name: getattr(language, name)
        for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    }
    torch.manual_seed(0)
    qwen3 = Qwen3ForCausalLM(
        Qwen3Config(
            **shapes,
            num_key_value_heads=2,
            head_dim=8,
            vocab_size=50,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 1_000_000.0},
        )
    )
    qwen3.save_pretrained(tmp_path / "qwen")
    return tmp_path / "qwen"


def test_the_same_seed_gives_the_same_model_whatever_the_global_generator(make_model: Make) -> None:
    torch.manual_seed(1)
    first = make_model(seed=3)
    torch.manual_seed(2)
    second = make_model(seed=3)
    for part in ("vision", "adapter", "language"):
        assert same(weights(first, part), weights(second, part))
        assert not same(weights(first, part), weights(make_model(seed=4), part))


def test_a_parts_initialisation_does_not_depend_on_the_other_parts(
    make_model: Make, make_config: Callable[..., ModelConfig], parent: Path
) -> None:
    plain = make_model(seed=0)
    loaded = make_model(seed=0, parents={"vision": str(parent)})
    assert not same(weights(plain, "vision"), weights(loaded, "vision"))
    assert same(weights(plain, "language"), weights(loaded, "language"))
    assert same(weights(plain, "adapter"), weights(loaded, "adapter"))
    deeper = make_model(make_config(num_hidden_layers=3), seed=0)
    assert same(weights(plain, "vision"), weights(deeper, "vision"))


def test_building_leaves_the_global_generator_where_scratch_parts_found_it(make_model: Make) -> None:
    model = make_model()
    assert {str(p.dtype) for p in model.parameters()} == {"torch.float32"}
    spread = model.vision.layers[0].qkv.weight.std()
    assert 0.15 < spread < 0.25  # the config's initializer_range of 0.2
    assert not model.adapter.up.bias.any() and (model.adapter.norm.weight == 1).all()


def test_each_part_comes_from_its_own_parent(make_model: Make, parent: Path) -> None:
    source = load_model(parent)
    model = make_model(seed=0, parents={"vision": str(parent / "model"), "language": str(parent), "member_1": "x"})
    for part in ("vision", "language"):
        assert same(weights(model, part), weights(source, part))
    assert not same(weights(model, "adapter"), weights(source, "adapter"))


def test_a_parent_goes_before_the_path_in_the_config(make_model: Make, config: ModelConfig, parent: Path) -> None:
    config.adapter = replace(config.adapter, path=str(parent / "missing"))
    model = make_model(config, parents={"adapter": str(parent)})
    assert same(weights(model, "adapter"), weights(load_model(parent), "adapter"))
    with pytest.raises(ValueError, match="missing is not a directory"):
        make_model(config)


def test_a_whole_parent_is_taken_as_it_is(make_model: Make, parent: Path) -> None:
    model = make_model(seed=0, parents={"model": str(parent)})
    for part in ("vision", "adapter", "language"):
        assert same(weights(model, part), weights(load_model(parent), part))
    assert model.training and make_model().training and not load_model(parent).training


def test_a_whole_parent_and_a_part_are_too_many(make_model: Make, parent: Path) -> None:
    with pytest.raises(ValueError, match="parents has both model and adapter, vision"):
        make_model(parents={"model": str(parent), "vision": str(parent), "adapter": str(parent)})


def test_a_saved_model_computes_the_same(make_model: Make, tmp_path: Path, make_sample: Callable) -> None:
    model, sample = make_model().eval(), make_sample(0, 9, (4, 6))
    save_model(model, tmp_path)
    again = load_model(tmp_path).eval()
    inputs = {"input_ids": sample["input_ids"][None], "patches": sample["patches"], "grids": sample["grids"]}
    assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    assert again.language_model.lm_head.weight is again.get_input_embeddings().weight
    assert again.generation_config.eos_token_id == [62, 63] and again.generation_config.pad_token_id == 63
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}


@pytest.mark.parametrize("tied", [True, False])
def test_a_gathered_state_dict_is_saved_in_the_modules_stead(
    make_model: Make, make_config: Callable[..., ModelConfig], tmp_path: Path, tied: bool
) -> None:
    """ZeRO 3 gathers copies, named as in PackedLM: a tied weight comes twice and is no longer shared."""
    model = make_model(make_config(tie_word_embeddings=tied))
    state = {f"vlm.{name}": tensor.detach().clone() for name, tensor in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.data = torch.empty(0)
    save_model(model, tmp_path, state)
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name.removeprefix("vlm.")]) for name, tensor in state.items())
    assert ("language_model.lm_head.weight" in load_file(tmp_path / "model.safetensors")) is not tied


def test_shards_are_read_like_one_file(make_model: Make, tmp_path: Path) -> None:
    model = make_model(seed=7)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    built = make_model(seed=0, parents={"language": str(tmp_path)})
    assert same(weights(built, "language"), weights(model, "language"))
    assert same(weights(load_model(tmp_path), "vision"), weights(model, "vision"))


def test_a_plain_qwen3_folder_is_a_language_part(make_model: Make, config: ModelConfig, qwen: Path) -> None:
    config.language = replace(config.language, path=str(qwen))
    model, source = make_model(config), Qwen3ForCausalLM.from_pretrained(qwen)
    embeddings = model.get_input_embeddings().weight
    assert embeddings.shape[0] == 64 and model.config.text_config.vocab_size == 64
    assert torch.equal(embeddings[:50], source.get_input_embeddings().weight)
    new, old = embeddings[50:], embeddings[:50]
    assert (new.mean() - old.mean()).abs() < 0.01 and 0.5 < new.std() / old.std() < 2
    ids = torch.randint(0, 50, (2, 7))
    logits = model(input_ids=ids).logits[..., :50]
    torch.testing.assert_close(logits, source(ids).logits, atol=1e-5, rtol=1e-5)


def test_spare_rows_of_a_language_model_are_kept(make_model: Make, config: ModelConfig, qwen: Path) -> None:
    config.language = replace(config.language, path=str(qwen))
    model = make_model(config, vocab_size=40, token_ids={"image": 30, "eos": 31, "pad": 32})
    assert len(model.get_input_embeddings().weight) == 50


def test_half_precision_is_built_and_loaded(make_model: Make, tmp_path: Path) -> None:
    model = make_model(dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}


def test_an_unknown_dtype_is_refused(make_model: Make, parent: Path) -> None:
    with pytest.raises(ValueError, match="dtype='float' is none of bfloat16, float16, float32"):
        make_model(dtype="float")
    with pytest.raises(ValueError, match="did you mean 'bfloat16'"):
        load_model(parent, dtype="bfloat61")


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("vision", "num_hidden_layers", 3),
        ("vision", "rope_theta", 5.0),
        ("vision", "image_mean", [0.5, 0.5, 0.5]),
        ("adapter", "merge_size", 1),
        ("language", "intermediate_size", 48),
        ("language", "rope_theta", 5.0),
    ],
)
def test_a_parent_of_other_shapes_is_refused(
    make_model: Make, config: ModelConfig, parent: Path, part: str, field: str, value: object
) -> None:
    setattr(config, part, replace(getattr(config, part), **{field: value}))
    for key in (part, "model"):
        with pytest.raises(ValueError, match=rf"{part}.{field}=.* in the config, .* in .*/run/model; they must agree"):
            make_model(config, parents={key: str(parent)})


def test_a_tokenizer_that_does_not_fit_the_parent_is_refused(make_model: Make, parent: Path) -> None:
    with pytest.raises(ValueError, match="has 64 embeddings for a tokenizer of 70"):
        make_model(parents={"model": str(parent)}, vocab_size=70)
    with pytest.raises(ValueError, match="takes token 61 for an image, the tokenizer 60"):
        make_model(parents={"model": str(parent)}, token_ids={**TOKENS, "image": 60})


def test_a_language_folder_has_no_vision_part(make_model: Make, qwen: Path) -> None:
    with pytest.raises(ValueError, match="holds a 'qwen3' model; a vision part comes from a sail_vl one"):
        make_model(parents={"vision": str(qwen)})
    with pytest.raises(ValueError, match="holds a 'qwen3' model, not 'sail_vl'"):
        load_model(qwen)


def test_weights_that_are_missing_unknown_or_misshapen_are_named(make_model: Make, parent: Path) -> None:
    file = parent / "model" / "model.safetensors"
    good = load_file(file)
    name = "vision.norm.weight"
    for change, message in (
        ({name: None}, ("lacks vision weights: norm.weight", "missing keys: vision.norm.weight")),
        ({"vision.extra": torch.ones(1)}, ("unknown vision weights: extra", "unexpected keys: vision.extra")),
        ({name: torch.ones(3)}, (r"vision weight norm.weight is \(3,\), not \(16,\)", "vision.norm.weight")),
    ):
        save_file({k: v for k, v in {**good, **change}.items() if v is not None}, file, {"format": "pt"})
        with pytest.raises(ValueError, match=message[0]):
            make_model(parents={"vision": str(parent)})
        with pytest.raises(ValueError, match=message[1]):
            load_model(parent)


def test_building_needs_no_folder(config: ModelConfig) -> None:
    model = build_model(config, parents={}, seed=0, token_ids=TOKENS, vocab_size=64)
    assert model.config.image_token_id == 61
