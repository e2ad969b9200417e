"""Checksums are zlib's, whichever library computes them."""

from __future__ import annotations

import random
import sys
import zlib

import pytest

from sail_train.data import crc


def test_they_are_zlibs_in_one_piece_and_in_several() -> None:
    content = random.Random(0).randbytes(100_001)
    assert crc.crc32(content) == zlib.crc32(content)
    assert crc.crc32(memoryview(content)[7:], crc.crc32(content[:7])) == zlib.crc32(content)
    assert crc.crc32(b"") == zlib.crc32(b"") == 0


def test_without_the_extra_zlib_computes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "isal", None)
    monkeypatch.setitem(sys.modules, "isal.isal_zlib", None)
    assert crc._fastest() is zlib.crc32
