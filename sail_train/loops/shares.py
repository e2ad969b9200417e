"""What the data cost and where it came from, for metrics.jsonl: evenness over ranks, and asked against read shares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sail_train.engine.deepspeed import StepResult

KINDS = ("samples", "tokens")


def all_costs(costs: Sequence[tuple[float, float]], *, rank: int, world: int) -> list[float]:
    """This rank's costs of its micro steps among noughts, so that the ranks' sum holds everybody's."""
    table = np.zeros((world, len(costs), 2))
    table[rank] = np.array(costs).reshape(-1, 2)
    return table.reshape(-1).tolist()


def evenness(costs: Sequence[float], *, world: int, per_micro_step: bool) -> dict[str, float]:
    """Mean over ranks / max of the modelled FLOPs of a step: "balance/vit", "balance/llm", "balance/total".

    1 means that no rank waits for another. Where the ranks wait for each other at every micro step
    (`per_micro_step`), it is the sum of the means / the sum of the maxima over micro steps.
    """
    table = np.array(costs).reshape(world, -1, 2)  # (rank, micro step, vit and llm)
    named = {"vit": table[:, :, 0], "llm": table[:, :, 1], "total": table.sum(axis=2)}
    values = {}
    for name, of_part in named.items():
        waited = of_part if per_micro_step else of_part.sum(axis=1, keepdims=True)
        most = waited.max(axis=0).sum()
        values[f"balance/{name}"] = float(waited.mean(axis=0).sum() / most) if most else 1.0
    return values


class Shares:
    """How much of what was read came from each source, over the whole run, beside what was asked for."""

    def __init__(self, asked: Callable[[int], Mapping[str, float]], sources: Sequence[str]) -> None:
        """`asked` gives the sources' shares of the samples of a step, counted from 0."""
        self._asked = asked
        self._sources = list(sources)
        self.steps = 0
        """Steps of data read, those that were skipped among them."""
        self._wanted = dict.fromkeys(self._sources, 0.0)
        """Sum over steps of the asked shares."""
        self._read = {kind: dict.fromkeys(self._sources, 0.0) for kind in KINDS}

    def add(self, result: StepResult) -> dict[str, float]:
        """Counts a step; "mix/asked/x", "mix/samples/x" and "mix/tokens/x": shares up to now that add up to 1."""
        self.pass_over()
        values = {f"mix/asked/{source}": wanted / self.steps for source, wanted in self._wanted.items()}
        for kind, read in self._read.items():
            for source in self._sources:
                read[source] += result.sums[f"{kind}/{source}"]
            total = sum(read.values()) or 1.0
            values |= {f"mix/{kind}/{source}": count / total for source, count in read.items()}
        return values

    @property
    def samples_per_step(self) -> float:
        """Mean over the run so far."""
        return sum(self._read["samples"].values()) / max(1, self.steps)

    def pass_over(self) -> None:
        """Counts a step without a sample: all that came was bad."""
        for source, share in self._asked(self.steps).items():
            self._wanted[source] += share
        self.steps += 1

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps, "wanted": self._wanted, **self._read}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """{} is a run of before there were shares: they are counted from here on."""
        self.steps = state.get("steps", 0)
        self._wanted = {source: state.get("wanted", {}).get(source, 0.0) for source in self._sources}
        self._read = {kind: {name: state.get(kind, {}).get(name, 0.0) for name in self._sources} for kind in KINDS}
