"""Batched generation from prompts with images, as fast as plain torch allows.

prompts, longest first -> prefill in groups of equal length (vision once per prompt, no padding, plain causal
attention) -> its cache repeated for the n completions -> decoding of all live rows together, finished rows leaving
and waiting prompts entering -> `Completion`s in input order.

Log-probs are those a training forward gives at the same temperature, so that a policy gradient can use them as they
are. Left out: speculative decoding, paged memory and prefix reuse between prompts; models that need them have
an engine of their own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from sail_train.generate.cache import SlotCache
from sail_train.generate.sampling import draw, uniforms
from sail_train.types import Completion, Prompt, Sampling

PREFILL_TOKENS = 16384
"""Tokens prefilled in one call at most (one prompt always fits): bounds the activations of prompts with images."""

SLACK_COLUMNS = 64
"""Columns beyond the longest row: how rarely the cache is moved to the left while prompts keep entering."""


@dataclass(kw_only=True)
class Live:
    """The rows being decoded: row i of every tensor is row i of the cache."""

    request: Tensor
    """(rows,) int64: prompt number * n + completion number."""
    produced: Tensor
    """(rows,) int64: tokens drawn so far."""
    token: Tensor
    """(rows,) int64: the last one drawn."""

    def select(self, rows: Tensor) -> Live:
        return Live(request=self.request[rows], produced=self.produced[rows], token=self.token[rows])

    def extend(self, other: Live) -> Live:
        return Live(
            request=torch.cat([self.request, other.request]),
            produced=torch.cat([self.produced, other.produced]),
            token=torch.cat([self.token, other.token]),
        )


@dataclass(kw_only=True)
class Output:
    """What has been drawn, by request."""

    tokens: Tensor
    """(requests, max_new_tokens) int64."""
    logprobs: Tensor
    """(requests, max_new_tokens) float32."""
    uniform: Tensor
    """(requests, max_new_tokens) float64: the numbers that decide; empty when greedy."""
    lengths: list[int] = field(default_factory=list)
    stopped: list[bool] = field(default_factory=list)


class Generator:
    """Draws completions from a model, which it knows only through `embed` and `language_model`.

    `model.embed(input_ids (B, T), patches (P, patch_dim), grids (images, 2)) -> (B, T, H)`;
    `model.language_model` is a transformers causal language model.
    `pad_token_id` and `banned_token_ids` (image placeholders) are never drawn: no response may hold them. The recorded
    log-probs stay those of the whole distribution, which is what a training forward computes.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        stop_token_ids: Sequence[int],
        pad_token_id: int,
        max_batch: int = 256,
        banned_token_ids: Sequence[int] = (),
    ) -> None:
        if not stop_token_ids:
            raise ValueError("stop_token_ids is empty: no completion would end; give the tokenizer's end token")
        if max_batch < 1:
            raise ValueError(f"max_batch={max_batch} must be at least 1")
        self.model: Any = model
        self.max_batch = max_batch
        self.stop_token_ids = tuple(stop_token_ids)
        self.banned_token_ids = sorted({pad_token_id, *banned_token_ids} - set(stop_token_ids))

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """`sampling.n` completions of each prompt, in input order. Raises ValueError on a repeated uid."""
        uids = [prompt.uid for prompt in prompts]
        if len(set(uids)) < len(uids):
            repeated = next(uid for uid in uids if uids.count(uid) > 1)
            raise ValueError(f"uid {repeated!r} appears twice; completions are drawn by uid, so make them unique")
        if not prompts:
            return []
        with torch.no_grad(), evaluating(self.model):
            output = Decoding(self, prompts, sampling).run()
        return [
            [completion(output, uid, number * sampling.n + copy) for copy in range(sampling.n)]
            for number, uid in enumerate(uids)
        ]


