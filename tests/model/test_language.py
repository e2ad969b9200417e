from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sail_train.model.build import load_model, save_model
from sail_train.model.config import ModelConfig
from sail_train.model.head import OutputHead
from sail_train.model.language import TESTED, describe_experts, text_config
from sail_train.model.packed import PackedLM
from sail_train.model.probe import check_packed
from sail_train.model.vlm import SailVLForConditionalGeneration

Sample = dict[str, Tensor]
Make = Callable[..., SailVLForConditionalGeneration]
MakeConfig = Callable[..., ModelConfig]

MIXTURE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}


def alone(vlm: SailVLForConditionalGeneration, sample: Sample) -> Tensor:
    """Log-probs of one sample in a plain forward pass with transformers' own eager attention."""
    text = vlm.language_model.config
    ours, text._attn_implementation = text._attn_implementation, "eager"
    try:
        images = {"patches": sample["patches"], "grids": sample["grids"]}
        logits = vlm(input_ids=sample["input_ids"][None], use_cache=False, **images).logits[0]
    finally:
        text._attn_implementation = ours
    where = sample["labels"] != -100
    return logits.log_softmax(-1)[where].gather(-1, sample["labels"][where][:, None])[:, 0]


def gradients(vlm: SailVLForConditionalGeneration, loss: Tensor) -> dict[str, Tensor]:
    names, parameters = zip(*vlm.named_parameters(), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
    return dict(zip(names, grads, strict=True))


ARCHITECTURES = [
    ("qwen3", {}),
    ("qwen3_moe", MIXTURE),
    ("qwen2", {}),
    ("llama", {}),
    ("mistral", {"model": {"sliding_window": None}}),
    ("olmo2", {"head_dim": 6, "num_key_value_heads": 4}),
    ("phi", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    ("gpt2", {"model": {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}}),
]
"""TESTED, and some of those that are probed: norms after attention, an output layer with a bias, learned positions."""


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("name", "values"), ARCHITECTURES, ids=[name for name, _ in ARCHITECTURES])
def test_packed_log_probs_and_gradients_equal_those_of_each_sample_alone(
    make_model: Make,
    make_config: MakeConfig,
    pack_samples: Callable[..., Sample],
    mixed_samples: list[Sample],
    name: str,
    values: dict[str, Any],
    checkpointing: bool,
) -> None:
    vlm = make_model(make_config(model_type=name, **values)).eval()
    assert {name for name, _ in ARCHITECTURES} >= set(TESTED)
    expected = torch.cat([alone(vlm, sample) for sample in mixed_samples])
    expected_grads = gradients(vlm, -expected.sum())
    if checkpointing:
        vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        vlm.train()
    logprobs, _ = PackedLM(vlm)(**pack_samples(*mixed_samples))
    # fp32 sums in another order, experts' products grouped over all tokens: 1e-5 of values of order one to ten
    torch.testing.assert_close(logprobs, expected, atol=2e-5, rtol=1e-5)
    for parameter, grad in gradients(vlm, -logprobs.sum()).items():
        scale = expected_grads[parameter].abs().max()
        assert (grad - expected_grads[parameter]).abs().max() <= 2e-5 * scale + 2e-6, parameter


def test_grouped_experts_compute_what_experts_one_by_one_compute(
    make_model: Make, make_config: MakeConfig, pack_samples: Callable[..., Sample], mixed_samples: list[Sample]
) -> None:
    vlm, batch = make_model(make_config(model_type="qwen3_moe", **MIXTURE)).eval(), pack_samples(*mixed_samples)
    results = {}
    for chosen in ("grouped_mm", "eager"):
        vlm.language_model.config._experts_implementation = chosen
        assert f"experts={chosen}" in str(describe_experts(vlm.language_model))
        logprobs, _ = PackedLM(vlm)(**batch)
        results[chosen] = logprobs, gradients(vlm, logprobs.sum())
    # the k experts' outputs of a token are added in another order: fp32 rounding
    torch.testing.assert_close(results["grouped_mm"][0], results["eager"][0], atol=1e-5, rtol=1e-5)
    for name, grad in results["eager"][1].items():
        assert (results["grouped_mm"][1][name] - grad).abs().max() <= 1e-5 * grad.abs().max() + 1e-6, name


def test_experts_are_grouped_where_transformers_can(
    make_model: Make, make_config: MakeConfig, model: SailVLForConditionalGeneration
) -> None:
    mixture = make_model(make_config(model_type="qwen3_moe", **MIXTURE))
    assert describe_experts(mixture.language_model) == "experts=grouped_mm: one grouped matrix product for all experts"
    assert describe_experts(model.language_model) is None


def test_a_mixture_has_qwen3s_routing(make_model: Make, make_config: MakeConfig) -> None:
    text = make_model(make_config(model_type="qwen3_moe", **MIXTURE)).config.text_config
    assert text.norm_topk_prob and text.decoder_sparse_step == 1 and text.router_aux_loss_coef == 0.001
    own = make_config(model_type="qwen3_moe", model={"norm_topk_prob": False}, **MIXTURE)
    assert not make_model(own).config.text_config.norm_topk_prob


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model_type": "qwen4"}, "language.model_type='qwen4' is no causal language model of transformers; did you"),
        ({"model_type": "stablelm"}, "language.model_type='stablelm' does not let its attention be replaced"),
        ({"model_type": "mamba"}, "language.model_type='mamba' does not let its attention be replaced"),
        ({"model_type": "gemma3"}, "language.model_type='gemma3' has several parts of its own"),
        ({"model_type": "bert"}, "'bert': log-probs of packed samples differ from those of each sample alone by"),
        ({"model_type": "cohere"}, "'cohere': log-probs of packed samples differ"),  # scales its logits
        ({"model_type": "granite", "model": {"logits_scaling": 4.0}}, "'granite': log-probs of packed samples differ"),
        ({"model_type": "gemma2", "max_position_embeddings": 128}, "asks its attention for softcap"),
        ({"model_type": "gemma2"}, "sliding_window=4096 is shorter than max_position_embeddings=32768"),
        ({"model_type": "mistral"}, "set max_position_embeddings to at most 4096, or the window to null"),
        (
            {"model_type": "gpt_oss", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
             "max_position_embeddings": 128, "rope_scaling": {**YARN, "truncate": False}},
            "asks its attention for s_aux",
        ),
        (
            {"model_type": "lfm2", "model": {"layer_types": ["conv", "full_attention"]}},
            "'lfm2': log-probs of packed samples differ",  # its convolution runs on into the next sample
        ),
        ({"model_type": "phi", "head_dim": 6}, "'phi' does not run packed: .*size"),  # turns half of it: 3 values
        ({"model_type": "llama", "model": {"norm_topk": True}}, "language.model.norm_topk is no value of llama's"),
        ({"model_type": "llama", "model": {"head_dim": 8}}, "language.model.head_dim is set by language itself"),
        ({"model_type": "llama", "model": {"rope_parameters": {}}}, "rope_parameters is set by language itself"),
        ({"model_type": "mixtral", **MIXTURE}, "experts of mixtral are of intermediate_size=40; set both alike"),
        ({"model_type": "llama", "model": {"attention_bias": 3}}, "transformers' llama config refuses its values"),
    ],
)  # fmt: skip
def test_a_language_model_that_cannot_be_trained_packed_is_refused(
    make_model: Make, make_config: MakeConfig, values: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        make_model(make_config(**values))


def test_the_probe_finds_no_fault_with_what_tests_have_compared(make_model: Make, make_config: MakeConfig) -> None:
    """As for a large model: on weights that give small logits, and leaving everything as it found it."""
    vlm = make_model(make_config(model_type="qwen3_moe", **MIXTURE, initializer_range=0.02)).train()
    before = copy.deepcopy(vlm.state_dict())
    check_packed(vlm, tested=())
    assert vlm.training and vlm.language_model.config._attn_implementation == "sail_packed"
    assert all(torch.equal(tensor, before[name]) for name, tensor in vlm.state_dict().items())
    head = vlm.get_output_embeddings()
    assert not head._forward_hooks and not head._forward_pre_hooks


def test_a_cap_on_logits_is_found_on_weights_that_give_small_ones(
    make_model: Make, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = make_model(make_config(model_type="llama", initializer_range=0.02)).eval()
    forward = type(vlm.language_model).forward

    def capped(self: Any, **inputs: Any) -> Any:
        output = forward(self, **inputs)
        output.logits = 30 * torch.tanh(output.logits / 30)
        return output

    monkeypatch.setattr(type(vlm.language_model), "forward", capped)
    with pytest.raises(ValueError, match="log-probs of packed samples differ"):
        check_packed(vlm, tested=())


def test_a_cache_that_the_generator_cannot_use_is_found(
    make_model: Make, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    vlm = make_model(make_config(model_type="llama")).eval()
    forward = type(vlm.language_model).forward

    def forgetful(self: Any, *, past_key_values: Any = None, **inputs: Any) -> Any:
        return forward(self, past_key_values=None, **inputs)

    monkeypatch.setattr(type(vlm.language_model), "forward", forgetful)
    with pytest.raises(ValueError, match="log-probs of a token behind a cache differ"):
        check_packed(vlm, tested=())


@pytest.mark.parametrize(
    ("scaling", "expected"),
    [
        (None, {"rope_type": "default"}),
        (YARN, YARN),
        ({"type": "linear", "factor": 2.0}, {"rope_type": "linear", "factor": 2.0}),
    ],
)
def test_rope_scaling_is_transformers_rope_parameters(
    make_config: MakeConfig, scaling: dict[str, Any] | None, expected: dict[str, Any]
) -> None:
    language = make_config(rope_scaling=scaling, rope_theta=500.0, max_position_embeddings=32).language
    text = text_config(language, eos_token_id=1, vocab_size=64)
    assert text.rope_parameters == {**expected, "rope_theta": 500.0}


@pytest.mark.parametrize(
    ("scaling", "message"),
    [
        ({"factor": 2.0}, "has no rope_type"),
        ({**YARN, "beta": 32}, "language.rope_scaling: .*beta"),
        ({"rope_type": "yarn"}, "factor"),
        ({"rope_type": "linear", "factor": 0.5}, "language.rope_scaling: .*factor field must be"),
        ({"rope_type": "spiral", "factor": 2.0}, "spiral"),
        ({**YARN, "rope_theta": 3.0}, "rope_theta is language.rope_theta"),
        ({"rope_type": "dynamic", "factor": 2.0}, "'dynamic' turns a sample by the length of the whole packed row"),
    ],
)
def test_a_wrong_rope_scaling_is_named(make_config: MakeConfig, scaling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        text_config(make_config(rope_scaling=scaling).language, eos_token_id=1, vocab_size=64)


def test_scaled_positions_train_packed_and_survive_saving(
    make_model: Make, make_config: MakeConfig, make_sample: Callable[..., Sample], tmp_path: Any
) -> None:
    scaled = make_model(make_config(rope_scaling=YARN, max_position_embeddings=32)).eval()
    check_packed(scaled, tested=())
    sample = make_sample(0, 30)
    inputs = {"input_ids": sample["input_ids"][None]}
    save_model(scaled, tmp_path)
    assert torch.equal(load_model(tmp_path)(**inputs).logits, scaled(**inputs).logits)
    assert not torch.allclose(make_model().eval()(**inputs).logits, scaled(**inputs).logits, atol=1e-3)


def test_a_stage_may_scale_what_its_parent_did_not_but_not_forget_it(
    make_model: Make, make_config: MakeConfig, tmp_path: Any
) -> None:
    for name, values in (("plain", {}), ("scaled", {"rope_scaling": YARN})):
        save_model(make_model(make_config(**values)), tmp_path / name)
    longer = make_config(rope_scaling=YARN)
    for role in ("model", "language"):
        built = make_model(longer, parents={role: str(tmp_path / "plain")})
        assert built.config.text_config.rope_parameters["rope_type"] == "yarn"
        with pytest.raises(ValueError, match="was trained with rope_parameters=.*yarn.*set language.rope_scaling"):
            make_model(make_config(), parents={role: str(tmp_path / "scaled")})


def test_an_output_layer_with_a_bias_keeps_it(
    make_model: Make, make_config: MakeConfig, make_sample: Callable[..., Sample], tmp_path: Any
) -> None:
    values = {"model_type": "phi", "num_attention_heads": 3, "num_key_value_heads": 3, "tie_word_embeddings": False}
    vlm = make_model(make_config(**values), dtype="float32").eval()
    head = vlm.get_output_embeddings()
    assert isinstance(head, OutputHead) and head.bias is not None
    with torch.no_grad():
        head.bias.copy_(torch.randn(len(head.bias), generator=torch.Generator().manual_seed(0)))
    check_packed(vlm, tested=())
    save_model(vlm, tmp_path)
    assert torch.equal(load_model(tmp_path).get_output_embeddings().bias, head.bias)
    grown = make_model(make_config(**values), parents={"language": str(tmp_path)}, vocab_size=70)
    found = grown.get_output_embeddings().bias
    assert torch.equal(found[:64], head.bias) and found.shape == (70,) and found[64:].std() > 0.1


@pytest.mark.parametrize("name", ["qwen3", "llama"])
def test_rotary_frequencies_stay_exact_when_the_model_is_cast(
    make_model: Make, make_config: MakeConfig, tmp_path: Any, name: str
) -> None:
    """bf16 has eight bits: at position 10,000 a frequency rounded to them is many radians off."""
    exact = make_model(make_config(model_type=name))
    expected = exact.language_model.get_decoder().rotary_emb.inv_freq.clone()
    assert expected.dtype == torch.float32 and not torch.equal(expected, expected.bfloat16().float())
    save_model(exact, tmp_path)
    half = make_model(make_config(model_type=name), dtype="bfloat16")
    for vlm in (exact.bfloat16(), half, copy.deepcopy(half).to(torch.float16), load_model(tmp_path, dtype="bfloat16")):
        rotary = vlm.language_model.get_decoder().rotary_emb
        assert next(vlm.parameters()).dtype != torch.float32
        assert rotary.inv_freq.dtype == torch.float32 and torch.equal(rotary.inv_freq, expected)
