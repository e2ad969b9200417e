"""Evaluates a model: for each suite and mode ask every prompt, grade every answer, add the figures up.

conversations -> this rank's prompts (images made blank), some at a time -> completions -> records -> gathered over
ranks in prompt order -> metrics. Records depend on the model, the prompts and the seed; never on batch size or
ranks. Reading shards and writing files is left to the caller (`sail_train.loops.evaluation`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sail_train import dist
from sail_train.eval.blank import blank
from sail_train.eval.config import MODES, EvalConfig, Mode
from sail_train.eval.grading import figures, prompt_text, request
from sail_train.eval.tally import by_prompt, paired, summarise
from sail_train.generate.generator import Generator
from sail_train.rewards import verify_all
from sail_train.rewards.config import VerifierConfig
from sail_train.types import BadSample, Completion, Conversation, Prompt, Sampling

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

logger = logging.getLogger(__name__)

COMPARED = (("on", "off"), ("on_t1", "off_t1"), ("on_forced", "off_forced"))
"""Modes whose difference on the same prompts is a metric of its own where both are asked: "<suite>/on_minus_off"."""

IN_FLIGHT = 4
"""Batches whose prompts (and patches) are held at once: enough that finished rows are refilled, bounded in memory."""


@dataclass(frozen=True, kw_only=True)
class PassResult:
    """One suite asked in one mode."""

    metrics: dict[str, float]
    """"read/greedy" and what belongs to it, see `tally.summarise`."""
    scores: list[float | None]
    """Score of each prompt in order (None: not graded), to pair with another asking of the same prompts."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    passes: dict[str, PassResult]
    """By "<suite>/<mode>"."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """One record per answer, by suite, mode and prompt."""

    @property
    def metrics(self) -> dict[str, float]:
        """Those of all passes, and of the modes compared on the same prompts."""
        merged: dict[str, float] = {}
        for one in self.passes.values():
            merged |= one.metrics
        return merged | compare_modes({name: one.scores for name, one in self.passes.items()})


@dataclass(frozen=True, kw_only=True)
class Asker:
    """A model with what is needed to question it."""

    generator: Generator
    processor: SailVLProcessor
    config: EvalConfig
    verifier: VerifierConfig
    seed: int
    rank: int
    world: int


def evaluate(
    model: Any,
    processor: SailVLProcessor,
    suites: Mapping[str, Sequence[Conversation]],
    config: EvalConfig,
    *,
    seed: int,
    verifier: VerifierConfig | None = None,
    rank: int = 0,
    world: int = 1,
) -> EvalResult:
    """Asks `model` every suite that `config.modes` names, in its modes.

    Args:
        model: a `SailVLForConditionalGeneration`; under ZeRO 3 with its parameters gathered.
        suites: held-out conversations by name, each with an answer and a verifier; cut to the config's limits here.
        verifier: how answers are verified; None takes the defaults of `rewards.verifier`.
        rank, world: prompt i is asked by rank i mod `world`; every rank gets the whole result.

    Raises:
        ValueError: a suite without conversations, one without an answer or verifier, or a suite of broken samples.
    """
    generator = Generator(
        model,
        stop_token_ids=processor.stop_token_ids,
        pad_token_id=processor.tokenizer.pad_token_id,
        max_batch=config.batch_size,
        banned_token_ids=(processor.image_token_id,),
    )
    asker = Asker(
        generator=generator,
        processor=processor,
        config=config,
        verifier=verifier or VerifierConfig(),
        seed=seed,
        rank=rank,
        world=world,
    )
    passes: dict[str, PassResult] = {}
    samples: list[dict[str, Any]] = []
    for suite, modes in config.modes.items():
        conversations = chosen(suite, suites, config)
        for mode, records in _passes(asker, suite, modes, conversations):
            name = f"{suite}/{mode}"
            found = by_prompt(records, "score")
            scores = [found.get(index) for index in range(len(conversations))]
            passes[name] = PassResult(metrics=summarise(name, records), scores=scores)
            samples += records
    return EvalResult(passes=passes, samples=samples)


def chosen(suite: str, suites: Mapping[str, Sequence[Conversation]], config: EvalConfig) -> list[Conversation]:
    """The conversations of `suite` that are asked, checked to be gradable."""
    conversations = list(suites.get(suite, ()))[: config.prompts_of(suite)]
    if not conversations:
        raise ValueError(f"eval.suites.{suite} has no conversations; check eval.suites.{suite}.shards")
    for conversation in conversations:
        if conversation.answer is None or conversation.verifier is None:
            raise ValueError(
                f"eval.suites.{suite}: sample {conversation.key} has no answer or no verifier and cannot be graded;"
                " give both in its .json, or leave the suite out"
            )
    return conversations


def _passes(
    asker: Asker, suite: str, modes: Sequence[str], conversations: Sequence[Conversation]
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """(mode, records of all ranks) for each mode; modes that ask the same are generated once."""
    done: dict[Mode, list[dict[str, Any]]] = {}
    for name in modes:
        mode = MODES[name]
        if mode not in done:
            done[mode] = _gather(asker, list(_answers(asker, suite, mode, conversations)))
            if not done[mode]:
                raise ValueError(f"eval.suites.{suite}: every one of its {len(conversations)} samples is broken")
        yield name, [{"kind": "eval", "suite": suite, "mode": name, **record} for record in done[mode]]


def _gather(asker: Asker, mine: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records of all ranks in prompt order, on every rank."""
    records = mine if asker.world == 1 else [record for each in dist.gather_objects(mine) for record in each]
    return sorted(records, key=lambda record: (record["index"], record["sample"]))


