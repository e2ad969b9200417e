"""The tiny model that speaks, made once, and servers of it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from serve_tiny import Served, make_speaker, serving  # noqa: E402


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speaker(tmp_path_factory.mktemp("speaker"))


@pytest.fixture(scope="session")
def served(folder: Path) -> Iterator[Served]:
    """A server that tests share; they leave it as they found it."""
    with serving(folder) as running:
        yield running


@pytest.fixture
def serve(folder: Path) -> Iterator[Callable[..., Served]]:
    """Servers of a test's own."""
    with ExitStack() as stack:
        yield lambda **options: stack.enter_context(serving(folder, **options))
