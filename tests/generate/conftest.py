"""The real model in a tiny form, its training forward as the reference, and prompts with and without an image."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from sail_train.model.build import build_model
from sail_train.model.config import AdapterConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.packed import PackedLM
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.types import IGNORE_INDEX, Prompt

VOCAB, IMAGE, STOP, PAD = 61, 3, 1, 0
PATCH_DIM = 3 * 4 * 4


def tiny_config() -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            patch_size=4,
            initializer_range=0.5,
        ),
        adapter=AdapterConfig(merge_size=2),
        language=LanguageConfig(
            tokenizer="unused",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.3,
        ),
    )


@pytest.fixture
def model() -> SailVLForConditionalGeneration:
    """Freshly initialised weights are spread widely, so that its distributions are far from uniform."""
    ids = {"image": IMAGE, "eos": STOP, "pad": PAD}
    return build_model(tiny_config(), parents={}, seed=0, token_ids=ids, vocab_size=VOCAB).eval()


@pytest.fixture
def make_prompts() -> Callable[..., list[Prompt]]:
    """Prompts of 5 to 11 tokens; every second one holds an image of one token, some two images."""

    def make(count: int) -> list[Prompt]:
        random = np.random.default_rng(0)
        prompts = []
        for i in range(count):
            ids = random.integers(4, VOCAB, size=5 + int(random.integers(0, 7))).astype(np.int32)
            images = (1, 0, 2, 0)[i % 4]
            ids[1 : 1 + images] = IMAGE
            patches = random.integers(0, 256, size=(4 * images, PATCH_DIM), dtype=np.uint8)
            prompts.append(Prompt(uid=f"p{i}", input_ids=ids, patches=patches, grids=((2, 2),) * images))
        return prompts

    return make


@pytest.fixture
def reference_logprobs(model: SailVLForConditionalGeneration) -> Callable[..., Tensor]:
    """Log-probs of a completion in the training forward."""

    def compute(prompt: Prompt, token_ids: tuple[int, ...], temperature: float = 1.0) -> Tensor:
        ids = torch.tensor([*prompt.input_ids.tolist(), *token_ids])
        labels = torch.full_like(ids, IGNORE_INDEX)
        labels[len(prompt.input_ids) - 1 : -1] = torch.tensor(token_ids)
        with torch.no_grad():
            return PackedLM(model)(
                ids,
                labels,
                torch.arange(len(ids)),
                torch.tensor([0, len(ids)], dtype=torch.int32),
                torch.from_numpy(prompt.patches),
                torch.tensor(prompt.grids, dtype=torch.int64).reshape(-1, 2),
                temperature=temperature,
            )[0]

    return compute
