from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from sail_train.model.config import ModelConfig
from sail_train.model.packed import PackedLM
from sail_train.model.router import Routed, Routers, balance_loss, expert_blocks, load_entropy, load_max
from sail_train.model.vlm import SailVLForConditionalGeneration

EXPERTS, TOP_K, LAYERS = 4, 2, 2
Sample = dict[str, Tensor]


@pytest.fixture
def mixture(
    make_config: Callable[..., ModelConfig], make_model: Callable[..., SailVLForConditionalGeneration]
) -> SailVLForConditionalGeneration:
    config = make_config(
        model_type="qwen3_moe", num_experts=EXPERTS, num_experts_per_tok=TOP_K, moe_intermediate_size=12
    )
    return make_model(config)


@pytest.fixture
def batch(mixed_samples: list[Sample], pack_samples: Callable[..., Sample]) -> Sample:
    return pack_samples(*mixed_samples)


def run(vlm: Any, routers: Routers, batch: Sample) -> tuple[Tensor, Routed]:
    with routers.collect() as routed:
        logprobs, _ = PackedLM(vlm)(**batch)
    return logprobs, routed


def mean_probabilities(routed: Routed, tokens: int) -> Tensor:
    return torch.stack(routed.probabilities) / tokens


def test_the_balance_of_a_forward_pass_is_that_of_transformers_layer_by_layer(
    mixture: SailVLForConditionalGeneration, make_sample: Callable[..., Sample], pack_samples: Callable[..., Sample]
) -> None:
    """One sample, so that transformers can do it too. Its function pools the layers it is given: given one alone it is
    the formula; the mean over layers is ours."""
    sample = make_sample(0, 30)
    routers = Routers(mixture.language_model)
    _, routed = run(mixture, routers, pack_samples(sample))
    load = torch.stack(routed.counts) / 30
    found = balance_loss(load, mean_probabilities(routed, 30).double())
    logits = mixture.language_model(input_ids=sample["input_ids"][None], output_router_logits=True).router_logits
    each = [load_balancing_loss_func((layer,), EXPERTS, TOP_K) for layer in logits]
    assert len(each) == LAYERS == len(routers.layers) and routers.layers == [0, 1]
    torch.testing.assert_close(found.float(), torch.stack(each).mean(), atol=1e-6, rtol=1e-6)
    assert load.sum(-1).tolist() == pytest.approx([TOP_K, TOP_K]), "a token is sent to k experts"
    assert found > TOP_K, "random routers are not even"


def test_an_even_load_costs_top_k_and_pulls_nowhere() -> None:
    even = torch.full((LAYERS, EXPERTS), TOP_K / EXPERTS)
    logits = torch.randn(LAYERS, 50, EXPERTS, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = balance_loss(even, logits.softmax(-1).mean(1))
    assert float(loss.detach()) == pytest.approx(TOP_K)
    loss.backward()
    assert logits.grad is not None and logits.grad.abs().max() < 1e-8


def test_the_gradient_leads_away_from_the_busy_expert() -> None:
    load = torch.tensor([[1.4, 0.2, 0.2, 0.2]])
    logits = torch.zeros(1, 3, EXPERTS, requires_grad=True)
    balance_loss(load, logits.softmax(-1).mean(1)).backward()
    assert logits.grad is not None
    assert (logits.grad[..., 0] > 0).all() and (logits.grad[..., 1:] < 0).all()


def test_load_is_measured_from_even_to_all_on_one() -> None:
    load = torch.tensor([[0.5, 0.5, 0.5, 0.5], [2.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    assert load_max(load).tolist() == [1, 4, 2]
    torch.testing.assert_close(load_entropy(load), torch.tensor([1.0, 0.0, 0.5]))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_recomputed_layers_count_once_and_give_the_same_gradients(
    mixture: SailVLForConditionalGeneration, batch: Sample, checkpointing: bool
) -> None:
    def gradients(checkpointing: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
        mixture.zero_grad()
        if checkpointing:
            mixture.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        routers = Routers(mixture.language_model)
        logprobs, routed = run(mixture.train(), routers, batch)
        load = torch.stack(routed.counts).float() / len(batch["input_ids"])
        balance = balance_loss(load, mean_probabilities(routed, len(batch["input_ids"])))
        (100 * balance - 0 * logprobs.sum()).backward()
        routers.close()
        mixture.gradient_checkpointing_disable()
        return {n: p.grad.clone() for n, p in mixture.named_parameters() if p.grad is not None}, routed.counts

    (plain, counts), (found, again) = gradients(False), gradients(checkpointing)
    assert [each.tolist() for each in counts] == [each.tolist() for each in again]
    assert float(torch.stack(again).sum()) == LAYERS * TOP_K * len(batch["input_ids"])
    for name, grad in plain.items():
        torch.testing.assert_close(found[name], grad, msg=name)
    # the loss reaches the routers, and what comes before them, down to the image features
    reached = ("language_model.model.layers.1.mlp.gate.weight", "language_model.model.embed_tokens.weight",
               "adapter.up.weight", "vision.patch_embedding.weight")  # fmt: skip
    for name in reached:
        assert found[name].abs().max() > 1e-7, name


def test_nothing_is_gathered_without_gradients_or_outside_collect(
    mixture: SailVLForConditionalGeneration, batch: Sample
) -> None:
    routers = Routers(mixture.language_model)
    with pytest.raises(AssertionError, match="every router is called once"), torch.no_grad():
        run(mixture, routers, batch)
    _, routed = run(mixture, routers, batch)
    PackedLM(mixture)(**batch)
    assert len(routed.counts) == LAYERS
    routers.close()
    with pytest.raises(AssertionError, match="every router is called once"):
        run(mixture, routers, batch)


def test_a_dense_model_has_no_routers_and_a_frozen_mixture_none_that_train(
    model: SailVLForConditionalGeneration, mixture: SailVLForConditionalGeneration
) -> None:
    assert not Routers(model.language_model) and expert_blocks(model.language_model) == []
    assert Routers(mixture.language_model).trained
    names = [type(block).__name__ for block in expert_blocks(mixture.language_model)]
    assert names == ["Qwen3MoeSparseMoeBlock"] * LAYERS
    mixture.language_model.requires_grad_(False)
    assert not Routers(mixture.language_model).trained


def test_experts_whose_routers_cannot_be_watched_are_refused() -> None:
    config = SimpleNamespace(to_dict=lambda: {"num_experts_per_tok": 2}, model_type="jetmoe")
    with pytest.raises(ValueError, match="'jetmoe' has experts, but its routers cannot be watched"):
        Routers(SimpleNamespace(_can_record_outputs={}, config=config))


@pytest.mark.parametrize(("name", "values"), [("olmoe", {}), ("qwen2_moe", {"shared_expert_intermediate_size": 12})])
def test_other_mixtures_are_watched_too(
    make_config: Callable[..., ModelConfig],
    make_model: Callable[..., SailVLForConditionalGeneration],
    batch: Sample,
    name: str,
    values: dict[str, Any],
) -> None:
    config = make_config(
        model_type=name, num_experts=EXPERTS, num_experts_per_tok=TOP_K, moe_intermediate_size=40, head_dim=6,
        num_key_value_heads=4, model=values,
    )  # fmt: skip
    vlm = make_model(config)
    _, routed = run(vlm, Routers(vlm.language_model), batch)
    assert torch.stack(routed.counts).sum(-1).tolist() == [TOP_K * len(batch["input_ids"])] * LAYERS
    assert torch.stack(routed.probabilities).sum(-1).tolist() == pytest.approx([len(batch["input_ids"])] * LAYERS)
