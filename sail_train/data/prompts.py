"""The stream of prompts for RL and sampling: shards -> mix -> shuffle -> format -> check, one conversation at a time.

Prompt i of the run comes from logical stream i mod num_streams and is rank (i mod world)'s, as with rows. What a
rollout could not use (too long, images that cannot be decoded) is quarantined here, so that nothing fails later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from sail_train.data.candidate import Candidate
from sail_train.data.config import DataConfig
from sail_train.data.interleave import (
    Interleave,
    budget_of,
    candidates,
    check_ranks,
    mixture,
    order_settings,
    shard_lists,
)
from sail_train.data.measure import check_capacity, parsers
from sail_train.data.quarantine import Ledger
from sail_train.data.shuffle import Shuffle
from sail_train.types import THINK_MODES, BadSample, Conversation

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor


class PromptCheck:
    """Candidate -> Conversation that can be asked, with `seq_length` and `max_patches` as a prompt's limits."""

    def __init__(self, config: DataConfig, processor: SailVLProcessor) -> None:
        self._config = config
        self._processor = processor
        self._parsers = parsers(config.sources)

    def __call__(self, candidate: Candidate) -> Conversation:
        """Raises BadSample: no question, too long, or images that cannot be read."""
        conversation = self._parsers[candidate.raw.source](candidate.raw)
        if not any(message.role == "user" for message in conversation.prompt):
            raise BadSample("no_question", "no user message before the last answer")
        # the images of an answer are none of the prompt's, and the template refuses them in training too
        answer = conversation.messages[len(conversation.prompt) :]
        if any(part.type != "text" for message in answer for part in message.content):
            raise BadSample("assistant_image", "an assistant's turn holds text alone")
        # the longest that the prompt can become: asked for a thought or for none, and with a forced opening
        measured = self._processor.measure(conversation)
        ids = [
            self._processor.encode_prompt(conversation, think=think, force=True, measured=measured)
            for think in THINK_MODES
        ]
        check_capacity(max(map(len, ids)), sum(visual.num_patches for visual in measured), self._config)
        for visual in measured:
            self._processor.pixels(visual)
        return conversation


class LogicalPrompts:
    """Prompts of one logical stream."""

    def __init__(self, waiting: Shuffle, check: PromptCheck, ledger: Ledger) -> None:
        self.ledger = ledger
        self._candidates = waiting
        self._check = check

    def __next__(self) -> Conversation:
        while True:
            candidate = next(self._candidates, None)
            if candidate is None:
                self._candidates.check_end()
                raise StopIteration
            raw = candidate.raw
            try:
                conversation = self._check(candidate)
            except BadSample as error:
                self.ledger.bad(raw.source, raw.shard, raw.key, error)
                continue
            self.ledger.good(raw.source)
            return conversation

    def state(self) -> dict[str, Any]:
        return {**self._candidates.state(), **self.ledger.state()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        self.ledger.load_state(state)
        self._candidates.load_state(state)


def _check_budgets(config: DataConfig) -> None:
    """ValueError for a budget of tokens: nothing counts those of prompts."""
    for name, source in config.sources.items():
        if source.weight > 0 and source.max_tokens is not None:
            raise ValueError(
                f"data.sources.{name}.max_tokens={source.max_tokens} counts tokens of packed samples, and prompts are "
                "not packed; use epochs"
            )


class PromptStream(Iterator[tuple[Conversation, dict[str, Any]]]):
    """One rank's (conversation, positions after it), until a stream's sources are exhausted.

    Raises:
        ValueError: sources that name no data, or ranks that cannot share the streams equally.
        TooManyBadSamples: while iterating, when a source is over its budget.
    """

    def __init__(
        self, config: DataConfig, processor: SailVLProcessor, *, seed: int, rank: int = 0, world: int = 1
    ) -> None:
        check_ranks(config, rank=rank, world=world, rows=False)
        shards = shard_lists(config)
        _check_budgets(config)
        asked = mixture(config, shards)
        budget, check = budget_of(config), PromptCheck(config, processor)
        self._num_streams = config.num_streams
        self._streams: dict[int, LogicalPrompts] = {}
        for number in range(rank, config.num_streams, world):
            ledger = budget.ledger()
            waiting = candidates(config, shards, seed=seed, stream=number, ledger=ledger, asked=asked)
            self._streams[number] = LogicalPrompts(waiting, check, ledger)
        self.settings = order_settings(config, shards, processor, seed=seed)
        """JSON: what the order of the prompts is a function of; a fingerprint of the data."""
        self._prompts = Interleave(
            self._streams, self.settings, num_streams=config.num_streams, allow_mix_change=config.allow_mix_change
        )
        self.positions = self._prompts.positions()
        """JSON: where the streams stand after the last prompt that was given out."""
        self.pending: list[dict[str, Any]] = []
        """Records of the bad samples met since they were taken last."""

    def __next__(self) -> tuple[Conversation, dict[str, Any]]:
        try:
            index, conversation = next(self._prompts)
        except StopIteration:
            self.settle()
            raise
        self.pending.extend(self._streams[index % self._num_streams].ledger.take())
        self.positions = self._prompts.positions()
        return conversation, self.positions

    def settle(self) -> None:
        """Adds to `pending` what rides on no prompt any more, and moves the positions past it: from there it is not
        met again. For the end of the run, which may be that of another rank's streams."""
        for number, stream in self._streams.items():
            self.pending.extend(stream.ledger.take())
            self._prompts.refresh(number, stream.state())
        self.positions = self._prompts.positions()

    @property
    def changes(self) -> list[str]:
        """What the mixture does otherwise than when the loaded positions were saved (`data.allow_mix_change`)."""
        return self._prompts.changes

    def take_quarantined(self) -> tuple[dict[str, Any], ...]:
        """Records of the bad samples met since the last call; for quarantine.jsonl, once the prompts are trained on."""
        records = tuple(self.pending)
        self.pending.clear()
        return records

    def load_state(self, positions: Mapping[str, Any]) -> None:
        """Goes on after the prompt that carried `positions`; those of all ranks together fit any number of ranks."""
        self._prompts.load_state(positions)
        self.pending.clear()
        self.positions = self._prompts.positions()
