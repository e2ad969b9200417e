"""Evaluates a model: for each suite and mode ask every prompt, grade every answer, add the figures up.

conversations -> (blank images) -> this rank's prompts, some at a time -> completions -> records -> gathered over
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
from sail_train.eval.grading import answer_text, grade, prompt_text
from sail_train.eval.tally import by_prompt, paired, summarise
from sail_train.generate.generator import Generator
from sail_train.types import BadSample, Conversation, Prompt, Sampling

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

logger = logging.getLogger(__name__)

COMPARED = (("on", "off"), ("on_t1", "off_t1"), ("on_forced", "off_forced"))
"""Modes whose difference on the same prompts is a metric of its own where both are asked: "<suite>/on_minus_off"."""

IN_FLIGHT = 4
"""Batches whose prompts (and patches) are held at once: enough that finished rows are refilled, bounded in memory."""


@dataclass(frozen=True, kw_only=True)
class EvalResult:
    metrics: dict[str, float]
    """"read/greedy" and what belongs to it, see `tally.summarise`."""
    samples: list[dict[str, Any]] = field(default_factory=list)
    """One record per answer, by suite, mode and prompt."""
    scores: dict[str, list[float | None]] = field(default_factory=dict)
    """"read/greedy" -> score of each prompt in order, to pair with another evaluation of the same prompts."""


@dataclass(frozen=True, kw_only=True)
class Asker:
    """A model with what is needed to question it."""

    generator: Generator
    processor: SailVLProcessor
    config: EvalConfig
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
    rank: int = 0,
    world: int = 1,
) -> EvalResult:
    """Asks `model` every suite that `config.modes` names, in its modes.

    Args:
        model: a `SailVLForConditionalGeneration`; under ZeRO 3 with its parameters gathered.
        suites: held-out conversations by name, each with an answer and a verifier; cut to the config's limits here.
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
    asker = Asker(generator=generator, processor=processor, config=config, seed=seed, rank=rank, world=world)
    metrics: dict[str, float] = {}
    samples: list[dict[str, Any]] = []
    scores: dict[str, list[float | None]] = {}
    for suite, modes in config.modes.items():
        conversations = chosen(suite, suites, config)
        for mode, records in _passes(asker, suite, modes, conversations):
            name = f"{suite}/{mode}"
            metrics |= summarise(name, records)
            samples += records
            found = by_prompt(records, "score")
            scores[name] = [found.get(index) for index in range(len(conversations))]
        metrics |= compare_modes(suite, scores)
    return EvalResult(metrics=metrics, samples=samples, scores=scores)


def chosen(suite: str, suites: Mapping[str, Sequence[Conversation]], config: EvalConfig) -> list[Conversation]:
    """The conversations of `suite` that are asked, checked to be gradable, with blank images if so configured."""
    conversations = list(suites.get(suite, ()))[: config.prompts_of(suite)]
    if not conversations:
        raise ValueError(f"eval.suites.{suite} has no conversations; check eval.suites.{suite}.shards")
    for conversation in conversations:
        if conversation.answer is None or conversation.verifier is None:
            raise ValueError(
                f"eval.suites.{suite}: sample {conversation.key} has no answer or no verifier, so nothing can be graded;"
                " give both in its .json or leave the suite out"
            )
    if config.suites[suite].blank_images:
        return [blank(conversation) for conversation in conversations]
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


def _answers(
    asker: Asker, suite: str, mode: Mode, conversations: Sequence[Conversation]
) -> Iterator[dict[str, Any]]:
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
        completions = asker.generator.generate(list(prompts.values()), sampling)
        for index, drawn in zip(prompts, completions, strict=True):
            conversation = conversations[index]
            for sample, completion in enumerate(drawn):
                text = answer_text(asker.processor.decode(completion.token_ids), mode)
                yield {
                    "index": index,
                    "sample": sample,
                    "key": conversation.key,
                    "source": conversation.source,
                    "images": len(conversation.images),
                    "prompt": prompt_text(conversation),
                    "response": text,
                } | grade(conversation, text, completion, mode)


def _portions(indices: range, size: int) -> Iterator[range]:
    for begin in range(0, len(indices), size):
        yield indices[begin : begin + size]


def _prompts(
    asker: Asker, suite: str, mode: Mode, conversations: Mapping[int, Conversation]
) -> dict[int, Prompt]:
    """Prompts by index; a sample whose image is broken is left out with a warning rather than ending a long run."""
    prompts = {}
    for index, conversation in conversations.items():
        try:
            # The uid fixes what is drawn: the prompt's place in its suite, so that two models meet the same luck.
            prompts[index] = asker.processor.prompt(
                conversation, uid=f"{suite}/{index}", think=mode.think, force=mode.force
            )
        except BadSample as error:
            logger.warning("suite %s: sample %s left out: %s", suite, conversation.key, error)
    return prompts


def compare_modes(suite: str, scores: Mapping[str, Sequence[float | None]]) -> dict[str, float]:
    """Paired differences of the modes in COMPARED that were asked."""
    metrics = {}
    for first, second in COMPARED:
        pair = paired(scores.get(f"{suite}/{second}", ()), scores.get(f"{suite}/{first}", ()))
        if pair is not None:
            metrics[f"{suite}/{first}_minus_{second}"] = pair.difference
            metrics[f"{suite}/{first}_minus_{second}_se"] = pair.se
    return metrics
