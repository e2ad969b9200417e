"""The files of one sample, cut out of the bytes of its span in a shard.

Nearly every header is plain: of a regular file with a short name in which nothing is strange. Samples of such headers
are taken apart at a glance; whatever looks otherwise, or wrong, goes the long way through `tar.members`, which knows
all kinds of headers and says what is wrong.
"""

from __future__ import annotations

import functools
import re
import struct
from collections.abc import Mapping

from sail_train.data.tar import (
    BLOCK,
    DIRECTORY,
    MAX_MEMBER_BYTES,
    READ,
    Member,
    check_member,
    members,
    split_name,
    sum_fits,
)
from sail_train.types import BadSample

_FIELDS = struct.Struct("100s 24x 12s 20x c 188x c 166x")
"""Of a header: name, size, type flag, and the first byte of the prefix."""
_PLAIN_NAME = re.compile(rb"([\w-]+(?:/[\w-]+)*)\.([\w.]+)\0*")
"""Key and extension of a name that climbs nowhere."""
_PLAIN_SIZE = re.compile(rb"([0-7]{11})[\0 ]")
_PLAIN_KIND = [b"0", b"\0"]
"""Type flag and beginning of the prefix of a regular file whose name fits."""


def read_sample(block: memoryview, *, indexed: bool) -> tuple[str, dict[str, bytes]]:
    """A sample's key, and its files by extension, out of the bytes of its span.

    Args:
        indexed: the span comes from an index file, and the bytes have the checksum that it gives. A stranger may have
            written both, so that what `tar.index` would have refused is refused here. Otherwise `tar.index` found the
            span, and the shard may have changed since: sums of headers are compared.

    Raises:
        BadSample: what is there is no sample.
    """
    return _at_a_glance(block, sums=not indexed) or _member_by_member(block, check=indexed)


def _at_a_glance(block: memoryview, *, sums: bool) -> tuple[str, dict[str, bytes]] | None:
    """The sample, if all its headers are plain and nothing is wrong with it."""
    key, files, offset, end = b"", dict[str, bytes](), 0, len(block)
    while offset + BLOCK <= end:
        name, digits, *kind = _FIELDS.unpack_from(block, offset)
        known, size = _PLAIN_NAME.fullmatch(name), _PLAIN_SIZE.fullmatch(digits)
        if known is None or size is None or kind != _PLAIN_KIND:
            return None
        stem, extension = known[1], _extension(known[2])
        data, length = offset + BLOCK, int(size[1], 8)
        offset = data + -(-length // BLOCK) * BLOCK
        good = extension and extension not in files and (stem == key or not files) and length <= MAX_MEMBER_BYTES
        if not good or offset > end or (sums and not sum_fits(bytes(block[data - BLOCK : data]))):
            return None
        key, files[extension] = stem, bytes(block[data : data + length])
    return (key.decode("ascii"), files) if files and offset == end else None


@functools.lru_cache(maxsize=1024)
def _extension(name: bytes) -> str:
    """In lower case, of a file that is ever read; empty for others."""
    extension = name.decode("ascii").lower()
    return extension if extension.rpartition(".")[2] in READ else ""


def _member_by_member(block: memoryview, *, check: bool) -> tuple[str, dict[str, bytes]]:
    key = ""
    files: dict[str, bytes] = {}
    for member in members(lambda offset, length: bytes(block[offset : offset + length]), 0, len(block)):
        if member.kind == DIRECTORY:
            continue
        name, extension = split_name(member.name)
        if check:
            _check(member, name, extension, key if files else name, files, len(block))
        key = name
        files[extension] = bytes(block[member.data : member.data + member.size])
    if check and not files:
        raise BadSample("corrupt_shard", "no file where the index has a sample")
    return key, files


def _check(member: Member, name: str, extension: str, key: str, files: Mapping[str, bytes], length: int) -> None:
    problem = check_member(member, extension)
    if problem is not None:
        raise problem
    if name != key or member.end > length:
        raise BadSample("corrupt_shard", f"{member.name!r} is not where the index has its sample's end")
    if extension in files:
        raise BadSample("duplicate_file", f"{member.name!r} is in its sample twice")
