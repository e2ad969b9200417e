"""The images of one sample, found by its key in the shards that a run's config names.

Evaluations keep the images that the page shows; rollouts are too many for that, so a few of theirs are looked up.
Data that has moved or is large is not searched for long: a picture less is better than a report that never comes.
"""

from __future__ import annotations

from typing import Any

from sail_train.data.listing import expand
from sail_train.data.shard_file import ShardFile
from sail_train.data.tar import IMAGES, check_member, members, split_name
from sail_train.report.reading import mapping, shard_patterns
from sail_train.types import BadSample

MAX_SHARDS = 32
"""Shards of a source whose headers are read in search of a key."""


def find_images(config: dict[str, Any], source: str, key: str) -> list[bytes]:
    """Image files of sample `key` of a training source, in order; empty if it is not found."""
    patterns = shard_patterns(mapping(mapping(config.get("data")).get("sources")).get(source))
    try:
        paths = expand(source, patterns)[:MAX_SHARDS]
    except ValueError:
        return []
    for path in paths:
        try:
            images = _in_shard(path, source, key)
        except (OSError, BadSample):
            continue
        if images:
            return images
    return []


def _in_shard(path: str, source: str, key: str) -> list[bytes]:
    file = ShardFile(path, source=source)
    found: dict[str, bytes] = {}
    for member in members(file.read, 0, file.size()):
        name, extension = split_name(member.name)
        if name == key and extension.rpartition(".")[2] in IMAGES and check_member(member, extension) is None:
            found[extension] = file.read(member.data, member.size)
        elif found and name != key:
            break
    file.close()
    return [data for _, data in sorted(found.items(), key=lambda item: _order(item[0]))]


def _order(extension: str) -> int:
    """ "0.png" before "10.png"; a single "png" has no number."""
    number = extension.partition(".")[0]
    return int(number) if number.isdigit() else 0
