"""Long-tail duplication: samples of rare domains are seen more often (Seed1.5-VL, arXiv 2505.07062, section 3.1.1).

The domain of a sample is a column of the index ("language") or a field of its meta ("meta.topic"). Domains with fewer
than half as many samples as the mean domain are brought up to that half by weights above 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from sail_train.config import suggestion
from sail_train.data.index import MAX_WEIGHT, add_columns, ensure_index
from sail_train.data.tools import jobs
from sail_train.data.tools.filter import weights_of
from sail_train.data.tools.measured import check_measured
from sail_train.data.tools.reading import conversations
from sail_train.data.tools.weights import Chart, chart, tail_copies
from sail_train.types import BadSample

META = "meta."
SHOWN = 12
"""Domains at each end that the chart shows."""


def domains(shard: str, name: str, sample_format: str) -> Iterator[str | None]:
    """The domain of each row; None where it has none or is not seen at all (weight 0)."""
    table = ensure_index(shard)
    seen = weights_of(table) > 0
    if name.startswith(META):
        values: Iterator[Any] = (
            None if isinstance(sample, BadSample) else sample.meta.get(name.removeprefix(META))
            for sample in conversations(shard, sample_format)
        )
    elif name in table.column_names:
        values = iter(table.column(name).to_pylist())
    else:
        check_measured(name, table)
        hint = suggestion(name, table.column_names)
        raise ValueError(f"--domain {name}: the index has no such column; {hint}, or meta.FIELD for a sample's own")
    for value, is_seen in zip(values, seen, strict=True):
        # a list or a mapping is no name of a domain
        yield str(value) if is_seen and isinstance(value, str | int | float) else None


def count_shard(shard: str, name: str, sample_format: str) -> Mapping[str, Any]:
    """Samples by domain: the work of one shard in the first pass."""
    counts: dict[str, int] = {}
    for domain in domains(shard, name, sample_format):
        if domain is not None:
            counts[domain] = counts.get(domain, 0) + 1
    return {"domains": counts}


def write_shard(shard: str, name: str, sample_format: str, copies: Mapping[str, float]) -> Mapping[str, Any]:
    """Writes the column `weight`: the copies of the domain; 1 without a domain, and 0 stays 0."""
    found = list(domains(shard, name, sample_format))
    weights = np.array([1.0 if domain is None else copies.get(domain, 1.0) for domain in found])
    weights = np.where(weights_of(ensure_index(shard)) > 0, weights, 0.0)
    add_columns(shard, {"weight": weights})
    return {"samples": len(found), "without a domain": found.count(None), "weight": float(weights.sum())}


def balance(
    shards: Sequence[str], name: str, *, floor: float, most: float, num_jobs: int, sample_format: str = "messages"
) -> tuple[jobs.Summary, Chart]:
    """Weighs the samples by how rare their domain is among all the shards.

    Raises:
        ValueError: a floor outside 0 to 1, no domain at all, or a shard that failed in the first pass.
    """
    if not 0 <= floor <= 1 or (most and not 1 <= most <= MAX_WEIGHT):
        raise ValueError(
            f"--floor {floor:g} must be a share from 0 to 1, and --most {most:g} 0 or from 1 to {MAX_WEIGHT:g}"
        )
    counted = jobs.over_shards(shards, count_shard, (name, sample_format), jobs=num_jobs, title="counting")
    if counted.failed:
        path, reason = next(iter(counted.failed.items()))
        raise ValueError(f"{len(counted.failed)} shards failed, as {path}: {reason}; no weight was written")
    counts: dict[str, int] = counted.counts.get("domains", {})
    if not counts:
        raise ValueError(f"--domain {name}: no sample has one")
    copies = tail_copies(counts, floor=floor, most=most)
    raised = {domain: value for domain, value in copies.items() if value > 1}
    writing = (name, sample_format, raised)
    summary = jobs.over_shards(shards, write_shard, writing, jobs=num_jobs, title="writing")
    summary.counts |= {
        "domains": len(counts),
        "domains raised": len(raised),
        "mean domain": np.mean(list(counts.values())),
    }
    ordered = sorted(counts, key=lambda domain: (-counts[domain], domain))
    labels = ordered if len(ordered) <= 2 * SHOWN else [*ordered[:SHOWN], *ordered[-SHOWN:]]
    before = [float(counts[domain]) for domain in labels]
    after = [counts[domain] * copies[domain] for domain in labels]
    return summary, chart(f"samples by {name}", labels, before, after)
