"""Pictures for the tests of the import, and `records_made` importable."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def pictures(tmp_path: Path, make: SimpleNamespace) -> Path:
    (tmp_path / "sub").mkdir()
    for number, name in enumerate(["a.png", "sub/b.png"]):
        (tmp_path / name).write_bytes(make.image(number))
    return tmp_path
