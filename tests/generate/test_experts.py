"""The generator over a mixture of experts: a token meets the same experts whatever stands beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sail_train.generate.generator import Generator
from sail_train.model.build import build_model
from sail_train.model.config import LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.types import Prompt, Sampling

IMAGE, STOP, PAD = 3, 1, 0


@pytest.fixture
def model() -> SailVLForConditionalGeneration:
    """In the place of the dense model that the other tests have."""
    config = ModelConfig(
        vision=VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=4,
            initializer_range=0.5,
        ),
        language=LanguageConfig(
            model_type="qwen3_moe", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.3, num_experts=8,
            num_experts_per_tok=2, moe_intermediate_size=24,
        ),
    )  # fmt: skip
    ids = {"image": IMAGE, "eos": STOP, "pad": PAD}
    return build_model(config, parents={}, seed=0, token_ids=ids, vocab_size=61).eval()


def make(model: SailVLForConditionalGeneration, max_batch: int = 256) -> Generator:
    options = {"stop_token_ids": [STOP], "pad_token_id": PAD, "banned_token_ids": [IMAGE]}
    return Generator(model, **options, max_batch=max_batch)


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_are_those_of_the_training_forward(
    model: SailVLForConditionalGeneration,
    make_prompts: Callable[[int], list[Prompt]],
    reference_logprobs: Callable[..., Tensor],
    temperature: float,
) -> None:
    prompts = make_prompts(8)
    result = make(model).generate(prompts, Sampling(max_new_tokens=24, n=3, temperature=temperature))
    for prompt, group in zip(prompts, result, strict=True):
        for one in group:
            expected = reference_logprobs(prompt, one.token_ids, temperature=temperature)
            # as for a dense model: fp32, a cache against whole sequences
            torch.testing.assert_close(torch.tensor(one.logprobs), expected, atol=3e-5, rtol=0)


@pytest.mark.parametrize("max_batch", [1, 7])
def test_what_is_drawn_does_not_depend_on_the_batch(
    model: SailVLForConditionalGeneration, make_prompts: Callable[[int], list[Prompt]], max_batch: int
) -> None:
    prompts, sampling = make_prompts(8), Sampling(max_new_tokens=24, n=3, seed=5)
    together, few = (make(model, batch).generate(prompts, sampling) for batch in (64, max_batch))
    assert [[replace(one, logprobs=()) for one in group] for group in together] == [
        [replace(one, logprobs=()) for one in group] for group in few
    ]
