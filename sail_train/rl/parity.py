"""The gate between rollout engine and trainer: do they see the same policy?

Some responses of a rollout batch are run through the training forward, and its log-probs compared with those the
engine recorded. A difference means that images, templates, weights or numerics have drifted apart, and that the
policy gradient is of another policy than the one that answered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from sail_train.rl.batch import pack
from sail_train.rl.config import RLConfig
from sail_train.rl.objectives.objective import policy
from sail_train.rl.rollout import Rollout


class ParityError(RuntimeError):
    """Engine and trainer have drifted apart."""


def is_due(config: RLConfig, number: int) -> bool:
    """Whether rollout batch `number` is checked."""
    return config.parity.every > 0 and number % config.parity.every == 0


def check_parity(
    module: nn.Module, rollouts: Sequence[Rollout], config: RLConfig, *, pad_token_id: int
) -> dict[str, float]:
    """Mean and largest difference of log-probs over the first probes. Raises ParityError above the tolerance.

    `module` is the trainer's `PackedLM` with the weights that the engine answered with; under ZeRO 3 unsharded, since
    ranks may have different numbers of probes.
    """
    probes = [replace(rollout, kept=True, masked=False, advantage=1.0) for rollout in rollouts[: config.parity.probes]]
    device = next(module.parameters()).device
    batches = pack(
        probes,
        micro_batch_tokens=config.micro_batch_tokens,
        patch_dim=probes[0].ask.prompt.patches.shape[-1],
        pad_token_id=pad_token_id,
    )
    with torch.no_grad():
        found = [
            (policy(module, batch.to(device), temperature=config.temperature)[0].cpu() - batch.old_logprobs).abs()
            for batch in batches
        ]
    differences = torch.cat(found)
    mean, largest = float(differences.mean()), float(differences.max())
    if not mean <= config.parity.tolerance:
        raise ParityError(
            f"the rollout engine's log-probs differ from the trainer's by {mean:.2e} on average ({largest:.2e} at "
            f"most), above rl.parity.tolerance={config.parity.tolerance:g}: images, template, weights or temperature "
            "differ"
        )
    return {"parity/mean": mean, "parity/max": largest}
