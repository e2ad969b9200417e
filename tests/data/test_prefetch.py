from __future__ import annotations

import threading
import time

import pytest

from sail_train.data.prefetch import Prefetch


def test_items_come_in_order_and_no_more_are_built_than_asked() -> None:
    built: list[int] = []

    def build() -> int:
        built.append(len(built))
        return built[-1]

    ahead = Prefetch(build, 2)
    assert [next(ahead) for _ in range(10)] == list(range(10))
    time.sleep(0.05)
    assert len(built) <= 12
    ahead.close()
    time.sleep(0.02)
    assert len(built) <= 12 and not [thread for thread in threading.enumerate() if thread.name == "data-prefetch"]


def test_the_next_item_is_built_while_the_current_one_is_used() -> None:
    started = threading.Semaphore(0)
    ahead = Prefetch(lambda: started.release(), 1)
    next(ahead)
    assert started.acquire(timeout=5) and started.acquire(timeout=5)
    ahead.close()


def test_what_the_thread_raises_surfaces_in_its_place_and_again() -> None:
    built: list[int] = []

    def build() -> int:
        built.append(1)
        if len(built) == 3:
            raise OSError("disk gone")
        return len(built)

    ahead = Prefetch(build, 5)
    assert [next(ahead), next(ahead)] == [1, 2]
    for _ in range(2):
        with pytest.raises(OSError, match="disk gone"):
            next(ahead)
    ahead.close()


def test_closing_twice_and_while_full_returns() -> None:
    ahead = Prefetch(lambda: 1, 1)
    time.sleep(0.02)
    ahead.close()
    started = time.monotonic()
    ahead.close()
    assert time.monotonic() - started < 5  # returns at once; a hang would be for ever
