"""The objective as the engine calls it: (module, micro batch) -> summed loss and the sums to log.

log-probs of the responses -> token loss of the chosen objective -> weights of the aggregation -> KL against the
reference. The engine divides by the denominator of the whole mini batch over all ranks and micro batches, which makes
the gradient independent of how rollouts are split (verl's and TRL's token-mean divide locally and are not).
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sail_train.config import choice
from sail_train.rl.batch import PolicyBatch, trained
from sail_train.rl.config import RLConfig
from sail_train.rl.objectives import OBJECTIVES
from sail_train.rl.objectives.surrogate import Clip
from sail_train.rl.rollout import Rollout
from sail_train.types import Batch

MAX_KL_EXPONENT = 20.0


class Objective:
    """Built once per run. Raises ValueError on an unknown objective."""

    def __init__(self, config: RLConfig) -> None:
        self.config = config
        self.module: Any = importlib.import_module(choice("rl.objective", config.objective, OBJECTIVES))
        self.clip = resolve(config, self.module.DEFAULTS)

    def loss(self, module: nn.Module, batch: Batch) -> tuple[Tensor, dict[str, Tensor | float]]:
        """Sum of the loss over the micro batch (a scalar with gradient), and sums over its tokens to be reduced."""
        assert isinstance(batch, PolicyBatch), "the engine hands back the micro batches of rl.batch.pack"
        logprobs, entropies = policy(module, batch, temperature=self.config.temperature, entropy=self.config.entropy)
        token = self.module.token_loss(logprobs, batch, self.clip)
        weights = self._weights(batch)
        sums: dict[str, Tensor | float] = {
            "tokens": float(len(logprobs)),
            "ratio": token.ratio.sum(),
            "clipped": token.clipped.sum(),
            "kl_old": (batch.old_logprobs - logprobs.detach()).sum(),
        }
        values = token.values
        if entropies is not None:
            sums["entropy"] = entropies.detach().sum()
        if self.config.needs_reference:
            assert batch.ref_logprobs is not None or not len(logprobs), "add_reference comes before the update"
            kl = k3(logprobs, logprobs if batch.ref_logprobs is None else batch.ref_logprobs)
            values = values + batch.kl_coef * kl
            sums["kl_ref"] = kl.detach().sum()
        return (values * weights).sum(), sums

    def denominator(self, rollouts: Sequence[Rollout]) -> float:
        """What the loss of these rollouts is divided by, to be summed over ranks; masked ones do not count.

        A sum of 0 means that every response of the update is masked: there is nothing to train on.
        """
        counted = trained(rollouts)
        if self.clip.loss_agg_mode == "token-mean":
            return float(sum(rollout.num_tokens for rollout in counted))
        if self.clip.loss_agg_mode == "seq-mean-token-sum-norm":
            return float(len(counted) * self.config.max_new_tokens)
        return float(len(counted))

    def _weights(self, batch: PolicyBatch) -> Tensor:
        """(N,) weight of each token's loss in the sum."""
        if self.clip.loss_agg_mode != "seq-mean-token-mean":
            return torch.ones_like(batch.advantages)
        return (1.0 / batch.lengths.clamp(min=1))[batch.sequence]


def resolve(config: RLConfig, defaults: Clip) -> Clip:
    """The objective's own bounds where the config gives none."""
    return Clip(
        low=defaults.low if config.clip_ratio_low is None else config.clip_ratio_low,
        high=defaults.high if config.clip_ratio_high is None else config.clip_ratio_high,
        c=defaults.c if config.clip_ratio_c is None else config.clip_ratio_c,
        loss_agg_mode=defaults.loss_agg_mode if config.loss_agg_mode is None else config.loss_agg_mode,
    )


def k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    """(N,) e^-x + x - 1 for x = log pi / pi_ref: never negative, and unbiased for KL(pi || pi_ref) on-policy."""
    x = (logprobs - ref_logprobs).clamp(-MAX_KL_EXPONENT, MAX_KL_EXPONENT)
    return (-x).exp() + x - 1


def policy(
    module: nn.Module, batch: PolicyBatch, *, temperature: float, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """(N,) log-probs of the response tokens under `module`, a `model.packed.PackedLM`, and entropies if asked for."""
    return module(
        batch.input_ids,
        batch.labels,
        batch.position_ids,
        batch.cu_seqlens,
        batch.patches,
        batch.grids,
        temperature=temperature,
        entropy=entropy,
    )


def add_reference(batches: Sequence[PolicyBatch], reference: nn.Module, *, temperature: float) -> list[PolicyBatch]:
    """The batches with the log-probs of the reference policy, without gradient and where the batches are."""
    device = next(reference.parameters()).device
    with torch.no_grad():
        found = [policy(reference, batch.to(device), temperature=temperature)[0] for batch in batches]
    return [
        replace(batch, ref_logprobs=logprobs.to(batch.advantages.device))
        for batch, logprobs in zip(batches, found, strict=True)
    ]
