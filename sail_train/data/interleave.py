"""One rank's logical streams, taken in turn: item r of the run comes from stream r mod S and is rank (r mod world)'s.

Also what makes a position: the state of every stream, and the settings that fix the order of the run, so that a
position is refused where those have changed.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from PIL import Image

from sail_train.data.config import DataConfig
from sail_train.data.mix import Mix
from sail_train.data.quarantine import Budget, Ledger
from sail_train.data.shards import SourceReader, expand
from sail_train.data.shuffle import Shuffle
from sail_train.types import Conversation, Message, Part

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

Item = TypeVar("Item", covariant=True)

SETTINGS = "settings"
"""Key of a position beside the streams' numbers."""


class LogicalStream(Protocol[Item]):
    """Endless items whose order does not depend on ranks."""

    def __next__(self) -> Item: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...


class Interleave(Iterator[tuple[int, Item]], Generic[Item]):
    """(number in the run, item) of one rank, for ever."""

    def __init__(
        self, streams: Mapping[int, LogicalStream[Item]], settings: Mapping[str, Any], *, rank: int, world: int
    ) -> None:
        self._streams = streams
        self._settings = dict(settings)
        self._rank = rank
        self._world = world
        self._num_streams = len(streams) * world
        self._taken = dict.fromkeys(streams, 0)
        self._states = {number: stream.state() for number, stream in streams.items()}

    def __next__(self) -> tuple[int, Item]:
        index = self._rank + self._world * sum(self._taken.values())
        number = index % self._num_streams
        item = next(self._streams[number])
        self._taken[number] += 1
        self._states[number] = self._streams[number].state()
        return index, item

    def positions(self) -> dict[str, Any]:
        """JSON: where each of this rank's streams stands; those of all ranks together make the run's."""
        return {SETTINGS: self._settings, **{str(number): self.position(number) for number in self._streams}}

    def position(self, number: int) -> dict[str, Any]:
        """JSON: where one stream stands."""
        return {"taken": self._taken[number], **self._states[number]}

    def refresh(self, number: int, state: Mapping[str, Any]) -> None:
        """Replaces parts of the state of a stream that changed after its last item."""
        self._states[number] = {**self._states[number], **state}

    def load_state(self, positions: Mapping[str, Any]) -> None:
        """Continues after `positions`, which may hold other ranks' streams too.

        Raises:
            ValueError: a stream of this rank is missing, or the settings that fix the order have changed.
        """
        self._check_settings(positions.get(SETTINGS, {}))
        missing = [number for number in self._streams if str(number) not in positions]
        if missing:
            raise ValueError(f"no position for streams {missing}; give the positions of all ranks together")
        for number, stream in self._streams.items():
            state = positions[str(number)]
            stream.load_state(state)
            self._taken[number] = state["taken"]
            self._states[number] = stream.state()

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        changed = [
            f"{name} was {saved.get(name)!r} and is {self._settings.get(name)!r}"
            for name in sorted({*saved, *self._settings})
            if saved.get(name) != self._settings.get(name)
        ]
        if changed:
            raise ValueError(
                "the order of the samples cannot be continued: "
                + "; ".join(changed)
                + "; restore these, or begin a new run from the model"
            )


def check_ranks(config: DataConfig, *, rank: int, world: int, rows: bool) -> None:
    """ValueError where `world` ranks cannot share the streams (and, with `rows`, the rows of a batch) equally."""
    assert 0 <= rank < world, (rank, world)

    def fits(ranks: int) -> bool:
        return config.num_streams % ranks == 0 and not (rows and config.batch_rows % (ranks * config.micro_batch))

    if not fits(world):
        counts = ", ".join(str(ranks) for ranks in range(1, config.num_streams + 1) if fits(ranks))
        batch = f" and batch_rows={config.batch_rows} by ranks x micro_batch={config.micro_batch}" if rows else ""
        raise ValueError(
            f"{world} ranks cannot share num_streams={config.num_streams}{batch} equally; "
            f"numbers of ranks that fit: {counts}"
        )


def shard_lists(config: DataConfig) -> dict[str, list[str]]:
    """The shards of every source that has a weight; ValueError if there is none."""
    shards = {name: expand(name, source.patterns) for name, source in config.sources.items() if source.weight > 0}
    if not shards:
        names = ", ".join(config.sources) or "none are given"
        raise ValueError(f"data.sources: no source has a weight above 0 (sources: {names})")
    return shards


def candidates(
    config: DataConfig, shards: Mapping[str, Sequence[str]], *, seed: int, stream: int, ledger: Ledger
) -> Shuffle:
    """shards -> mix -> shuffle of one stream."""
    readers = {
        name: SourceReader(name, paths, seed=seed, stream=stream, num_streams=config.num_streams, ledger=ledger)
        for name, paths in shards.items()
    }
    weights = {name: config.sources[name].weight for name in shards}
    mix = Mix(readers, weights, seed=seed, stream=stream)
    return Shuffle(mix, config.shuffle_buffer, seed=seed, stream=stream)


def budget_of(config: DataConfig) -> Budget:
    return Budget(config.sources, max_in_a_row=config.max_bad_in_a_row)


def order_settings(
    config: DataConfig, shards: Mapping[str, Sequence[str]], processor: SailVLProcessor, *, seed: int
) -> dict[str, Any]:
    """JSON: all that the order of the run is a function of."""
    settings: dict[str, Any] = {
        "seed": seed,
        "num_streams": config.num_streams,
        "seq_length": config.seq_length,
        "max_patches": config.max_patches,
        "shuffle_buffer": config.shuffle_buffer,
        "pack_buffer": config.pack_buffer,
        "processor": _processor_hash(processor),
    }
    for name, paths in sorted(shards.items()):
        source = config.sources[name]
        settings[f"sources.{name}"] = (
            f"{len(paths)} shards {_files_hash(paths)}, weight={source.weight:g}, format={source.format}, "
            f"think_flag={source.think_flag:g}, max_tiles={source.max_tiles}, fps={source.fps}"
        )
    return settings


def _files_hash(paths: Sequence[str]) -> str:
    """Of the files' names and sizes: the same data in another folder is the same."""
    described = "\n".join(f"{os.path.basename(path)} {os.path.getsize(path)}" for path in paths)
    return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()


def _processor_hash(processor: SailVLProcessor) -> str:
    """Of what it makes of some sizes and of one conversation: tokenizer, chat style and limits all show in it."""
    file = io.BytesIO()
    Image.new("RGB", (30, 20)).save(file, "PNG")
    question = (Part(type="image"), Part(type="text", text="How many apples (1, 2 or 10)? Ümläute count, too."))
    answer = (Part(type="text", text="<think>\nTwo and two.\n</think>\n\nThere are \\boxed{4} apples."),)
    messages = (Message(role="user", content=question), Message(role="assistant", content=answer))
    probe = Conversation(key="", source="", messages=messages, images=(file.getvalue(),))
    encoded = processor.encode(probe, flag=True)
    grids = [processor.image_spec.grids(*size) for size in ((480, 640), (20, 30), (3000, 4000))]
    specs = (processor.template, processor.image_spec, processor.video_spec)
    described = repr((encoded.input_ids.tolist(), encoded.labels.tolist(), encoded.grids, grids, specs))
    return hashlib.blake2b(described.encode(), digest_size=8).hexdigest()
