"""One rank's logical streams, taken in turn: item r of the run comes from stream r mod S and is rank (r mod world)'s.

Also what makes a position: the state of every stream, and the settings that fix the order of the run, so that a
position is refused where those have changed.
"""

from __future__ import annotations

import hashlib
import io
import logging
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from PIL import Image

from sail_train import dist
from sail_train.data.config import DataConfig
from sail_train.data.dataset import dataset_size
from sail_train.data.listing import ShardList, expand, matches, names_hash
from sail_train.data.mix import Mix, Mixture
from sail_train.data.quarantine import Budget, Ledger
from sail_train.data.shards import SourceReader
from sail_train.data.shuffle import Shuffle
from sail_train.types import Conversation, Message, Part

if TYPE_CHECKING:
    from sail_train.processor.processor import SailVLProcessor

Item = TypeVar("Item", covariant=True)

log = logging.getLogger(__name__)

SETTINGS = "settings"
"""Key of a position beside the streams' numbers."""
MIX, SOURCES = "mix.", "sources."
"""Beginnings of the settings of a source that may change when asked, and of those that may not."""


class LogicalStream(Protocol[Item]):
    """Items whose order does not depend on ranks, until its sources are exhausted."""

    @property
    def ledger(self) -> Ledger: ...

    def __next__(self) -> Item: ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: Mapping[str, Any]) -> None: ...


class Interleave(Iterator[tuple[int, Item]], Generic[Item]):
    """(number in the run, item) of some of the run's streams, in the order of those numbers, until one of the
    streams has no more."""

    def __init__(
        self,
        streams: Mapping[int, LogicalStream[Item]],
        settings: Mapping[str, Any],
        *,
        num_streams: int,
        allow_mix_change: bool = False,
    ) -> None:
        """`streams` by number, of `num_streams` in the whole run: those of a rank, or of one of its workers."""
        self._streams = streams
        self._settings = dict(settings)
        self._num_streams = num_streams
        self._allow_mix_change = allow_mix_change
        self.changes: list[str] = []
        """What a resumed run does otherwise than before, as it was asked to (`data.allow_mix_change`)."""
        self._order = sorted(streams)
        self._taken = dict.fromkeys(streams, 0)
        self._states = {number: stream.state() for number, stream in streams.items()}

    def __next__(self) -> tuple[int, Item]:
        # whatever share of the streams this is, its n-th item is from the n-th of them, over and over
        number = self._order[sum(self._taken.values()) % len(self._order)]
        index = self._taken[number] * self._num_streams + number
        self._streams[number].ledger.row = index
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
        self.check(positions)
        for number, stream in self._streams.items():
            stream.ledger.load_state(positions[str(number)])  # of all, before one of them is judged
        for number, stream in self._streams.items():
            state = positions[str(number)]
            stream.load_state(state)
            self._taken[number] = state["taken"]
            # a sample that cannot be read again leaves the position with its record, which rides on the next item
            self._states[number] = {name: value for name, value in state.items() if name != "taken"}

    def check(self, positions: Mapping[str, Any]) -> None:
        """ValueError where `load_state` would refuse the positions."""
        self._check_settings(positions.get(SETTINGS, {}))
        missing = [number for number in self._streams if str(number) not in positions]
        if missing:
            raise ValueError(f"no position for streams {missing}; give the positions of all ranks together")

    def _check_settings(self, saved: Mapping[str, Any]) -> None:
        changed = {
            name: f"{name} was {saved.get(name)!r} and is {self._settings.get(name)!r}"
            for name in sorted({*saved, *self._settings})
            if saved.get(name) != self._settings.get(name)
        }
        asked = {name for name in changed if self._allow_mix_change and _is_mix_change(name, saved, self._settings)}
        refused = [text for name, text in changed.items() if name not in asked]
        if refused:
            raise ValueError(
                "the order of the samples cannot be continued: "
                + "; ".join(refused)
                + "; restore these, or begin a new run from the model"
                + _remedy(changed)
            )
        self.changes = [changed[name] for name in sorted(asked)]
        for change in self.changes:
            log.warning("the mixture goes on changed: %s", change)


