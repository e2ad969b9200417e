"""Completions of requests that come while others are being written, a token at a time: what serving stands on.

`admit` (a prompt's prefill, its first tokens) -> `step` (one more token of every live row) -> the caller reads
`token_ids` and, where it has seen enough, sets `finish_reason`: the row is free at the next step. Each request has a
sampling of its own; what it gets is what `Generator.generate` would have given it alone, beyond rounding of the
logits. `Generator` stays the way for many prompts of one sampling: it keeps what it draws on the device.

Left out: chunked prefill (a long prompt holds up the other rows for as long as its prefill takes).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from sail_train.generate.cache import SlotCache
from sail_train.generate.generator import SLACK_COLUMNS, Generator, embed_prompts
from sail_train.generate.sampling import draw, uniforms
from sail_train.types import Prompt, Sampling


@dataclass(kw_only=True, eq=False)
class Writing:
    """One completion while it is written."""

    sampling: Sampling
    copy: int
    """Number of the completion among the `sampling.n` of its prompt."""
    uniform: np.ndarray
    """(max_new_tokens,) float64: the numbers that decide; empty when greedy."""
    token_ids: list[int] = field(default_factory=list)
    """With the end token, if there is one."""
    logprobs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    """"stop" (end token), "length", what a caller set to have it ended, or None while it goes on."""


class PromptTooLarge(RuntimeError):
    """The device has no memory for the prefill of a prompt; the rows that live are as they were."""


class Session:
    """The live rows of a model and their cache. It belongs to one thread.

    The cache has as many rows as were needed at once, not as many as there may be: one long request costs one row.
    """

    def __init__(self, generator: Generator) -> None:
        """`generator` says model, end tokens and the number of rows (`max_batch`); its model is left in eval mode."""
        self.model: Any = generator.model.eval()
        self.rows = generator.max_batch
        self.device = next(self.model.parameters()).device
        self.stop_token_ids = frozenset(generator.stop_token_ids)
        self.banned = torch.tensor(generator.banned_token_ids, dtype=torch.int64, device=self.device)
        self.live: list[Writing] = []
        """Row i of the cache is that of live[i]."""
        self._cache: SlotCache | None = None

    @property
    def free(self) -> int:
        return self.rows - sum(writing.finish_reason is None for writing in self.live)

    @torch.no_grad()
    def admit(self, prompt: Prompt, sampling: Sampling) -> list[Writing]:
        """Begin the completions of a prompt, of which each has its first token then.

        ValueError if they never fit, PromptTooLarge if there is no memory for the prompt.
        """
        if sampling.n > self.rows:
            raise ValueError(f"n={sampling.n} completions are more than the {self.rows} rows; raise max_batch")
        self._sweep()
        assert sampling.n <= self.free, "a prompt enters when there is room for all its completions"
        prefill, length = DynamicCache(), len(prompt.input_ids)
        try:
            logits = self._forward(
                embed_prompts(self.model, [prompt], self.device),
                position_ids=torch.arange(length, device=self.device)[None],
                attention_mask=None,
                past_key_values=prefill,
            )  # (1, V)
        except torch.OutOfMemoryError as error:
            raise PromptTooLarge(f"no memory for a prompt of {length} tokens") from error
        self._make_room(prefill, length, length + sampling.max_new_tokens, copies=sampling.n)
        assert self._cache is not None
        self._cache.admit(prefill, sampling.n)
        begun = [begin(prompt.uid, sampling, copy) for copy in range(sampling.n)]
        self.live += begun
        self._draw(begun, logits.repeat_interleave(sampling.n, dim=0))
        self._sweep()
        return begun

    @torch.no_grad()
    def step(self) -> list[Writing]:
        """One more token for every live row; returns those that got one, ended ones among them."""
        self._sweep()
        if not self.live:
            return []
        assert self._cache is not None
        last = torch.tensor([writing.token_ids[-1] for writing in self.live], device=self.device)
        logits = self._forward(
            self.model.language_model.get_input_embeddings()(last[:, None]),  # (rows, 1, H)
            position_ids=self._cache.positions(),
            attention_mask=self._cache.mask(),
            past_key_values=self._cache,
        )
        written = list(self.live)
        self._draw(written, logits)
        self._cache.advance()
        self._sweep()
        return written

    def stream(self, prompt: Prompt, sampling: Sampling) -> Iterator[int]:
        """The tokens of one completion as they are drawn; leaving the loop ends it."""
        (writing,) = self.admit(prompt, sampling)
        try:
            yield writing.token_ids[-1]
            while writing.finish_reason is None:
                self.step()
                yield writing.token_ids[-1]
        finally:
            writing.finish_reason = writing.finish_reason or "left"
            self._sweep()

    def clear(self) -> None:
        """Forget every row: after an error in a step nothing says what the cache holds."""
        self.live, self._cache = [], None

    def _forward(self, embedded: Tensor, **arguments: Any) -> Tensor:
        """(rows, V) logits after the last position."""
        result = self.model.language_model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1, **arguments)
        return result.logits[:, -1]

    def _make_room(self, prefill: DynamicCache, length: int, longest: int, *, copies: int) -> None:
        """A cache that `copies` rows of a prompt of `length` tokens can enter, and grow to `longest` in."""
        if self._cache is None:
            self._cache = SlotCache(prefill, rows=copies, columns=longest + SLACK_COLUMNS)
            return
        cache, needed = self._cache, self._cache.active + copies
        rows = cache.rows if needed <= cache.rows else min(self.rows, max(needed, 2 * cache.rows))
        if rows > cache.rows or cache.column < length or cache.columns < longest:
            column = max(cache.column - cache.left, length)
            columns = max(cache.columns, column + 1, longest + SLACK_COLUMNS)
            cache.lay(column=column, columns=columns, rows=rows)

    def _draw(self, writings: Sequence[Writing], logits: Tensor) -> None:
        """One token for each of `writings`; those of equal sampling are drawn together."""
        groups: dict[tuple[float, int, float], list[int]] = {}
        for row, writing in enumerate(writings):
            sampling = writing.sampling
            groups.setdefault((sampling.temperature, sampling.top_k, sampling.top_p), []).append(row)
        for rows in groups.values():
            drawn = [writings[row] for row in rows]
            uniform = None
            if drawn[0].sampling.temperature > 0:
                numbers = [writing.uniform[len(writing.token_ids)] for writing in drawn]
                uniform = torch.tensor(numbers, dtype=torch.float64, device=self.device)
            chosen = logits if len(groups) == 1 else logits[rows]
            token, logprob = draw(chosen, drawn[0].sampling, banned=self.banned, uniform=uniform)
            for writing, *new in zip(drawn, token.tolist(), logprob.tolist(), strict=True):
                self._write(writing, *new)

    def _write(self, writing: Writing, token: int, logprob: float) -> None:
        writing.token_ids.append(token)
        writing.logprobs.append(logprob)
        if token in self.stop_token_ids:
            writing.finish_reason = "stop"
        elif len(writing.token_ids) >= writing.sampling.max_new_tokens:
            writing.finish_reason = "length"

    def _sweep(self) -> None:
        """Give the rows away whose completions have ended."""
        ended = torch.tensor([writing.finish_reason is not None for writing in self.live], device=self.device)
        if not self.live or not bool(ended.any()):
            return
        assert self._cache is not None
        self.live = [self.live[row] for row in self._cache.drop(ended).tolist()]
        if not self.live:
            self._cache = None  # sized anew for the next prompt: what one long request needed is not kept for ever


def begin(uid: str, sampling: Sampling, copy: int) -> Writing:
    """A completion of which nothing is written; its numbers are those that `Generator` draws it by."""
    drawn = np.zeros(0)
    if sampling.temperature > 0:
        drawn = uniforms(sampling.seed, uid, copy, sampling.max_new_tokens)
    return Writing(sampling=sampling, copy=copy, uniform=drawn)