def _answers(asker: Asker, suite: str, mode: Mode, conversations: Sequence[Conversation]) -> Iterator[dict[str, Any]]:
    """This rank's records."""
    config = asker.config
    sampling = Sampling(
        max_new_tokens=config.max_new_tokens,
        temperature=mode.temperature,
        n=config.samples if mode.temperature > 0 else 1,
        seed=asker.seed,
    )
    for indices in _portions(range(asker.rank, len(conversations), asker.world), IN_FLIGHT * config.batch_size):
        prompts = _prompts(asker, suite, mode, {index: conversations[index] for index in indices})
        drawn = asker.generator.generate(list(prompts.values()), sampling)
        yield from _records(asker, mode, {index: conversations[index] for index in prompts}, drawn)


def _records(
    asker: Asker, mode: Mode, conversations: Mapping[int, Conversation], drawn: Sequence[Sequence[Completion]]
) -> Iterator[dict[str, Any]]:
    """Grades the completions of each conversation."""
    answers = [
        (index, sample, completion)
        for index, completions in zip(conversations, drawn, strict=True)
        for sample, completion in enumerate(completions)
    ]
    forced = asker.processor.opening(mode.think) if mode.force else ""
    texts = [forced + asker.processor.decode(completion.token_ids) for _, _, completion in answers]
    questions = [request(conversations[index], text) for (index, _, _), text in zip(answers, texts, strict=True)]
    scores = verify_all(questions, asker.verifier)
    for (index, sample, completion), question, score in zip(answers, questions, scores, strict=True):
        conversation = conversations[index]
        yield {
            "index": index,
            "sample": sample,
            "key": conversation.key,
            "source": conversation.source,
            "images": len(conversation.images),
            "videos": len(conversation.videos),
            "prompt": prompt_text(conversation),
            "response": question.response,
        } | figures(conversation, question, score, completion, mode, block=asker.processor.style.block)


def _portions(indices: range, size: int) -> Iterator[range]:
    for begin in range(0, len(indices), size):
        yield indices[begin : begin + size]


def _prompts(asker: Asker, suite: str, mode: Mode, conversations: Mapping[int, Conversation]) -> dict[int, Prompt]:
    """Prompts by index; a sample whose image is broken is left out with a warning rather than ending a long run."""
    prompts = {}
    for index, conversation in conversations.items():
        try:
            # The uid fixes what is drawn: the prompt's place in its suite, so that two models meet the same luck.
            prompt = asker.processor.prompt(conversation, uid=f"{suite}/{index}", think=mode.think, force=mode.force)
            prompts[index] = blank(prompt) if asker.config.suites[suite].blank_images else prompt
        except BadSample as error:
            logger.warning("suite %s: sample %s left out: %s", suite, conversation.key, error)
    return prompts


def compare_modes(scores: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Paired differences of the modes in COMPARED, for every suite asked in both."""
    metrics = {}
    for suite in dict.fromkeys(name.rpartition("/")[0] for name in scores):
        for first, second in COMPARED:
            pair = paired(scores.get(f"{suite}/{second}", ()), scores.get(f"{suite}/{first}", ()))
            if pair is not None:
                metrics[f"{suite}/{first}_minus_{second}"] = pair.difference
                metrics[f"{suite}/{first}_minus_{second}_se"] = pair.se
    return metrics
