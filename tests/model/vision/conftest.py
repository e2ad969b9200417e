from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sail_train.model.hf_config import SailVLVisionConfig
from sail_train.model.vision import build_encoder

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "patch_size": 4}
FOREIGN: dict[str, dict[str, Any]] = {
    "clip_vision_model": {"image_size": 16},
    "siglip_vision_model": {"image_size": 16},
    "siglip2_vision_model": {"num_patches": 16},
    "internvl_vision": {"image_size": 16},
    "dinov2": {"image_size": 16},
    "dinov2_with_registers": {"image_size": 16},
    "dinov3_vit": {"image_size": 16},
    "vit": {"image_size": 16},
}
"""Vision models of transformers, with what their configs need beside the sizes; all made for 4 x 4 patches."""

KINDS: dict[str, dict[str, Any]] = {
    "native": {"type": "native"},
    "seed": {"norm": "layer", "gated_mlp": False, "hidden_act": "gelu", "bias": True, "final_norm": False},
    "aimv2": {"type": "aimv2", "position_grid": 4},
    **{name: {"type": "transformers", "model": {"model_type": name, **values}} for name, values in FOREIGN.items()},
}


def shuffle_weights(module: nn.Module, seed: int = 0) -> None:
    """Every weight random, norms and tables among them, so that nothing is right by being zero or one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = parameter.ndim == 1 and not name.endswith("bias")
            parameter.copy_(1 + 0.3 * noise if around_one else 0.3 * noise)


@pytest.fixture(scope="session")
def make_encoder() -> Callable[..., Any]:
    """An encoder of a name in `KINDS`, or of given values, with random weights and in eval mode."""

    def make(kind: str = "native", *, merge: int = 2, **values: Any) -> nn.Module:
        encoder = build_encoder(SailVLVisionConfig(**{**SIZES, **KINDS[kind], **values}), merge)
        shuffle_weights(encoder)
        return encoder.eval()

    return make


@pytest.fixture(scope="session")
def foreign_values() -> dict[str, dict[str, Any]]:
    return FOREIGN


@pytest.fixture(scope="session")
def vision_kinds() -> dict[str, dict[str, Any]]:
    return KINDS


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def random_patches() -> Callable[..., Tensor]:
    def make(count: int, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randint(0, 256, (count, 48), generator=generator, dtype=torch.uint8)

    return make
