"""Rollouts -> micro batches of packed sequences.

A sequence is the prompt and the response; labels stand on the response alone, so that the model's N log-probs line up
with the N values of advantage and old log-prob. Longest first into the first micro batch with room, whole sequences
only. What has no gradient, an advantage of zero without a KL term, is not computed but still counted in
the denominator (`objectives.Objective.denominator`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sail_train.rl.rollout import Rollout
from sail_train.types import IGNORE_INDEX, Batch


@dataclass(frozen=True, kw_only=True)
class PolicyBatch(Batch):
    """A micro batch with what the objective needs; N is the number of positions with a label, in order."""

    advantages: Tensor
    """(N,) float32."""
    old_logprobs: Tensor
    """(N,) float32: of the policy that drew the tokens."""
    kl_coef: Tensor
    """(N,) float32."""
    ref_logprobs: Tensor | None = None
    """(N,) float32: of the reference policy; needed where kl_coef is above 0."""
    sequence: Tensor
    """(N,) int64: which of the batch's sequences a token belongs to."""
    lengths: Tensor
    """(num_sequences,) int64: trained tokens of each sequence."""

    def to(self, device: Any) -> PolicyBatch:
        """The same batch with its tensors on `device`."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **moved)


def trained(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """Those that count in the loss: kept and not masked."""
    return [rollout for rollout in rollouts if rollout.kept and not rollout.masked]


def pack(
    rollouts: Sequence[Rollout], *, micro_batch_tokens: int, patch_dim: int, pad_token_id: int, at_least: int = 1
) -> list[PolicyBatch]:
    """Micro batches of at most `micro_batch_tokens` tokens each, and empty ones up to `at_least`.

    Ranks must take as many micro steps as the one with the most: its number is the others' `at_least`.
    """
    computed = [rollout for rollout in trained(rollouts) if rollout.advantage != 0 or rollout.ask.kind.kl_coef]
    bins: list[list[Rollout]] = []
    rooms: list[int] = []
    for rollout in sorted(computed, key=_length, reverse=True):  # sorted is stable: the order decides ties
        place = next((i for i, room in enumerate(rooms) if _length(rollout) <= room), None)
        if place is None:
            place = len(bins)
            bins.append([])
            rooms.append(micro_batch_tokens)
        bins[place].append(rollout)
        rooms[place] -= _length(rollout)
    batches = [_batch(members, patch_dim) for members in bins]
    return batches + [empty_batch(patch_dim, pad_token_id) for _ in range(at_least - len(batches))]


def empty_batch(patch_dim: int, token_id: int) -> PolicyBatch:
    """One token without a target: a micro step that trains nothing but calls every module."""
    none = torch.zeros(0)
    return PolicyBatch(
        input_ids=torch.tensor([token_id]),
        labels=torch.tensor([IGNORE_INDEX]),
        position_ids=torch.tensor([0]),
        cu_seqlens=torch.tensor([0, 1], dtype=torch.int32),
        patches=torch.zeros(0, patch_dim, dtype=torch.uint8),
        grids=torch.zeros(0, 2, dtype=torch.int64),
        sources=("",),
        keys=("",),
        advantages=none,
        old_logprobs=none,
        kl_coef=none,
        sequence=none.long(),
        lengths=torch.zeros(1, dtype=torch.int64),
    )


def _length(rollout: Rollout) -> int:
    """Tokens of input: the last token of the response is only ever a target."""
    return len(rollout.ask.prompt.input_ids) + rollout.num_tokens - 1


def _batch(rollouts: Sequence[Rollout], patch_dim: int) -> PolicyBatch:
    lengths = np.array([rollout.num_tokens for rollout in rollouts])
    sizes = [_length(rollout) for rollout in rollouts]
    prompts = [rollout.ask.prompt for rollout in rollouts]
    return PolicyBatch(
        input_ids=_int64([_input_ids(rollout) for rollout in rollouts]),  # (T,)
        labels=_int64([_labels(rollout) for rollout in rollouts]),  # (T,)
        position_ids=_int64([np.arange(size) for size in sizes]),  # (T,)
        cu_seqlens=torch.from_numpy(np.cumsum([0, *sizes], dtype=np.int32)),  # (num_sequences + 1,)
        patches=torch.from_numpy(
            np.concatenate([np.zeros((0, patch_dim), np.uint8), *(prompt.patches for prompt in prompts)])
        ),  # (P, patch_dim)
        grids=torch.tensor([grid for prompt in prompts for grid in prompt.grids], dtype=torch.int64).reshape(-1, 2),
        sources=tuple(rollout.ask.conversation.source for rollout in rollouts),
        keys=tuple(rollout.ask.conversation.key for rollout in rollouts),
        advantages=_per_token([rollout.advantage for rollout in rollouts], lengths),
        old_logprobs=torch.tensor([value for rollout in rollouts for value in rollout.completion.logprobs]),
        kl_coef=_per_token([rollout.ask.kind.kl_coef or 0.0 for rollout in rollouts], lengths),
        sequence=torch.from_numpy(np.repeat(np.arange(len(rollouts)), lengths)),  # (N,)
        lengths=torch.from_numpy(lengths),
    )


def _input_ids(rollout: Rollout) -> np.ndarray:
    return np.concatenate([rollout.ask.prompt.input_ids, rollout.completion.token_ids[:-1]])


def _labels(rollout: Rollout) -> np.ndarray:
    """The prompt's last position predicts the response's first token; a forced opening belongs to the prompt."""
    ignored = np.full(len(rollout.ask.prompt.input_ids) - 1, IGNORE_INDEX)
    return np.concatenate([ignored, rollout.completion.token_ids])


def _per_token(values: Sequence[float], lengths: np.ndarray) -> Tensor:
    return torch.from_numpy(np.repeat(np.array(values, dtype=np.float32), lengths))


def _int64(parts: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(parts).astype(np.int64))
