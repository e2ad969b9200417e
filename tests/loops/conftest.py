"""Finished runs as a soup finds them: siblings with a tiny real model, their lineage, and held-out shards.

Also makes `loops_tiny` importable, which has the data and the stages of the end-to-end tests.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from sail_train.config import to_dataclass
from sail_train.data.writer import write_shards
from sail_train.loops.config import RunConfig
from sail_train.model.build import build_model, save_model
from sail_train.model.config import ModelConfig
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.processor import SailVLProcessor
from sail_train.processor.tokenizer import train_tokenizer
from sail_train.types import Conversation, Message, Part

sys.path.insert(0, str(Path(__file__).parent))

from loops_tiny import data, trained  # noqa: E402, F401

MODEL = {
    "vision": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
    "language": {
        "tokenizer": "unused", "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "head_dim": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.3,
    },
}  # fmt: skip


def held_out(index: int) -> Conversation:
    file = io.BytesIO()
    Image.new("RGB", (28, 28), (20 * index, 80, 30)).save(file, format="PNG")
    question = (Part(type="image"), Part(type="text", text=f"Read {index}"))
    messages = (
        Message(role="user", content=question),
        Message(role="assistant", content=(Part(type="text", text=str(index)),)),
    )
    return Conversation(
        key=f"k{index}",
        source="read",
        messages=messages,
        images=(file.getvalue(),),
        answer=str(index),
        verifier="exact",
    )


@pytest.fixture(scope="session")
def processor() -> SailVLProcessor:
    return SailVLProcessor(train_tokenizer(["Read 0 1 2 3 4 5 6 7 8 9 user assistant"] * 3, 300))


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("held_out")
    write_shards([held_out(index) for index in range(6)], folder, "read", 4)
    return f"{folder}/*.tar"


@pytest.fixture(scope="session")
def make_model(processor: SailVLProcessor) -> Callable[..., SailVLForConditionalGeneration]:
    def make(seed: int = 0, *, language: dict[str, Any] | None = None) -> SailVLForConditionalGeneration:
        config = to_dataclass(ModelConfig, {**MODEL, "language": MODEL["language"] | (language or {})})
        ids, vocab = processor.token_ids, len(processor.tokenizer)
        return build_model(config, parents={}, seed=seed, token_ids=ids, vocab_size=vocab).eval()

    return make


@pytest.fixture
def make_run(tmp_path: Path, processor: SailVLProcessor, make_model: Callable[..., Any]) -> Callable[..., Path]:
    """A finished run: the common parent's model, moved by noise of its own; with its lineage."""

    def make(
        name: str,
        *,
        seed: int = 1,
        noise: float = 0.01,
        stage: str = "sft",
        parent: str = "a" * 64,
        language: dict[str, Any] | None = None,
        folder: SailVLProcessor | None = None,
    ) -> Path:
        model = make_model(language=language)
        random = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=random) * noise)
        run = tmp_path / "runs" / name
        save_model(model, run / "model")
        (folder or processor).save_pretrained(run / "model")
        lineage = {
            "stage": stage, "loop": "supervised", "seed": seed,
            "parents": {"model": {"path": "runs/base", "model": "runs/base/model", "hash": parent}},
        }  # fmt: skip
        (run / "lineage.json").write_text(json.dumps(lineage))
        return run

    return make


@pytest.fixture
def make_config(tmp_path: Path, shards: str) -> Callable[..., RunConfig]:
    def make(name: str, *, loop: str = "soup", parents: dict[str, Path] | None = None, **sections: Any) -> RunConfig:
        values = {
            "loop": loop,
            "run_dir": str(tmp_path / "runs" / name),
            "parents": {role: str(path) for role, path in (parents or {}).items()},
            "model": MODEL,
            "eval": {
                "suites": {"read": {"shards": shards}},
                "modes": {"read": ["greedy", "t1"]},
                "max_new_tokens": 4,
                "show": 1,
            },
            "soup": {"metrics": ["read/greedy"]},
        }
        for section, change in sections.items():
            values[section] = {**values.get(section, {}), **change}
        return to_dataclass(RunConfig, values)

    return make
