"""Rebalancing by n-grams: samples that say what everybody says are seen less often, rare ones more often.

SAIL-VL2 (arXiv 2509.14033, section 3) names n-gram-level rebalancing and does not give its algorithm; this one is
ours: the weight of a sample is the mean over its answers' n-grams of frequency^-power, scaled so that the mean weight
is 1 and clipped. Three passes over shards, each in parallel: count, weigh, write.

Frequencies are kept in a table of 4M hash buckets, whatever the data: some n-grams share a bucket, which makes
a rare one look more common and never the other way round.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sail_train.data.index import MAX_WEIGHT, add_columns, ensure_index
from sail_train.data.tools import jobs
from sail_train.data.tools.filter import weights_of
from sail_train.data.tools.reading import all_text, answers, conversations
from sail_train.data.tools.signatures import ngram_hashes, words
from sail_train.data.tools.weights import Chart, chart, log_histogram, scale
from sail_train.types import BadSample, Conversation

TABLE_BITS = 22
NUM_DECADES = 9
"""Bars of the chart: a sample's mean n-gram share, by powers of ten."""


def _grams(sample: Conversation, size: int) -> np.ndarray:
    """(n,) int64 buckets of the n-grams of every answer, or of all text where there is none."""
    said = [found for answer in answers(sample) if (found := words(answer))] or [words(all_text(sample))]
    hashes = np.concatenate([ngram_hashes(each, size) for each in said])
    return (hashes >> np.uint64(64 - TABLE_BITS)).astype(np.int64)


def _file(shard: str, work: str, kind: str) -> Path:
    name = hashlib.blake2b(os.path.abspath(shard).encode(), digest_size=12).hexdigest()
    return Path(work) / f"{name}.{kind}.npy"


def count_shard(shard: str, work: str, size: int, sample_format: str) -> Mapping[str, Any]:
    """Writes (buckets, counts) of a shard's n-grams; samples that a filter gave the weight 0 do not count."""
    seen, found = weights_of(ensure_index(shard)) > 0, [np.zeros(0, dtype=np.int64)]
    for place, sample in enumerate(conversations(shard, sample_format)):
        if not isinstance(sample, BadSample) and seen[place]:
            found.append(_grams(sample, size))
    buckets, counts = np.unique(np.concatenate(found), return_counts=True)
    np.save(_file(shard, work, "counts"), np.stack([buckets, counts]))
    return {"samples": len(found) - 1, "n-grams": int(counts.sum())}


def gather_counts(shards: Sequence[str], work: str) -> None:
    """Adds the shards' counts up, into one table."""
    table = np.zeros(1 << TABLE_BITS, dtype=np.int64)
    for shard in shards:
        buckets, counts = np.load(_file(shard, work, "counts"), allow_pickle=False)
        table[buckets] += counts
    np.save(Path(work) / "table.npy", table)


def weigh_shard(shard: str, work: str, size: int, power: float, sample_format: str) -> Mapping[str, Any]:
    """Writes (raw weights, mean share of the n-grams) of a shard; NaN for samples that are not weighed."""
    table = np.load(Path(work) / "table.npy", mmap_mode="r", allow_pickle=False)
    total, seen = max(1, int(table.sum())), weights_of(ensure_index(shard)) > 0
    rows = []
    for place, sample in enumerate(conversations(shard, sample_format)):
        grams = np.zeros(0, int) if isinstance(sample, BadSample) or not seen[place] else _grams(sample, size)
        share = table[grams] / total
        rows.append((np.mean(share**-power), np.mean(share)) if len(grams) else (np.nan, np.nan))
    raw = np.array(rows, dtype=np.float64).reshape(-1, 2)
    np.save(_file(shard, work, "raw"), raw)
    histogram = log_histogram(raw[~np.isnan(raw[:, 0]), 0])
    return {"histogram": {str(place): int(count) for place, count in enumerate(histogram) if count}}


def write_shard(shard: str, work: str, factor: float, least: float, most: float) -> Mapping[str, Any]:
    """Writes the column `weight`: 0 stays 0, a sample without a word gets 1."""
    raw = np.load(_file(shard, work, "raw"), allow_pickle=False)
    before = weights_of(ensure_index(shard))
    weights = np.where(np.isnan(raw[:, 0]), 1.0, np.clip(factor * raw[:, 0], least, most))
    weights = np.where(before > 0, weights, 0.0)
    add_columns(shard, {"weight": weights})
    weighed = ~np.isnan(raw[:, 0])
    decade = np.clip(np.floor(-np.log10(np.maximum(raw[weighed, 1], 1e-30))).astype(int), 0, NUM_DECADES - 1)
    after = np.bincount(decade, weights[weighed], NUM_DECADES)
    return {
        "weighed": int(weighed.sum()),
        "weight": float(weights[weighed].sum()),
        "squares": float((weights[weighed] ** 2).sum()),
        "before": {str(place): int(count) for place, count in enumerate(np.bincount(decade, minlength=NUM_DECADES))},
        "after": {str(place): float(value) for place, value in enumerate(after)},
    }


def balance(
    shards: Sequence[str], work: str, *, size: int, power: float, least: float, most: float, num_jobs: int,
    sample_format: str = "messages",
) -> tuple[jobs.Summary, Chart]:  # fmt: skip
    """Weighs all samples of the shards against each other.

    Raises:
        ValueError: limits that no mean of 1 lies between, or a shard that failed in a pass before the last.
    """
    if not 0 <= least <= 1 <= most <= MAX_WEIGHT:
        raise ValueError(
            f"--least {least:g} and --most {most:g} must be 0 <= least <= 1 <= most <= {MAX_WEIGHT:g}: the mean is 1"
        )
    if size < 1 or power < 0:
        raise ValueError(f"--size {size} must be at least 1 and --power {power:g} 0 or more")
    Path(work).mkdir(parents=True, exist_ok=True)
    counted = jobs.over_shards(shards, count_shard, (work, size, sample_format), jobs=num_jobs, title="counting")
    _check(counted)
    gather_counts(shards, work)
    weighing = (work, size, power, sample_format)
    weighed = jobs.over_shards(shards, weigh_shard, weighing, jobs=num_jobs, title="weighing")
    _check(weighed)
    histogram = np.zeros(len(log_histogram(np.ones(1))), dtype=np.int64)
    for place, count in weighed.counts.get("histogram", {}).items():
        histogram[int(place)] = count
    factor = scale(histogram, least, most)
    summary = jobs.over_shards(shards, write_shard, (work, factor, least, most), jobs=num_jobs, title="writing")
    before, after = (summary.counts.pop(name, {}) for name in ("before", "after"))
    labels = [f"1e-{place + 1} to 1e-{place}" for place in range(NUM_DECADES)]
    shown = chart(
        f"samples by the mean share of their {size}-grams",
        labels,
        *([values.get(str(place), 0) for place in range(NUM_DECADES)] for values in (before, after)),
    )
    total, squares = summary.counts.get("weight", 0.0), summary.counts.pop("squares", 0.0)
    summary.counts |= {"mean weight": total / max(1, summary.counts.get("weighed", 0))}
    summary.counts |= {
        "effective samples": total**2 / squares if squares else 0.0,
        "n-grams": counted.counts["n-grams"],
    }
    return summary, shown


def _check(summary: jobs.Summary) -> None:
    if summary.failed:
        path, reason = next(iter(summary.failed.items()))
        raise ValueError(f"{len(summary.failed)} shards failed, as {path}: {reason}; no weight was written")
