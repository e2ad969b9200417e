"""Models of a few thousand weights of each family, as finished runs leave them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from sail_train.model.build import build_model, save_model
from sail_train.model.config import AdapterConfig, ImageConfig, LanguageConfig, ModelConfig, VideoConfig, VisionConfig
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import build_processor
from sail_train.processor.tokenizer import train_tokenizer

TEXTS = ["What is shown here? It is red and 3 wide.", "system user assistant Image-1: Frame-1:"]

VISION: dict[str, dict[str, Any]] = {
    "native": {"type": "native"},
    "aimv2": {"type": "aimv2", "position_grid": 4},
}
IMAGE: dict[str, dict[str, Any]] = {
    "native": {"min_pixels": 64, "max_pixels": 4096},
    "aimv2": {"mode": "tile", "tile_size": 16, "max_tiles": 4, "max_total_tiles": 6},
}


def model_config(kind: str, **language: Any) -> ModelConfig:
    """ "native" with Qwen3's chat style, or "aimv2" with tiles and SAIL-VL2's."""
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=4,
            initializer_range=0.3, **VISION[kind],
        ),
        adapter=AdapterConfig(initializer_range=0.3),
        language=LanguageConfig(**{
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.3, **language,
        }),
        image=ImageConfig(**IMAGE[kind]),
        video=VideoConfig(mode="uniform", num_frames=2, frame_pixels=256),
        template={"native": "qwen3", "aimv2": "sail_vl2"}[kind],
    )  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(TEXTS * 5, 320).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    return model_config


@pytest.fixture(scope="session")
def make_run(tokenizer_dir: Path) -> Callable[..., Path]:
    """Writes a run directory with a model/ of the kind into a folder."""

    def make(root: Path, kind: str = "native", *, seed: int = 0, dtype: str = "float32", **language: Any) -> Path:
        config = model_config(kind, **language)
        processor = build_processor(
            ProcessorConfig(
                tokenizer=str(tokenizer_dir), image=asdict(config.image_spec),
                video={**asdict(config.video_spec), "levels": list(config.video_spec.levels)}, template=config.template,
            )
        )  # fmt: skip
        ids, size = processor.token_ids, processor.vocab_size
        vlm = build_model(config, parents={}, seed=seed, token_ids=ids, vocab_size=size, dtype=dtype)
        save_model(vlm, root / "model")
        processor.save_pretrained(root / "model")
        return root

    return make
