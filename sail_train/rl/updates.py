"""A rollout batch -> its updates, each with what the training engine's step takes.

Every rank gets as many updates, and in each as many micro batches, with the denominator summed over all ranks. An
update whose responses are all masked is left out, on every rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from sail_train import dist
from sail_train.rl.batch import PolicyBatch, pack
from sail_train.rl.config import RLConfig
from sail_train.rl.objectives.objective import Objective, add_reference
from sail_train.rl.rollout import Rollout


@dataclass(frozen=True, kw_only=True)
class Update:
    batches: list[PolicyBatch]
    """This rank's micro batches; as many on every rank, at least one."""
    denominator: float
    """What the loss summed over all ranks is divided by; above 0."""


def make_updates(
    mini_batches: Sequence[Sequence[Rollout]],
    objective: Objective,
    config: RLConfig,
    *,
    patch_dim: int,
    pad_token_id: int,
    reference: nn.Module | None = None,
) -> list[Update]:
    """The updates of all epochs, in order. Every rank calls it: one collective.

    `reference` is a `PackedLM` with the reference policy's weights, whole on every rank. Raises ValueError if the
    config has a KL term and there is none.
    """
    if config.needs_reference and reference is None:
        raise ValueError("rl.kl_coef is above 0 but no reference policy was given; keep one, or set rl.kl_coef=0")
    sizes = {"micro_batch_tokens": config.micro_batch_tokens, "patch_dim": patch_dim, "pad_token_id": pad_token_id}
    mine = [[len(pack(mini, **sizes)), objective.denominator(mini)] for mini in mini_batches]
    everyone = dist.gather_objects(mine)
    updates = []
    for number, mini in enumerate(mini_batches):
        count = max(theirs[number][0] for theirs in everyone)
        denominator = float(sum(theirs[number][1] for theirs in everyone))
        if denominator == 0:
            continue
        batches = pack(mini, at_least=count, **sizes)
        if reference is not None and config.needs_reference:
            batches = add_reference(batches, reference, temperature=config.temperature)
        updates.append(Update(batches=batches, denominator=denominator))
    return updates * config.epochs
