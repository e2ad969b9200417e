from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sail_train.model.build import build_model
from sail_train.model.config import AdapterConfig, ImageConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.vlm import SailVLForConditionalGeneration

TOKENS = {"image": 61, "eos": 62, "pad": 63}
VOCABULARY = 64


def tiny_config(**language: Any) -> ModelConfig:
    shapes = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4,
            initializer_range=0.2,
        ),
        adapter=AdapterConfig(hidden_size=20),
        language=LanguageConfig(
            **{**shapes, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.2, **language}
        ),
        image=ImageConfig(min_pixels=64, max_pixels=4096),
    )  # fmt: skip


@pytest.fixture
def config() -> ModelConfig:
    return tiny_config()


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    return tiny_config


@pytest.fixture(scope="session")
def make_model() -> Callable[..., SailVLForConditionalGeneration]:
    def make(config: ModelConfig | None = None, *, seed: int = 0, **options: Any) -> SailVLForConditionalGeneration:
        options = {"parents": {}, "token_ids": TOKENS, "vocab_size": VOCABULARY, **options}
        return build_model(config or tiny_config(), seed=seed, **options)

    return make


@pytest.fixture(scope="session")
def model(make_model: Callable[..., SailVLForConditionalGeneration]) -> SailVLForConditionalGeneration:
    """Not to be changed by a test."""
    return make_model().eval()


def random_sample(seed: int, length: int, *grids: tuple[int, int]) -> dict[str, Tensor]:
    """One sample: its images first, then `length` random tokens, all trained but the first."""
    generator = torch.Generator().manual_seed(seed)
    images = [TOKENS["image"]] * (sum(r * c for r, c in grids) // 4)
    text = torch.randint(0, 60, (length,), generator=generator).tolist()
    ids = torch.tensor(images + text)
    labels = torch.full_like(ids, -100)
    labels[len(images) : -1] = ids[len(images) + 1 :]
    patches = torch.randint(0, 256, (sum(r * c for r, c in grids), 48), generator=generator, dtype=torch.uint8)
    return {
        "input_ids": ids,
        "labels": labels,
        "patches": patches,
        "grids": torch.tensor(grids, dtype=torch.int64).reshape(-1, 2),
    }


def pack(*samples: dict[str, Tensor]) -> dict[str, Tensor]:
    """The samples as one packed batch, PackedLM's arguments."""
    lengths = [len(sample["input_ids"]) for sample in samples]
    packed = {name: torch.cat([sample[name] for sample in samples]) for name in samples[0]}
    packed["position_ids"] = torch.cat([torch.arange(length) for length in lengths])
    packed["cu_seqlens"] = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    return packed


@pytest.fixture(scope="session")
def make_sample() -> Callable[..., dict[str, Tensor]]:
    return random_sample


@pytest.fixture(scope="session")
def pack_samples() -> Callable[..., dict[str, Tensor]]:
    return pack


@pytest.fixture(scope="session")
def mixed_samples() -> list[dict[str, Tensor]]:
    """Samples of many lengths, with no, one and two images of several sizes."""
    shuffled = random.Random(0)
    grids = [(), ((2, 2),), ((4, 6),), ((2, 2), (4, 6)), ((6, 4), (2, 8)), ()]
    return [random_sample(i, shuffled.choice([2, 9, 10, 31]), *grid) for i, grid in enumerate(grids * 2)]