class Decoding:
    """One call of `Generator.generate` while it runs."""

    def __init__(self, generator: Generator, prompts: Sequence[Prompt], sampling: Sampling) -> None:
        self.model = generator.model
        self.prompts = prompts
        self.sampling = sampling
        self.device = next(self.model.parameters()).device
        self.rows = max(generator.max_batch, sampling.n)  # a group enters as a whole
        # Whole groups enter when a quarter of the batch is free: single prompts would make small, slow prefills.
        self.refill = max(sampling.n, self.rows // 4)
        refilled = len(prompts) * sampling.n > self.rows
        longest = max(len(prompt.input_ids) for prompt in prompts)
        self.columns = longest + sampling.max_new_tokens + (SLACK_COLUMNS if refilled else 0)
        # Longest first: a later prompt always fits to the left of the current column.
        self.waiting = deque(sorted(range(len(prompts)), key=lambda i: -len(prompts[i].input_ids)))
        self.stop = torch.tensor(generator.stop_token_ids, device=self.device)
        self.banned = torch.tensor(generator.banned_token_ids, dtype=torch.int64, device=self.device)
        self.output = empty_output(prompts, sampling, self.device)
        self.cache: SlotCache | None = None
        nothing = torch.zeros(0, dtype=torch.int64, device=self.device)
        self.live = Live(request=nothing, produced=nothing, token=nothing)

    def run(self) -> Output:
        while self.waiting or len(self.live.request):
            self._admit()
            self._retire()
            if len(self.live.request):
                self._decode()
                self._retire()
        return self.output

    def _admit(self) -> None:
        """Prefill waiting prompts into the free rows, where there are enough of them."""
        free = self.rows - len(self.live.request)
        if len(self.live.request) and free < self.refill:
            return
        entering = [self.waiting.popleft() for _ in range(min(len(self.waiting), free // self.sampling.n))]
        for numbers in prefill_groups(entering, self.prompts):
            self._prefill(numbers)

    def _prefill(self, numbers: list[int]) -> None:
        """Run prompts of one length, give each n rows, and draw their first tokens."""
        prompts, copies = [self.prompts[number] for number in numbers], self.sampling.n
        prefill = DynamicCache()
        length = len(prompts[0].input_ids)
        logits = self._forward(
            embed_prompts(self.model, prompts, self.device),
            position_ids=torch.arange(length, device=self.device).expand(len(prompts), -1),
            attention_mask=None,
            past_key_values=prefill,
        )  # (prompts, V)
        if self.cache is None:
            self.cache = SlotCache(prefill, rows=self.rows, columns=self.columns)
        self.cache.admit(prefill, copies)
        request = torch.tensor(numbers, device=self.device)[:, None] * copies + torch.arange(copies, device=self.device)
        rows = Live(request=request.flatten(), produced=torch.zeros_like(request.flatten()), token=request.flatten())
        self._draw(rows, logits.repeat_interleave(copies, dim=0))
        self.live = self.live.extend(rows)

    def _decode(self) -> None:
        """Feed every live row its last token and draw the next one."""
        assert self.cache is not None
        embedded = self.model.language_model.get_input_embeddings()(self.live.token[:, None])  # (rows, 1, H)
        logits = self._forward(
            embedded,
            position_ids=self.cache.positions(),
            attention_mask=self.cache.mask(),
            past_key_values=self.cache,
        )
        self._draw(self.live, logits)
        self.cache.advance()

    def _forward(self, embedded: Tensor, **arguments: Any) -> Tensor:
        """(rows, V) logits after the last position."""
        result = self.model.language_model(inputs_embeds=embedded, use_cache=True, logits_to_keep=1, **arguments)
        return result.logits[:, -1]

    def _draw(self, rows: Live, logits: Tensor) -> None:
        """Draw one token for each row and record it; `rows` is changed in place."""
        greedy = self.sampling.temperature == 0
        uniform = None if greedy else self.output.uniform[rows.request, rows.produced]
        token, logprob = draw(logits, self.sampling, banned=self.banned, uniform=uniform)
        self.output.tokens[rows.request, rows.produced] = token
        self.output.logprobs[rows.request, rows.produced] = logprob
        rows.token = token
        rows.produced = rows.produced + 1

    def _retire(self) -> None:
        """Record the rows that have ended and give their places away."""
        stopped = torch.isin(self.live.token, self.stop)
        finished = stopped | (self.live.produced >= self.sampling.max_new_tokens)
        if not bool(finished.any()):
            return
        ended = zip(
            self.live.request[finished].tolist(),
            self.live.produced[finished].tolist(),
            stopped[finished].tolist(),
            strict=True,
        )
        for request, produced, stop in ended:
            self.output.lengths[request], self.output.stopped[request] = produced, stop
        assert self.cache is not None
        self.live = self.live.select(self.cache.drop(finished))


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and what was set before afterwards, module by module."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def empty_output(prompts: Sequence[Prompt], sampling: Sampling, device: torch.device) -> Output:
    requests = len(prompts) * sampling.n
    shape = (requests, sampling.max_new_tokens)
    drawn = np.zeros((0, 0))
    if sampling.temperature > 0:
        drawn = np.stack(
            [
                uniforms(sampling.seed, prompt.uid, copy, sampling.max_new_tokens)
                for prompt in prompts
                for copy in range(sampling.n)
            ]
        )
    return Output(
        tokens=torch.zeros(shape, dtype=torch.int64, device=device),
        logprobs=torch.zeros(shape, dtype=torch.float32, device=device),
        uniform=torch.from_numpy(drawn).to(device),
        lengths=[0] * requests,
        stopped=[False] * requests,
    )


def prefill_groups(numbers: list[int], prompts: Sequence[Prompt]) -> Iterator[list[int]]:
    """Consecutive prompts of one length, PREFILL_TOKENS of them at a time."""
    for length, same in groupby(numbers, key=lambda number: len(prompts[number].input_ids)):
        group, size = list(same), max(1, PREFILL_TOKENS // length)
        yield from (group[begin : begin + size] for begin in range(0, len(group), size))


def embed_prompts(model: Any, prompts: Sequence[Prompt], device: torch.device) -> Tensor:
    """(prompts, T, H) of prompts with equal T."""
    grids = [grid for prompt in prompts for grid in prompt.grids]
    return model.embed(
        torch.from_numpy(np.stack([prompt.input_ids for prompt in prompts]).astype(np.int64)).to(device),
        torch.from_numpy(np.concatenate([prompt.patches for prompt in prompts])).to(device),
        torch.tensor(grids, dtype=torch.int64, device=device).reshape(-1, 2),
    )


def completion(output: Output, uid: str, request: int) -> Completion:
    length = output.lengths[request]
    return Completion(
        uid=uid,
        token_ids=tuple(output.tokens[request, :length].tolist()),
        logprobs=tuple(output.logprobs[request, :length].tolist()),
        finish_reason="stop" if output.stopped[request] else "length",
    )
