from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sail_train.engine import gather, memory
from sail_train.engine.memory import check_fits, free_bytes, gather_bytes


def parameter(elements: int, *, status: str = "NOT_AVAILABLE", width: int = 2) -> SimpleNamespace:
    """What a ZeRO 3 parameter says of itself."""
    return SimpleNamespace(ds_numel=elements, ds_status=SimpleNamespace(name=status), element_size=lambda: width)


def test_a_cpu_has_no_memory_of_its_own() -> None:
    assert free_bytes(torch.device("cpu")) is None


def test_what_torch_has_cached_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 5000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 120)
    assert free_bytes(torch.device("cuda")) == 1180


def test_only_what_is_not_at_hand_is_gathered() -> None:
    parts = [parameter(1000), parameter(10, status="AVAILABLE"), parameter(7, width=4)]
    assert gather_bytes(parts) == 2028


def test_too_little_memory_names_both_figures_and_the_remedy() -> None:
    check_fits(62_000_000_000, None, what="weights", remedy="-")  # a CPU
    check_fits(62_000_000_000, 62_000_000_000, what="weights", remedy="-")
    with pytest.raises(ValueError, match=r"weights: 62\.0 GB on every rank, but a device has 40\.5 GB free; buy more"):
        check_fits(62_000_000_000, 40_500_000_000, what="weights", remedy="buy more")


def test_the_rank_with_the_least_memory_decides_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.dist, "gather_objects", lambda free: [free, 10])
    with pytest.raises(ValueError, match="free"):
        check_fits(50, 100, what="weights", remedy="-")


def test_gathering_is_refused_before_anything_is_allocated(monkeypatch: pytest.MonkeyPatch) -> None:
    module = torch.nn.Linear(2, 2)
    with gather.gathered(module):  # whole as it is, whatever is free
        pass
    shared = SimpleNamespace(parameters=lambda: [SimpleNamespace(ds_id=0, **vars(parameter(500)))])
    monkeypatch.setattr(memory, "free_bytes", lambda device: 999)
    refused = pytest.raises(ValueError, match=r"gather all weights.*take devices with more memory or a smaller model")
    with refused, gather.gathered(shared):  # type: ignore[arg-type]
        pass
