"""A tiny model with its processor, conversations with images, and an engine that answers from a script."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sail_train.model.build import build_model
from sail_train.model.config import AdapterConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor
from sail_train.processor.tokenizer import train_tokenizer
from sail_train.rewards.mix import Reward
from sail_train.rl.batch import trained
from sail_train.rl.config import RLConfig
from sail_train.rl.rollout import Ask, Rollout
from sail_train.types import Completion, Conversation, Message, Part, Prompt, Sampling, Score

PATCH_DIM = 48


@pytest.fixture(scope="session")
def processor(tmp_path_factory: pytest.TempPathFactory) -> SailVLProcessor:
    folder: Path = tmp_path_factory.mktemp("tokenizer")
    train_tokenizer(["What is the sum of the digits?", "\\boxed{12} and 3 4"] * 5, 300).save_pretrained(folder)
    image = {"patch_size": 4, "min_pixels": 64, "max_pixels": 256}
    return build_processor(ProcessorConfig(tokenizer=str(folder), image=image))


@pytest.fixture
def model(processor: SailVLProcessor) -> SailVLForConditionalGeneration:
    config = ModelConfig(
        vision=VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, patch_size=4
        ),
        adapter=AdapterConfig(merge_size=2),
        language=LanguageConfig(
            tokenizer="unused",
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.2,
        ),
    )
    ids = {
        "image": processor.image_token_id,
        "eos": processor.stop_token_ids[0],
        "pad": processor.tokenizer.pad_token_id,
    }
    return build_model(config, parents={}, seed=0, token_ids=ids, vocab_size=len(processor.tokenizer))


@pytest.fixture
def make_conversation() -> Callable[..., Conversation]:
    def make(number: int, *, source: str = "rl", answer: str | None = "9", images: int = 1) -> Conversation:
        random = np.random.default_rng(number)
        files = []
        for _ in range(images):
            buffer = io.BytesIO()
            Image.fromarray(random.integers(0, 256, size=(8, 8, 3), dtype=np.uint8)).save(buffer, "PNG")
            files.append(buffer.getvalue())
        question = Part(type="text", text=f"What is the sum of the digits? {number % 10}")
        content = (*(Part(type="image") for _ in range(images)), question)
        return Conversation(
            key=f"k{number}",
            source=source,
            messages=(Message(role="user", content=content),),
            images=tuple(files),
            answer=answer,
            verifier="number",
            meta={"task": "sum", "cells": "351"},
        )

    return make


class ScriptedEngine:
    """Answers prompt and copy with what `script(uid, copy)` says, whatever the batch."""

    def __init__(self, processor: SailVLProcessor, script: Callable[[str, int], str]) -> None:
        self.processor, self.script = processor, script
        self.calls: list[tuple[int, int]] = []

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        self.calls.append((len(prompts), sampling.n))
        return [[self._complete(prompt.uid, copy, sampling) for copy in range(sampling.n)] for prompt in prompts]

    def _complete(self, uid: str, copy: int, sampling: Sampling) -> Completion:
        ids = [*self.processor.tokenizer.encode(self.script(uid, copy)), self.processor.stop_token_ids[0]]
        stop = len(ids) <= sampling.max_new_tokens
        ids = ids[: sampling.max_new_tokens]
        return Completion(
            uid=uid,
            token_ids=tuple(ids),
            logprobs=(-1.0,) * len(ids),
            finish_reason="stop" if stop else "length",
        )

    def update_weights(self, named: object, *, version: int) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def scripted(processor: SailVLProcessor) -> Callable[..., ScriptedEngine]:
    return lambda script: ScriptedEngine(processor, script)


@pytest.fixture
def make_rollout() -> Callable[..., Rollout]:
    """A rollout of text tokens with a given advantage."""

    def make(
        number: int, tokens: int, advantage: float, *, masked: bool = False, kl_coef: float = 0.0, prompt: int = 4
    ) -> Rollout:
        random = np.random.default_rng(number)
        config = RLConfig(kl_coef=kl_coef)
        ask = Ask(
            order=number,
            conversation=Conversation(key=f"k{number}", source="rl", messages=(), answer="9", verifier="number"),
            prompt=Prompt(
                uid=f"u{number}",
                input_ids=random.integers(10, 100, size=prompt).astype(np.int32),
                patches=np.zeros((0, PATCH_DIM), np.uint8),
            ),
            kind=config.prompt_type("rl"),
        )
        return Rollout(
            ask=ask,
            completion=Completion(
                uid=f"u{number}",
                token_ids=tuple(random.integers(10, 100, size=tokens).tolist()),
                logprobs=tuple((-random.random(tokens) * 3).tolist()),
                finish_reason="stop",
            ),
            response="text",
            reward=Reward(total=Score(value=1.0), parts={"answer": Score(value=1.0)}),
            shaped=1.0,
            advantage=advantage,
            masked=masked,
        )

    return make


@pytest.fixture
def count_trained() -> Callable[[Sequence[Rollout]], int]:
    return lambda rollouts: sum(rollout.num_tokens for rollout in trained(rollouts))
