"""What many samples are like, from their headers alone, and which of them share a row.

`survey` measures samples of several sources in turn; `packed_rows` asks the stream that training reads for its first
rows, with the same mixing, shuffling and packing.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sail_train.config import to_dataclass
from sail_train.data.config import DataConfig, SourceConfig
from sail_train.data.listing import expand
from sail_train.data.tools.seen import Read, measured_samples, pixel_size
from sail_train.types import BadSample

if TYPE_CHECKING:
    from sail_train.cost import ModelShape
    from sail_train.processor.processor import SailVLProcessor

_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


@dataclass(kw_only=True)
class Measured:
    """The numbers of one good sample."""

    source: str
    tokens: int
    trained: int
    patches: int
    sides: tuple[float, ...]
    """Of each image or video as it is stored: the side of a square of the same area, in pixels."""
    cost: float
    """Forward FLOPs, or tokens + patches where the model's shapes are not known."""


@dataclass(kw_only=True)
class Survey:
    """Of all samples looked at."""

    samples: list[Measured] = field(default_factory=list)
    bad: Counter[str] = field(default_factory=Counter)
    """By reason."""
    cost_unit: str = "tokens + patches"


@dataclass(frozen=True, kw_only=True)
class PackedSample:
    """A sample's share of a row."""

    key: str
    source: str
    tokens: int
    patches: int


def named_sources(arguments: Sequence[str]) -> dict[str, list[str]]:
    """Patterns by source: NAME=PATTERN, or a pattern, whose source is called as its folder.

    Raises:
        ValueError: a pattern that names no shard.
    """
    sources: dict[str, list[str]] = {}
    for argument in arguments:
        match = _NAMED.fullmatch(argument)
        name, pattern = (match[1], match[2]) if match else ("", argument)
        first = expand(name or "inspect", [pattern])[0]
        sources.setdefault(name or Path(first).resolve().parent.name, []).append(pattern)
    return sources


def in_turn(
    sources: Mapping[str, list[str]], processor: SailVLProcessor, config: SourceConfig
) -> Iterator[tuple[str, Read]]:
    """(source, sample), one of each source after the other, until all are through."""
    readers = {name: measured_samples(patterns, processor, config, name) for name, patterns in sources.items()}
    while readers:
        for name in list(readers):
            found = next(readers[name], None)
            if found is None:
                del readers[name]
            else:
                yield name, found


def survey(found: Iterator[tuple[str, Read]], shape: ModelShape | None) -> Survey:
    """The numbers of the samples."""
    result = Survey(cost_unit="tokens + patches" if shape is None else "FLOP, forward")
    for source, (_, _, read) in found:
        if isinstance(read, BadSample):
            result.bad[read.reason] += 1
            continue
        _, encoded = read
        pictures = [rows * cols for rows, cols in encoded.grids]
        flops = shape and shape.forward_flops([encoded.num_tokens], pictures, num_trained=encoded.num_trained)
        result.samples.append(
            Measured(
                source=source,
                tokens=encoded.num_tokens,
                trained=encoded.num_trained,
                patches=encoded.num_patches,
                sides=tuple((height * width) ** 0.5 for height, width in map(pixel_size, encoded.visuals)),
                cost=sum(flops.values()) if flops else float(encoded.num_tokens + encoded.num_patches),
            )
        )
    return result


def packed_rows(
    sources: Mapping[str, list[str]],
    processor: SailVLProcessor,
    config: SourceConfig,
    *,
    rows: int,
    seq_length: int,
    max_patches: int,
) -> list[list[PackedSample]]:
    """The first rows of the sources, mixed alike.

    Raises:
        TooManyBadSamples: a thousand samples in a row that do not fit, or are bad.
        ValueError: a source without a sample.
    """
    from sail_train.data.stream import Stream

    whole = 1_000_000_000  # here bad samples are shown, not judged
    mixed = {
        name: SourceConfig(shards=patterns, format=config.format, max_tiles=config.max_tiles, fps=config.fps,
                           max_bad=whole)
        for name, patterns in sources.items()
    }  # fmt: skip
    data = DataConfig(
        sources=mixed,
        num_streams=1,
        batch_rows=1,
        prefetch=0,
        max_bad_in_a_row=1000,
        seq_length=seq_length,
        max_patches=max_patches,
    )
    with Stream(data, processor, seed=0) as stream:
        return [
            [
                PackedSample(key=each.key, source=each.source, tokens=each.num_tokens, patches=each.num_patches)
                for each in stream.next_row().samples
            ]
            for _ in range(rows)
        ]


def shape_of(folder: Path, vocab_size: int) -> ModelShape | None:
    """The shapes of the model in a folder, or in its `model/`; None if it holds none of ours."""
    from sail_train.model.config import AdapterConfig, LanguageConfig, ModelConfig, VisionConfig
    from sail_train.model.flops import model_shape

    for path in (folder / "config.json", folder / "model" / "config.json"):
        try:
            values = json.loads(path.read_bytes())
            adapter = {"merge_size": values["merge_size"], "reduction": values["reduction"]}
            config = ModelConfig(
                vision=_part(VisionConfig, values["vision_config"]),
                adapter=AdapterConfig(**adapter, hidden_size=values["adapter_hidden_size"]),
                language=_part(LanguageConfig, values["text_config"]),
            )
            return model_shape(config, vocab_size=vocab_size)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _part(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """A part's config of what config.json says of it."""
    known = {each.name for each in fields(kind)}
    return to_dataclass(kind, {name: value for name, value in values.items() if name in known and value is not None})


def first(count: int, found: Iterator[tuple[str, Read]]) -> list[tuple[str, Read]]:
    """The first samples, in turn."""
    return list(itertools.islice(found, count))
