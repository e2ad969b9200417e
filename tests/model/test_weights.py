"""A mixture's weights out of folders with a tensor for each expert and with fused ones, and back; growing rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3ForCausalLM, Qwen3MoeForCausalLM

from sail_train.model.build import load_model, save_model
from sail_train.model.config import ModelConfig
from sail_train.model.language import text_config
from sail_train.model.vlm import SailVLForConditionalGeneration

Make = Callable[..., SailVLForConditionalGeneration]

EXPERTS, WIDTH, HIDDEN = 4, 12, 24
MIXTURE = {
    "model_type": "qwen3_moe", "num_experts": EXPERTS, "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH,
}  # fmt: skip
EXPERT = "language_model.model.layers.1.mlp.experts.3"


@pytest.fixture
def config(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    return make_config(**MIXTURE)


def released(config: ModelConfig, folder: Path, *, vocabulary: int = 50, per_expert: bool = True) -> Any:
    """A plain language model's folder, as transformers writes it, and the model."""
    torch.manual_seed(0)
    text = text_config(config.language, eos_token_id=1, vocab_size=vocabulary)
    kind = Qwen3MoeForCausalLM if config.language.num_experts else Qwen3ForCausalLM
    model = kind(text).eval()
    model.save_pretrained(folder, save_original_format=per_expert)
    return model


def expert_names(folder: Path) -> set[str]:
    return {name for name in load_file(folder / "model.safetensors") if ".experts." in name}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("per_expert", [True, False])
def test_a_released_mixture_is_a_language_part(
    make_model: Make, make_config: Callable[..., ModelConfig], tmp_path: Path, per_expert: bool, tied: bool
) -> None:
    config = make_config(**MIXTURE, tie_word_embeddings=tied)
    source = released(config, tmp_path, per_expert=per_expert)
    assert len(expert_names(tmp_path)) == (2 * EXPERTS * 3 if per_expert else 2 * 2)
    vlm = make_model(config, parents={"language": str(tmp_path)})
    expected = dict(source.named_parameters())
    grown = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    for name, parameter in vlm.language_model.named_parameters():
        rows = 50 if name in grown else len(parameter)
        assert torch.equal(parameter[:rows], expected[name]), name
    ids = torch.randint(0, 50, (2, 7), generator=torch.Generator().manual_seed(0))
    logits = vlm.eval()(input_ids=ids).logits[..., :50]
    torch.testing.assert_close(logits, source(ids).logits, atol=1e-5, rtol=1e-5)


