"""A model of a few thousand weights in a run directory, and a held-out suite that it can be asked."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import pytest
import yaml
from PIL import Image

from sail_train.data.writer import write_shards
from sail_train.model.build import build_model, save_model
from sail_train.model.config import LanguageConfig, ModelConfig, VisionConfig
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import build_processor
from sail_train.processor.tokenizer import train_tokenizer
from sail_train.types import Conversation, Message, Part


def picture(side: int = 56) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a finished run leaves it: model/ with its processor, and config.yaml with what it was evaluated on."""
    root = tmp_path_factory.mktemp("trained")
    train_tokenizer(["What colour is it? It is red."] * 3, 280).save_pretrained(root / "tokenizer")
    shapes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = ModelConfig(
        vision=VisionConfig(**shapes), language=LanguageConfig(**shapes, num_key_value_heads=1, head_dim=8)
    )
    processor = build_processor(ProcessorConfig(tokenizer=str(root / "tokenizer")))
    ids, size = processor.token_ids, processor.vocab_size
    vlm = build_model(config, parents={}, seed=0, token_ids=ids, vocab_size=size)
    run = root / "run"
    save_model(vlm, run / "model")
    processor.save_pretrained(run / "model")
    question = (Part(type="image"), Part(type="text", text="What colour is it?"))
    samples = [
        Conversation(
            key=f"{i:04}",
            source="colour",
            messages=(
                Message(role="user", content=question),
                Message(role="assistant", content=(Part(type="text", text="red"),)),
            ),
            images=(picture(),),
            answer="red",
            verifier="exact",
        )
        for i in range(4)
    ]
    write_shards(samples, root / "eval", "colour", 4)
    suites = {"colour": {"shards": f"{root}/eval/*.tar"}, "other": {"shards": f"{root}/nowhere/*.tar"}}
    section = {"suites": suites, "modes": {"colour": ["greedy"]}, "max_new_tokens": 4}
    (run / "config.yaml").write_text(yaml.safe_dump({"eval": section}))
    return run


@pytest.fixture
def run_dir(trained: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "red.png"
    path.write_bytes(picture())
    return path
