"""Which backend runs, and what is said about it."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sail_train.model import ATTENTION
from sail_train.model.attention import AUTO, BACKENDS, Packing, attend, choose, describe

CPU, CUDA, BF16 = torch.device("cpu"), torch.device("cuda"), torch.bfloat16


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes believe that there is a GPU of this capability, with or without flash-attn."""

    def pretend(capability: tuple[int, int] = (9, 0), *, flash: bool = True, varlen: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
        there = {"flash_attn": flash, "torch.nn.attention.varlen": varlen}
        spec = importlib.machinery.ModuleSpec("there", None)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, *_: spec if there[name] else None)

    return pretend


def test_every_backend_is_in_the_table_under_its_name() -> None:
    assert list(BACKENDS) == ["flash", "varlen", "flex", "sdpa", "eager"] == list(ATTENTION), "what the config knows"
    assert all(backend.name == name and backend.summary for name, backend in BACKENDS.items())
    assert BACKENDS[AUTO[-1]].refuses(CPU, torch.float64, 3) is None, "auto always ends somewhere"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, BF16])
def test_auto_on_a_cpu_is_sdpa(dtype: torch.dtype) -> None:
    assert choose("auto", CPU, dtype).name == "sdpa"


@pytest.mark.parametrize(
    ("machine", "dtype", "head_dim", "name"),
    [
        ({}, BF16, 128, "flash"),
        ({}, torch.float16, None, "flash"),
        ({"flash": False}, BF16, 128, "varlen"),
        ({"flash": False, "varlen": False}, BF16, 128, "sdpa"),
        ({}, torch.float32, 128, "sdpa"),
        ({"capability": (7, 5)}, BF16, 128, "sdpa"),
        ({"flash": False}, BF16, 12, "sdpa"),
        ({}, BF16, 320, "sdpa"),
    ],
)
def test_auto_on_a_gpu_is_the_best_there_is(
    gpu: Callable[..., None], machine: dict, dtype: torch.dtype, head_dim: int | None, name: str
) -> None:
    gpu(**machine)
    assert choose("auto", CUDA, dtype, head_dim).name == name


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match="attention='fast' must be one of auto, flash, varlen, flex, sdpa, eager"):
        choose("fast", CPU, torch.float32)


@pytest.mark.parametrize(
    ("name", "machine", "device", "dtype", "head_dim", "reason"),
    [
        ("flash", {"flash": False}, CUDA, BF16, 128, "flash-attn is not installed"),
        ("flash", {}, CUDA, BF16, 320, "heads of 256 at most, and head_dim is 320"),
        ("flash", {}, CPU, BF16, 128, "needs a GPU, and the tensors are on cpu"),
        ("varlen", {}, CPU, BF16, 128, "needs a GPU, and the tensors are on cpu"),
        ("varlen", {}, CUDA, torch.float32, 128, "needs bfloat16 or float16, and the tensors are float32"),
        ("varlen", {"capability": (7, 5)}, CUDA, BF16, 128, r"capability 8.0 \(an A100\) or newer, and .* \(7, 5\)"),
        ("varlen", {"varlen": False}, CUDA, BF16, 128, "has no torch.nn.attention.varlen"),
        ("varlen", {}, CUDA, BF16, 12, "multiples of 8 up to 256, and head_dim is 12"),
        ("flex", {}, CUDA, BF16, 8, "heads of 16 at least, and head_dim is 8"),
        ("flex", {}, torch.device("meta"), BF16, 8, "runs on cpu and cuda, and the tensors are on meta"),
    ],
)
def test_a_backend_that_cannot_run_says_why_and_which_can(
    gpu: Callable[..., None],
    name: str,
    machine: dict,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    reason: str,
) -> None:
    gpu(**machine)
    with pytest.raises(ValueError, match=f"attention={name} cannot run here: .*{reason}.*; use auto or .*sdpa, eager"):
        choose(name, device, dtype, head_dim)


def test_the_log_line_says_what_attends_and_why_nothing_better(gpu: Callable[..., None]) -> None:
    gpu(flash=False)
    line = describe("auto", CUDA, BF16)
    assert line.startswith("attention=varlen: torch's variable-length kernel; not flash: flash-attn is not installed")
    assert describe("sdpa", CPU, BF16) == f"attention=sdpa: {BACKENDS['sdpa'].summary}"
    assert "not flash:" in describe("auto", CPU, BF16) and "not varlen:" in describe("auto", CPU, BF16)


def test_attend_takes_the_backend_that_the_packing_names(
    make_packed: Callable[..., list[Tensor]], plan: Callable[..., Packing], monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = make_packed([3, 4])
    used = []
    for name in ("sdpa", "eager"):
        packing = plan([3, 4], backend=name)
        attend(*packed, packing, scale=1.0)
        used.append([key[0].__name__ for key in packing.layouts])
    assert used == [["_batches"], ["visible"]]
    with pytest.raises(ValueError, match="attention=varlen cannot run here"):
        attend(*packed, plan([3, 4], backend="varlen"), scale=1.0)
