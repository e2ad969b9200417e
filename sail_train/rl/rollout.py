"""Rollouts: what is asked, who answers, and what came back.

`Ask` (a prompt in the form its source wants) -> `RolloutEngine.generate` -> `Rollout` (a response, its reward, its
advantage), which is also the line in samples.jsonl.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from sail_train.config import choice
from sail_train.generate.generator import Generator
from sail_train.rewards.mix import Reward
from sail_train.rl.config import PromptTypeConfig, RLConfig
from sail_train.types import Completion, Conversation, Prompt, Sampling

if TYPE_CHECKING:
    from torch import Tensor

    from sail_train.processor.processor import SailVLProcessor

GREY = 128


@dataclass(frozen=True, kw_only=True)
class Ask:
    """One prompt of a rollout batch."""

    order: int
    """Number of the prompt in its rollout batch over all ranks."""
    conversation: Conversation
    prompt: Prompt
    kind: PromptTypeConfig
    """Think mode, group size and KL weight, all filled in."""
    forced: str = ""
    """Opening of the response that the prompt holds; it is graded with the response, not trained."""

    @property
    def mode(self) -> str:
        assert self.kind.think is not None
        return self.kind.think

    @property
    def question(self) -> str:
        return self.conversation.prompt[-1].text


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """One response and what became of it."""

    ask: Ask
    completion: Completion
    response: str
    """Text, the forced opening included."""
    reward: Reward
    shaped: float | None
    """The reward that is compared: total and length penalty; None if a part failed."""
    advantage: float = 0.0
    masked: bool = False
    """Not trained on: its reward failed, or it was cut off and such responses are masked."""
    kept: bool = True
    """Whether its group is trained on."""

    @property
    def num_tokens(self) -> int:
        return len(self.completion.token_ids)

    def to_record(self) -> dict[str, Any]:
        """JSON for samples.jsonl."""
        ask, total = self.ask, self.reward.total
        return {
            "uid": ask.prompt.uid,
            "source": ask.conversation.source,
            "key": ask.conversation.key,
            "think": ask.mode,
            "prompt": ask.question,
            "response": self.response,
            "truth": ask.conversation.answer,
            "finish_reason": self.completion.finish_reason,
            "tokens": self.num_tokens,
            "reward": None if total.failed else total.value,
            "shaped": self.shaped,
            "parts": {
                name: {"value": None if score.failed else score.value, "status": score.status, "detail": score.detail}
                for name, score in self.reward.parts.items()
            },
            "advantage": self.advantage,
            "masked": self.masked,
            "kept": self.kept,
        }


class RolloutEngine(Protocol):
    """Answers prompts with the policy's current weights.

    Log-probs are those of the temperature-scaled distribution, token ids end with the end token if there is one, and
    completions come in the order of the prompts.
    """

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]: ...

    def update_weights(self, named: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Take over the weights, by the names of the Hugging Face folder; every rank calls it."""

    def close(self) -> None: ...


class EmbeddedEngine:
    """The trainer's own module behind our generator: it always has the current weights."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        return self.generator.generate(prompts, sampling)

    def update_weights(self, named: Iterable[tuple[str, Tensor]], *, version: int) -> None:
        """Nothing to do: engine and trainer share the module."""

    def close(self) -> None:
        """Nothing is held."""


def build_embedded(model: Any, processor: SailVLProcessor, config: RLConfig) -> EmbeddedEngine:
    generator = Generator(
        model,
        stop_token_ids=processor.stop_token_ids,
        pad_token_id=processor.tokenizer.pad_token_id,
        banned_token_ids=(processor.image_token_id,),
        max_batch=config.max_batch,
    )
    return EmbeddedEngine(generator)


ENGINES = {"embedded": "sail_train.rl.rollout:build_embedded"}
"""Engines by name, as module:function (model, processor, config) -> RolloutEngine."""


def build_engine(model: Any, processor: SailVLProcessor, config: RLConfig) -> RolloutEngine:
    module, function = choice("rl.engine", config.engine, ENGINES).split(":")
    return getattr(importlib.import_module(module), function)(model, processor, config)


def make_ask(conversation: Conversation, processor: SailVLProcessor, config: RLConfig, *, uid: str, order: int) -> Ask:
    """The prompt as its source wants it asked. Raises ValueError without truth or verifier, BadSample as the processor.

    With `blank_images` every patch is mid-grey, in the rollout and, since the patches travel with it, in training.
    """
    if conversation.answer is None or conversation.verifier is None:
        raise ValueError(
            f"sample {conversation.key!r} of source {conversation.source!r} has no answer or verifier; "
            "RL needs both in each sample's JSON"
        )
    kind = config.prompt_type(conversation.source)
    assert kind.think is not None
    prompt = processor.prompt(conversation, uid=uid, think=kind.think, force=config.force_think)
    if config.blank_images:
        prompt = replace(prompt, patches=np.full_like(prompt.patches, GREY))
    forced = processor.opening(kind.think) if config.force_think else ""
    return Ask(order=order, conversation=conversation, prompt=prompt, kind=kind, forced=forced)
