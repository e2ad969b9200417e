"""How long ranks wait for each other: mean / max of the modelled FLOPs where they meet, and how long dealing takes.

Samples are packed as a stream would pack them; the rows of one global batch are dealt by `sail_train.data.deal` over
all ranks, or each rank keeps its own. No step is computed: this is the model of `sail_train.cost`, not a clock.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass

import numpy as np
from data_lengths import Sample, drawn, shape_of
from data_table import markdown, spread

from sail_train.cost import ModelShape
from sail_train.data.config import DataConfig
from sail_train.data.deal import assign
from sail_train.data.fill import pack_lengths

RANKS, ACCUMULATION = 64, 4


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """mean / max over ranks, averaged over steps."""

    step: float
    """At the step's end (ZeRO 0 and 1)."""
    micro: float
    """Where ranks meet at every micro step (ZeRO 2 and 3)."""
    milliseconds: list[float]
    """That dealing took, by step."""
    moved: float
    """Share of the rows that another rank trains than read them."""


def row_costs(samples: list[Sample], shape: ModelShape, config: DataConfig) -> np.ndarray:
    """Modelled FLOPs of the packed rows, in their order."""
    rows = pack_lengths([one.tokens for one in samples], [one.patches for one in samples], config)
    costs = []
    for row in rows:
        lengths = [samples[number].tokens for number in row]
        pictures = [patches for number in row for patches in samples[number].pictures]
        costs.append(shape.train_flops(lengths, pictures, num_trained=sum(samples[number].text for number in row)))
    return np.array(costs)


def efficiency(costs: np.ndarray, how: str, ranks: int = RANKS, accumulation: int = ACCUMULATION) -> Efficiency:
    """Of whole steps of `costs`; `how`: "off", "step" or "micro step", by where the dealing lets ranks meet."""
    found: list[tuple[float, float, float, float]] = []
    for start in range(0, len(costs) - ranks * accumulation + 1, ranks * accumulation):
        # row r of the run is read by rank r mod ranks: (ranks, rows of each)
        own = np.arange(start, start + ranks * accumulation).reshape(accumulation, ranks).T
        before = time.perf_counter()
        if how == "off":
            places = np.stack([each[assign(costs[each], 1, 1, per_micro_step=True)[0]] for each in own])
        else:
            places = own.reshape(-1)[assign(costs[own.reshape(-1)], ranks, 1, per_micro_step=how == "micro step")]
        seconds = time.perf_counter() - before
        dealt = costs[places].sum(axis=2)  # (ranks, accumulation)
        total, meets = dealt.sum(axis=1), dealt.max(axis=0).sum()
        moved = np.mean((places.reshape(ranks, -1) - start) % ranks != np.arange(ranks)[:, None])
        found.append((total.mean() / total.max(), total.mean() / meets, 1e3 * seconds, float(moved)))
    step, micro, milliseconds, moved_ = zip(*found, strict=True)
    return Efficiency(
        step=statistics.mean(step), micro=statistics.mean(micro), milliseconds=list(milliseconds),
        moved=statistics.mean(moved_),
    )  # fmt: skip


def report(models: list[str], steps: int, seq_length: int, ranks: int = RANKS) -> str:
    """A table with a row for each mixture, model and way of dealing."""
    rows = []
    config = DataConfig(seq_length=seq_length, max_patches=4 * seq_length)
    for model in models:
        shape = shape_of(model)
        for mix in ("native", "tiles", "captions"):
            costs = np.empty(0)
            count = steps * ranks * ACCUMULATION
            while len(costs) < count:  # how many samples fill so many rows, packing tells
                guess = int(count * 12 * max(1.0, 1.1 * count / max(1, len(costs)) if len(costs) else 1.0))
                samples, _ = drawn(mix, guess, seq_length=seq_length, max_patches=config.max_patches)
                costs = row_costs(samples, shape, config)
            for how in ("off", "step", "micro step"):
                rows.append(_line(model, mix, how, efficiency(costs[:count], how, ranks)))
    header = ["model", "mixture", "dealt for", "mean / max at the step's end", "at every micro step",
              "rows that move", "ms to deal a step"]  # fmt: skip
    return markdown(header, rows)


def _line(model: str, mix: str, how: str, found: Efficiency) -> list[str]:
    took = "" if how == "off" else spread(found.milliseconds, 2)
    return [model, mix, how, f"{found.step:.3f}", f"{found.micro:.3f}", f"{100 * found.moved:.0f}%", took]