def test_each_experts_tensors_come_to_their_place(make_model: Make, config: ModelConfig, tmp_path: Path) -> None:
    """By hand: in the fused parameter the gate's rows stand before the other's."""
    released(config, tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    names = {kind: f"model.layers.1.mlp.experts.3.{kind}_proj.weight" for kind in ("gate", "up", "down")}
    for number, (kind, name) in enumerate(names.items()):
        shape = (HIDDEN, WIDTH) if kind == "down" else (WIDTH, HIDDEN)
        assert weights[name].shape == shape
        weights[name] = torch.full(shape, number + 1.0)
    save_file(weights, file, {"format": "pt"})
    experts = make_model(config, parents={"language": str(tmp_path)}).language_model.model.layers[1].mlp.experts
    assert (experts.gate_up_proj[3, :WIDTH] == 1).all() and (experts.gate_up_proj[3, WIDTH:] == 2).all()
    assert (experts.down_proj[3] == 3).all() and not (experts.down_proj[2] == 3).any()


def test_a_mixture_comes_back_from_its_folder_bit_by_bit(make_model: Make, config: ModelConfig, tmp_path: Path) -> None:
    """Saved as the released ones are, read whole, by part and by hand, and saved again."""
    vlm = make_model(config)
    save_model(vlm, tmp_path / "first")
    assert len(expert_names(tmp_path / "first")) == 2 * EXPERTS * 3
    loaded = load_model(tmp_path / "first")
    for again in (
        loaded,
        make_model(config, seed=9, parents={"model": str(tmp_path / "first")}),
        make_model(config, seed=9, parents=dict.fromkeys(("vision", "adapter", "language"), str(tmp_path / "first"))),
    ):
        found = dict(again.named_parameters())
        assert all(torch.equal(found[name], parameter) for name, parameter in vlm.named_parameters())
    save_model(loaded, tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    fused = vlm.get_parameter("language_model.model.layers.1.mlp.experts.gate_up_proj")
    pieces = first[f"{EXPERT}.gate_proj.weight"], first[f"{EXPERT}.up_proj.weight"]
    assert torch.equal(torch.cat(pieces), fused[3])


def test_a_gathered_mixture_is_saved_in_the_modules_stead(
    make_model: Make, config: ModelConfig, tmp_path: Path
) -> None:
    vlm = make_model(config)
    state: dict[str, Tensor] = {f"vlm.{name}": tensor.detach().clone() for name, tensor in vlm.state_dict().items()}
    for parameter in vlm.parameters():
        parameter.data = torch.empty(0)
    save_model(vlm, tmp_path, state)
    again = load_model(tmp_path).state_dict()
    assert all(torch.equal(tensor, again[name.removeprefix("vlm.")]) for name, tensor in state.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{EXPERT}.up_proj.weight": None}, r"lacks language weights: model.layers.1.mlp.experts.gate_up_proj \(1 in"),
        (
            {EXPERT.replace("experts.3", "experts.4") + ".up_proj.weight": torch.ones(WIDTH, HIDDEN)},
            "has unknown language weights: model.layers.1.mlp.experts.4.up_proj.weight",
        ),
        ({f"{EXPERT}.up_proj.weight": torch.ones(3, HIDDEN)}, r"experts.3.up_proj.weight is \(3, 24\), not \(12, 24\)"),
    ],
)
def test_experts_that_are_missing_unknown_or_misshapen_are_named(
    make_model: Make, config: ModelConfig, tmp_path: Path, change: dict[str, Tensor | None], message: str
) -> None:
    save_model(make_model(config), tmp_path)
    file = tmp_path / "model.safetensors"
    weights = {**load_file(file), **change}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, file, {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        make_model(config, parents={"language": str(tmp_path)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_experts": 8}, "language.num_experts=8 in the config, 4 in"),
        ({"num_experts_per_tok": 1}, "language.num_experts_per_tok=1 in the config, 2 in"),
        ({"model": {"norm_topk_prob": False}}, "language.norm_topk_prob=False in the config, True in"),
    ],
)
def test_a_mixture_that_routes_otherwise_is_refused(
    make_model: Make,
    make_config: Callable[..., ModelConfig],
    config: ModelConfig,
    tmp_path: Path,
    change: dict[str, Any],
    message: str,
) -> None:
    released(config, tmp_path)
    with pytest.raises(ValueError, match=message):
        make_model(make_config(**{**MIXTURE, **change}), parents={"language": str(tmp_path)})


def test_a_stage_sets_its_own_weight_of_the_balance(
    make_model: Make, make_config: Callable[..., ModelConfig], config: ModelConfig, tmp_path: Path
) -> None:
    save_model(make_model(config), tmp_path)
    own = make_model(make_config(**MIXTURE, router_aux_loss_coef=0.5), parents={"model": str(tmp_path)})
    assert own.config.text_config.router_aux_loss_coef == 0.5


@pytest.mark.parametrize("tied", [True, False])
def test_rows_are_as_many_as_tokenizer_config_and_folder_ask_for(
    make_model: Make, make_config: Callable[..., ModelConfig], tmp_path: Path, tied: bool
) -> None:
    source = released(make_config(tie_word_embeddings=tied), tmp_path, vocabulary=50)
    for tokenizer, in_config, expected in ((64, None, 64), (64, 80, 80), (40, 45, 50)):
        config = make_config(tie_word_embeddings=tied, vocab_size=in_config)
        ids = {"image": 30, "eos": 31, "pad": 32}
        vlm = make_model(config, parents={"language": str(tmp_path)}, vocab_size=tokenizer, token_ids=ids)
        rows, head = vlm.get_input_embeddings().weight, vlm.get_output_embeddings().weight
        assert len(rows) == len(head) == expected == vlm.config.text_config.vocab_size
        assert torch.equal(rows[:50], source.get_input_embeddings().weight)
        assert torch.equal(head[:50], source.get_output_embeddings().weight)
        assert (head is rows) == tied
        again = make_model(config, parents={"language": str(tmp_path)}, vocab_size=tokenizer, token_ids=ids)
        assert torch.equal(again.get_output_embeddings().weight, head), "the same rows are drawn again"
    assert len(make_model(make_config(vocab_size=70)).get_input_embeddings().weight) == 70
