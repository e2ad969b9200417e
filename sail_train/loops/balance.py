"""The experts' load of a mixture: balanced by a loss, reported by layer. Around the work of any loop that trains.

The loss of a step is E x sum_e f_e P_e (`model.router.balance_loss`) with f_e and P_e of all its tokens, on all ranks
and in all micro batches. Its gradient needs f_e, which is known only when the last micro batch has gone forward; here
it is that of the step before (docs/numerics.md says why that is good enough). So the loss is a sum over tokens like
any other, and does not depend on how they are dealt to ranks and micro batches.

It is added as a gradient alone: the loss that is reported stays that of the tokens, comparable with a dense model's
and with validation; the balance has a line of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sail_train import dist
from sail_train.engine.deepspeed import StepResult
from sail_train.engine.loop import Exhausted, Work, WorkStep
from sail_train.model.router import Routers, balance_loss, load_entropy, load_max
from sail_train.types import IGNORE_INDEX, Batch

log = logging.getLogger(__name__)


def routed_tokens(batches: Sequence[Batch]) -> int:
    """Tokens whose routing counts: those of batches that train something. An empty one only keeps ranks in step."""
    return sum(len(batch.input_ids) for batch in batches if _counts(batch))


def _counts(batch: Batch) -> bool:
    return bool((batch.labels != IGNORE_INDEX).any())


class BalancedWork:
    """A `Work` whose steps also balance the experts' load."""

    def __init__(self, work: Work, routers: Routers, *, coefficient: float) -> None:
        """`coefficient` is the weight of the balance loss; 0 only reports."""
        self._work = work
        self._routers = routers
        self._coefficient = coefficient if routers.trained else 0.0
        self._load: list[list[float]] | None = None
        """(L, E) tokens sent to each expert, per token, in the last step that was taken; None before the first."""
        self._sums: Tensor | None = None
        """(2, L, E) float64: this rank's counts and probabilities of the step so far."""

    @property
    def at_boundary(self) -> bool:
        return self._work.at_boundary

    def next_step(self) -> WorkStep | Exhausted:
        step = self._work.next_step()
        if isinstance(step, Exhausted):
            return step
        self._sums = None
        load = None if self._load is None else torch.tensor(self._load, dtype=torch.float32, device=dist.device())
        return replace(step, loss=partial(self._loss, step, load), finish=partial(self._finish, step))

    def state(self) -> Any:
        return {"work": self._work.state(), "load": self._load}

    def load_state(self, state: Any) -> None:
        self._work.load_state(state["work"])
        self._load = state["load"]

    def validate(self) -> Mapping[str, float] | None:
        return self._work.validate()

    def _loss(
        self, step: WorkStep, load: Tensor | None, module: torch.nn.Module, batch: Batch
    ) -> tuple[Tensor, Mapping[str, Tensor | float]]:
        with self._routers.collect() as routed:
            total, sums = step.loss(module, batch)
        probabilities = torch.stack(routed.probabilities)  # (L, E)
        added = torch.stack((torch.stack(routed.counts), probabilities.detach().double()))  # (2, L, E)
        added = added if _counts(batch) else torch.zeros_like(added)
        self._sums = added if self._sums is None else self._sums + added
        # before the first step the load counts as even, and an even load has no gradient
        if load is None or not self._coefficient or not _counts(batch):
            return total, sums
        # the engine divides by the denominator, the balance is a mean over the step's tokens
        balance = balance_loss(load, probabilities) * (self._coefficient * step.denominator / step.routed_tokens)
        return total + (balance - balance.detach()), sums

    def _finish(self, step: WorkStep, result: StepResult) -> dict[str, float]:
        """Adds up what the routers did on all ranks; a skipped step leaves no trace. Metrics, the work's own too."""
        own = dict(step.finish(result)) if step.finish else {}
        if not step.routed_tokens:
            return own
        assert self._sums is not None, "a step has a micro batch on every rank"
        totals = dist.all_reduce_sums(self._sums.flatten().tolist())
        counts, sums = torch.tensor(totals, dtype=torch.float64).view(2, len(self._routers.layers), -1)
        if result.skipped:
            return own
        load = counts / step.routed_tokens  # (L, E)
        self._load = load.tolist()
        return own | _metrics(self._routers.layers, load, sums / step.routed_tokens)


def _metrics(layers: Sequence[int], load: Tensor, probabilities: Tensor) -> dict[str, float]:
    busiest, entropy = load_max(load), load_entropy(load)
    values = {
        "router/balance_loss": float(balance_loss(load, probabilities)),
        "router/load_max": float(busiest.mean()),
        "router/entropy": float(entropy.mean()),
    }
    for layer, most, spread in zip(layers, busiest.tolist(), entropy.tolist(), strict=True):
        values |= {f"router/layer_{layer:02d}/load_max": most, f"router/layer_{layer:02d}/entropy": spread}
    return values