def _is_mix_change(name: str, saved: Mapping[str, Any], settings: Mapping[str, Any]) -> bool:
    """Of the mixture, or a source that is new: its reader begins at its beginning."""
    return name.startswith(MIX) or (name.startswith(SOURCES) and name not in saved and name in settings)


def _remedy(changed: Mapping[str, str]) -> str:
    if not any(name.startswith(MIX) for name in changed):
        return ""
    return (
        "; weights, limits, steps and further sources may change with data.allow_mix_change=true (a source that is "
        "to end gets a stop_step)"
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


def shard_lists(config: DataConfig) -> dict[str, ShardList]:
    """The shards of every source that has a weight; ValueError if there is none.

    In a run of several ranks rank 0 lists the folders for all.
    """
    shards = {
        name: expand(name, source.patterns, list_folder=_listed_once, skip_missing=source.on_bad_shard == "skip")
        for name, source in config.sources.items()
        if source.weight > 0
    }
    if not shards:
        names = ", ".join(config.sources) or "none are given"
        raise ValueError(f"data.sources: no source has a weight above 0 (sources: {names})")
    return shards


def _listed_once(source: str, pattern: str) -> list[str]:
    """`matches`, by rank 0 where this process is one of a group (a worker of a rank is not)."""
    if dist.world_size() == 1 or "torch" not in sys.modules:
        return matches(source, pattern)
    import torch

    if not torch.distributed.is_initialized():
        return matches(source, pattern)
    names, failure = None, None
    if dist.is_main():
        try:
            names = matches(source, pattern)
        except (ValueError, OSError) as error:  # told on every rank, or the others would wait
            failure = str(error)
    names, failure = dist.broadcast_json([names, failure])
    if failure is not None:
        raise ValueError(failure)
    return names


def mixture(config: DataConfig, shards: Mapping[str, ShardList]) -> Mixture:
    """What was asked for: weights, with the sources' sizes under `data.temperature`; steps and budgets.

    Raises:
        ValueError: a size that nothing tells, or a gap between the steps of the sources.
    """
    weights = {name: config.sources[name].weight for name in shards}
    if config.temperature is not None:
        sizes = {name: config.sources[name].size or dataset_size(name, shards[name]) for name in shards}
        weights = {name: weight * sizes[name] ** (1 / config.temperature) for name, weight in weights.items()}
    return Mixture.of(config, weights)


def candidates(
    config: DataConfig,
    shards: Mapping[str, ShardList],
    *,
    seed: int,
    stream: int,
    ledger: Ledger,
    asked: Mixture | None = None,
) -> Shuffle:
    """shards -> mix -> shuffle of one stream. `asked` saves working out the mixture for each of many streams."""
    readers = {
        name: SourceReader(
            name,
            paths,
            seed=seed,
            stream=stream,
            num_streams=config.num_streams,
            ledger=ledger,
            source=config.sources[name],
            index_dir=config.index_dir,
        )
        for name, paths in shards.items()
    }
    mix = Mix(readers, asked or mixture(config, shards), seed=seed, stream=stream, ledger=ledger)
    return Shuffle(mix, config.shuffle_buffer, seed=seed, stream=stream)


def budget_of(config: DataConfig) -> Budget:
    return Budget(config.sources, max_in_a_row=config.max_bad_in_a_row)


def order_settings(
    config: DataConfig, shards: Mapping[str, ShardList], processor: SailVLProcessor, *, seed: int
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
        settings[f"{SOURCES}{name}"] = (
            f"{len(paths)} shards {names_hash(paths)}, format={source.format}, think_flag={source.think_flag:g}, "
            f"max_tiles={source.max_tiles}, fps={_number(source.fps)}, filter={source.filter}"
        )
        settings[f"{MIX}{name}"] = (
            f"weight={source.weight:g}, size={source.size}, epochs={_number(source.epochs)}, "
            f"max_tokens={source.max_tokens}, steps {source.start_step} to {source.stop_step}"
        )
    settings[f"{MIX}temperature"] = config.temperature
    if any(config.sources[name].start_step or config.sources[name].stop_step is not None for name in shards):
        settings[f"{MIX}batch_rows"] = config.batch_rows  # it says which row is of which step
    return settings


def _number(value: float | None) -> float | None:
    """In one spelling: 2 and 2.0 ask for the same."""
    return None if value is None else float(value)


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
