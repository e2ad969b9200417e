"""Reading held-out sources once, in the order of their shards, whole or what their `filter` leaves: for evaluation."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping

from sail_train.data.config import SourceConfig
from sail_train.data.listing import expand
from sail_train.data.measure import check_headers, parsers
from sail_train.data.shard_file import ShardFile
from sail_train.types import BadSample, Conversation

log = logging.getLogger(__name__)


def held_out(sources: Mapping[str, SourceConfig], limit: int | None = None) -> list[Conversation]:
    """The first `limit` conversations of each source (all of them for None), source by source.

    A bad sample is logged and left out.

    Raises:
        ValueError: a source that names no data or holds no good sample, or more bad ones than its `max_bad` allows;
            a damaged shard, unless `on_bad_shard` is "skip".
    """
    conversations: list[Conversation] = []
    for name, source in sources.items():
        found = list(itertools.islice(_conversations(name, source), limit))
        if not found and limit != 0:
            raise ValueError(f"source {name!r}: shards={source.shards!r} holds no sample that can be used")
        conversations.extend(found)
    return conversations


def _conversations(name: str, source: SourceConfig) -> Iterator[Conversation]:
    parse = parsers({name: source})[name]
    paths = expand(name, source.patterns)
    read, bad = 0, 0
    for path in paths:
        file = ShardFile(path, source=name)
        index = file.index(conditions=source.filter)
        if index.damage is not None and source.on_bad_shard == "stop":
            raise ValueError(
                f"held-out source {name!r}: shard {file.name!r} is damaged ({index.damage}); copy it again, or measure "
                "what is left of it with on_bad_shard=skip"
            )
        for place in range(len(index)):
            # weights are for training: whatever is not left out altogether is measured once
            if index.shows is not None and not index.shows[place]:
                continue
            read += 1
            try:
                conversation = parse(file.sample(index, place))
                check_headers(conversation)
            except BadSample as error:
                bad += 1
                log.warning("held-out source %s: %s, sample %d: %s", name, file.name, place, error)
                continue
            yield conversation
        file.close()
    allowed = source.max_bad if source.max_bad >= 1 else source.max_bad * read
    if bad > allowed:
        raise ValueError(f"held-out source {name!r}: {bad} of {read} samples are bad, more than max_bad allows")
