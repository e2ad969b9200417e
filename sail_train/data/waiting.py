"""Samples that waited in a buffer when a position was saved, read again by seeking to each.

`WaitingSamples.expect` says which: each of their shards is opened once, and what is remote is fetched in few
requests; then `reread` gives them one by one. One that is lost stops the run, or is written down and left out where
the source's `on_bad_shard` says so.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

from sail_train.data import tar
from sail_train.data.candidate import Candidate
from sail_train.data.config import SourceConfig
from sail_train.data.quarantine import Ledger
from sail_train.data.shard_file import ShardFile, UnreadableShard
from sail_train.types import BadSample

log = logging.getLogger(__name__)

CHANGED = "the data is not what it was when the checkpoint was saved:"


class _Spoilt(Exception):
    """A sample that was good when a position was saved, and is not now."""

    def __init__(self, key: str, problem: BadSample) -> None:
        super().__init__(str(problem))
        self.key, self.problem = key, problem


class WaitingSamples:
    """Those of one stream and one source."""

    def __init__(
        self, name: str, shards: Sequence[str], *, source: SourceConfig, index_dir: str | None, ledger: Ledger
    ) -> None:
        self.name = name
        self._shards = shards
        self._source = source
        self._index_dir = index_dir
        self._ledger = ledger
        self._unread: dict[int, Exception] = {}
        """By number, shards that no sample could be read again of."""
        self._open: dict[int, tuple[ShardFile, tar.Index]] = {}
        """By number, shards of samples that are to be read again."""

    def forget(self) -> None:
        """Lets go of what is open: what waited was read again, or is of another position."""
        self._unread, self._open = {}, {}

    def expect(self, places: Sequence[Sequence[Any]]) -> None:
        """Opens each shard of samples that are to be read again once, and fetches them if it is remote."""
        offsets: dict[int, list[int]] = {}
        for _, shard, offset, _, _ in places:
            offsets.setdefault(shard, []).append(offset)
        for shard, wanted in sorted(offsets.items()):
            try:
                file, index = self._open[shard] = self._opened(shard)
                numbers = [bisect_left(index.starts, offset) for offset in wanted]
                # what is not there is found out, and told, when it is read
                known = [number for number in numbers if number < len(index) and number not in index.bad]
                file.expect([index.span(number) for number in known if index.starts[number] in wanted])
            except (OSError, UnreadableShard) as error:
                self._unread[shard] = error

    def reread(self, place: Sequence[Any], *, counted: bool = False) -> Candidate | None:
        """The sample that `Candidate.place` describes, by seeking to it; None, and a record, for one that is lost.

        Args:
            counted: whether the ledger has it as read.

        Raises:
            ValueError: there is another sample, or none; or this one is lost and `on_bad_shard` is "stop".
        """
        _, shard, offset, _, _ = place
        try:
            if shard in self._unread:
                raise self._unread[shard]
            return self._read(place)
        except (OSError, UnreadableShard) as error:
            self._unread[shard] = error
            self.lose(place, "", BadSample("shard_unreadable", f"byte {offset}: {error}"), counted=counted)
        except _Spoilt as error:
            self.lose(place, error.key, error.problem, counted=counted)
        return None

    def lose(self, place: Sequence[Any], key: str, error: BadSample, *, counted: bool) -> None:
        """Writes down a sample that waited when the position was saved and cannot be used now; ValueError where
        that is to stop the run."""
        name = ShardFile(self._shards[place[1]], source=self.name).name
        if self._source.on_bad_shard == "stop":
            raise ValueError(
                f"{CHANGED} source {self.name!r}, shard {name!r}: the sample {key!r} at byte {place[2]} waited then "
                f"and cannot be read now ({error}); restore the shard, or go on without its samples with "
                f"data.sources.{self.name}.on_bad_shard=skip"
            ) from error
        log.warning("source %s: a waiting sample of %s, byte %d, is left out (%s)", self.name, name, place[2], error)
        (self._ledger.spoilt if counted else self._ledger.bad)(self.name, name, key, error)

    def _read(self, place: Sequence[Any]) -> Candidate:
        _, shard, offset, epoch, size = place
        file, index = self._open.get(shard) or self._opened(shard)
        number = bisect_left(index.starts, offset)
        found = number < len(index) and index.starts[number] == offset
        if found and number in index.bad:
            raise _Spoilt(*index.bad[number])
        if not found or (size and index.span(number)[1] - offset != size):
            if index.damage is not None:
                raise _Spoilt("", index.damage)
            raise ValueError(f"{CHANGED} source {self.name!r}, shard {file.name!r}: no sample at byte {offset}")
        try:
            return Candidate(raw=file.sample(index, number, ahead=False), shard=shard, epoch=epoch, size=size)
        except BadSample as error:
            raise _Spoilt(index.key(number), error) from error

    def _opened(self, shard: int) -> tuple[ShardFile, tar.Index]:
        file = ShardFile(self._shards[shard], source=self.name)
        return file, file.index(self._index_dir, self._source.filter, ahead=False)
