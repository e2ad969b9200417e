"""A tiny real model with its processor, held-out conversations, and a generator that says what a test wants."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from PIL import Image

from sail_train.eval.config import EvalConfig, SuiteConfig
from sail_train.model.build import build_model
from sail_train.model.config import AdapterConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.processor import SailVLProcessor
from sail_train.processor.tokenizer import train_tokenizer
from sail_train.types import Completion, Conversation, Message, Part, Prompt, Sampling


def png(colour: tuple[int, int, int], size: tuple[int, int] = (28, 28)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format="PNG")
    return file.getvalue()


def conversation(
    index: int, *, answer: str | None = "123", verifier: str | None = "grid", images: int = 1, reference: str = "123"
) -> Conversation:
    user = (
        *(Part(type="image") for _ in range(images)),
        Part(type="text", text=f"Read {index} {'please ' * (index % 3)}"),
    )
    return Conversation(
        key=f"k{index:03d}",
        source="read",
        messages=(
            Message(role="user", content=user),
            Message(role="assistant", content=(Part(type="text", text=reference),)),
        ),
        images=tuple(png((40 * index % 256, 10, 200)) for _ in range(images)),
        answer=answer,
        verifier=verifier,
    )


@pytest.fixture(scope="session")
def processor() -> SailVLProcessor:
    texts = ["Read 0 please please", "<think>\n1 2 3\n</think>\n\n\\boxed{123}", "0123456789 /think /no_think user"]
    return SailVLProcessor(train_tokenizer(texts * 3, 340), image={"max_pixels": 56 * 56})


@pytest.fixture(scope="session")
def model(processor: SailVLProcessor) -> SailVLForConditionalGeneration:
    """Random weights, widely spread, so that answers differ between prompts."""
    config = ModelConfig(
        vision=VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, initializer_range=0.5
        ),
        adapter=AdapterConfig(merge_size=2),
        language=LanguageConfig(
            tokenizer="unused", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=8, max_position_embeddings=256, initializer_range=0.3,
        ),
    )  # fmt: skip
    vocab = len(processor.tokenizer)
    return build_model(config, parents={}, seed=0, token_ids=processor.token_ids, vocab_size=vocab).eval()


@pytest.fixture
def suite() -> list[Conversation]:
    """Seven prompts of three lengths, two of them without an image."""
    return [conversation(index, images=0 if index in (2, 5) else 1) for index in range(7)]


@pytest.fixture
def make_conversation() -> Callable[..., Conversation]:
    return conversation


@pytest.fixture
def make_config() -> Callable[..., EvalConfig]:
    def make(modes: Mapping[str, Sequence[str]], *, blank: bool = False, **options: int) -> EvalConfig:
        suites = {name: SuiteConfig(shards="unused", blank_images=blank) for name in modes}
        options = {"max_new_tokens": 8, "batch_size": 3, **options}
        return EvalConfig(suites=suites, modes={name: list(asked) for name, asked in modes.items()}, **options)

    return make


@dataclass
class Script:
    """What a scripted generator answers, and what it was asked."""

    processor: SailVLProcessor
    say: Callable[[str, str, int], str] = lambda uid, prompt, copy: "\\boxed{1}"
    """(uid, prompt text, number of the completion) -> response."""
    cut: Callable[[str], bool] = lambda uid: False
    """uid -> whether the answer is cut off."""
    asked: list[tuple[list[Prompt], Sampling]] = field(default_factory=list)

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        self.asked.append((list(prompts), sampling))
        return [[self._answer(prompt, copy) for copy in range(sampling.n)] for prompt in prompts]

    def _answer(self, prompt: Prompt, copy: int) -> Completion:
        text = self.processor.tokenizer.decode(prompt.input_ids)
        ids = tuple(self.processor.tokenizer.encode(self.say(prompt.uid, text, copy), add_special_tokens=False))
        cut = self.cut(prompt.uid)
        ids = ids if cut else (*ids, self.processor.stop_token_ids[0])
        return Completion(
            uid=prompt.uid, token_ids=ids, logprobs=(0.0,) * len(ids), finish_reason="length" if cut else "stop"
        )


@pytest.fixture
def script(processor: SailVLProcessor, monkeypatch: pytest.MonkeyPatch) -> Script:
    """Takes the generator's place in `evaluate`; set `say` and `cut`."""
    made = Script(processor=processor)
    monkeypatch.setattr("sail_train.eval.evaluate.Generator", lambda model, **options: made)
    return made
