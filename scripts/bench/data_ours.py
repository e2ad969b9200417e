#!/usr/bin/env python
"""Ours as contenders, by the parts of the stream that a run uses."""

from __future__ import annotations

import glob
import json
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from data_rounds import WAITING, Clock, Round, serve

from sail_train.data import crc
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.fill import pack_lengths
from sail_train.data.interleave import budget_of, candidates, shard_lists

Run = Callable[[], Round]


def opened_anew(folder: str) -> None:
    """What we remember of a file, we remember as long as it stays the same: a run reads each index once an epoch."""
    for path in glob.glob(f"{folder}/*"):
        os.utime(path)


def reading(folder: str, samples: int, shuffle: int = 1, by_zlib: bool = False) -> Run:
    """All samples of one stream before they are measured, as dictionaries of bytes, with the state that is saved.

    The state is taken every 32 samples, as energon's is; a run takes it with every row.
    `by_zlib`: as if the extra "fast" were not installed.
    """
    if by_zlib:
        crc._crc32 = zlib.crc32
    source = SourceConfig(shards=f"{folder}/*.tar")
    config = DataConfig(sources={"made": source}, num_streams=1, shuffle_buffer=shuffle)

    def run() -> Round:
        opened_anew(folder)
        clock, size = Clock(), 0
        stream = candidates(config, shard_lists(config), seed=0, stream=0, ledger=budget_of(config).ledger())
        for number in range(samples):
            members = next(stream).raw.members
            size += sum(map(len, members.values()))
            if number % 32 == 0:
                stream.state()
        return clock.told(samples, bytes=size)

    return run


def stream_config(folder: str, seq_length: int, **options: Any) -> DataConfig:
    source = SourceConfig(shards=f"{folder}/*.tar")
    return DataConfig(sources={"made": source}, seq_length=seq_length, max_patches=8 * seq_length, **options)


def processor_of(tokenizer: str) -> Any:
    from sail_train.processor.config import ProcessorConfig
    from sail_train.processor.processor import build_processor

    # the limits of transformers' Qwen2VLImageProcessor, which is compared with
    limits = {"min_pixels": 56 * 56, "max_pixels": 28 * 28 * 1280}
    return build_processor(ProcessorConfig(tokenizer=tokenizer, image=limits))


def decoding(folder: str, tokenizer: str, seq_length: int, rows: int, workers: int) -> Run:
    """Steps of one row each, as the trainer gets them."""
    import torch

    from sail_train.data.stream import Stream

    torch.set_num_threads(1)
    config = stream_config(folder, seq_length, num_streams=max(1, workers), batch_rows=1, workers=workers)
    stream = Stream(config, processor_of(tokenizer), seed=0)

    def run() -> Round:
        for _ in range(WAITING):  # those that waited ready
            next(stream)
        clock, count, tokens = Clock(), 0, 0
        for _ in range(rows):
            (batch,) = next(stream).batches
            count, tokens = count + len(batch.keys), tokens + len(batch.input_ids)
        return clock.told(count, fill=tokens / rows / seq_length)

    return run


def packing(lengths: str, seq_length: int, max_patches: int, how: str, buffer: int, moves: bool = False) -> Run:
    """Samples into rows by their numbers; `moves`: their tokens are put together as well."""
    content = json.loads(Path(lengths).read_text())
    tokens, patches = [sum(sample) for sample in content["samples"]], content["patches"]
    config = DataConfig(seq_length=seq_length, max_patches=max_patches, pack_buffer=buffer, packing=how)
    ids = [np.ones(count, np.int64) for count in tokens] if moves else []

    def run() -> Round:
        clock = Clock()
        rows = pack_lengths(tokens, patches, config)
        made = [np.concatenate([ids[number] for number in row]) for row in rows] if moves else []
        told = clock.told(len(tokens), rows=len(rows))
        assert sorted(number for row in rows for number in row) == list(range(len(tokens))), "each once"
        assert len(made) in (0, len(rows))
        return {**told, "useful": sum(tokens) / (len(rows) * seq_length), "lost_tokens": 0}

    return run


def resume(folder: str, tokenizer: str, seq_length: int, shares: list[float], samples: int) -> Run:
    """Time from nothing but a saved position to the first step after it."""
    import torch

    from sail_train.data.stream import Stream

    torch.set_num_threads(1)
    config = stream_config(folder, seq_length, num_streams=2, batch_rows=2, prefetch=0)
    processor = processor_of(tokenizer)
    positions = list(_positions(Stream(config, processor, seed=0), shares, samples))
    turn = iter(list(zip(shares, positions, strict=True)) * 1000)

    def run() -> Round:
        opened_anew(folder)
        share, position = next(turn)
        clock = Clock()
        with Stream(config, processor, seed=0) as stream:
            stream.load_state(position)
            step = next(stream)
        return clock.told(sum(len(batch.keys) for batch in step.batches), place=share)

    return run


def _positions(stream: Any, shares: list[float], samples: int) -> Iterator[dict[str, Any]]:
    """Where the stream stands after each share of its samples, which are only measured on the way."""
    read = 0
    for share in shares:
        while read < share * samples:
            read += sum(len(stream.next_row().samples) for _ in range(2))
        yield json.loads(json.dumps(stream.positions))


if __name__ == "__main__":
    serve({task.__name__: task for task in (reading, decoding, packing, resume)})
