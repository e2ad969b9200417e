#!/usr/bin/env python
"""The attention backends that run here, against each other in one run: milliseconds of a layer, and errors.

    scripts/bench/attention.py                                    on a GPU in bf16 if there is one, else CPU in fp32
    scripts/bench/attention.py --tokens 8192 --rounds 20 --only varlen sdpa

Three packed sequences: samples of a language model (causal, grouped heads), tiles of one size, and images of native
resolution (both without causality). Backends take turns, the order moving on by one each round, so that whatever
else the machine does falls on all of them; times are medians with the quartiles' distance behind. The first call is
told apart: it plans batches, builds masks and compiles. Errors are the largest difference from the yardstick
(`eager`, segment by segment, in float64), as a share of the yardstick's largest value.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sail_train.model.attention import BACKENDS, Packing, attend, describe

EAGER_TOKENS = 4096
"""Longest sequence at which the yardstick itself is timed: it holds heads x tokens x tokens scores."""


@dataclass(frozen=True, kw_only=True)
class Case:
    name: str
    lengths: tuple[int, ...]
    causal: bool
    heads: int
    kv_heads: int
    head_dim: int


@dataclass(kw_only=True)
class Entry:
    """One backend on one case."""

    backend: str
    trains: bool
    first: float
    forward: list[float]
    both: list[float]
    error: float
    gradient_error: float | None


def cases(tokens: int, small: bool) -> list[Case]:
    shares = (0.31, 0.02, 0.17, 0.06, 0.22, 0.01, 0.13, 0.08)
    ragged = tuple(max(1, int(tokens * share)) for share in shares)
    shapes = ((8, 2, 64), (4, 4, 64)) if small else ((16, 8, 128), (16, 16, 64))
    tile = 256 if small else 1024
    tiles = (tile,) * max(1, tokens // tile)
    of_language, of_vision = (dict(zip(("heads", "kv_heads", "head_dim"), each, strict=True)) for each in shapes)
    return [
        Case(name="samples", lengths=ragged, causal=True, **of_language),
        Case(name="tiles", lengths=tiles, causal=False, **of_vision),
        Case(name="images", lengths=ragged, causal=False, **of_vision),
    ]


def inputs(case: Case, device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    """Query, key, value and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    heads = (case.heads, case.kv_heads, case.kv_heads, case.heads)
    drawn = [torch.randn(sum(case.lengths), each, case.head_dim, generator=generator) for each in heads]
    return [each.to(device, dtype) for each in drawn]


def exact(case: Case, tensors: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(T, heads, head_dim) output and gradient of the query, by the yardstick in float64."""
    outputs, gradients = [], []
    for q, k, v, upstream in zip(*(each.double().split(case.lengths) for each in tensors), strict=True):
        q = q.requires_grad_()
        packing = Packing.plan([len(q)], causal=case.causal, device=q.device, backend="eager")
        output = attend(q, k, v, packing, scale=case.head_dim**-0.5)
        outputs.append(output.detach())
        gradients.append(torch.autograd.grad(output, q, upstream)[0])
    return torch.cat(outputs), torch.cat(gradients)


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1e3 * (time.perf_counter() - started)


def measure(case: Case, backends: Sequence[str], rounds: int, device: torch.device, dtype: torch.dtype) -> list[Entry]:
    tensors = inputs(case, device, dtype)
    *packed, upstream = tensors
    leaves = [each.clone().requires_grad_() for each in packed]
    scale = case.head_dim**-0.5
    planned = {
        name: Packing.plan(case.lengths, causal=case.causal, device=device, backend=name) for name in backends
    }  # fmt: skip

    def forward(name: str) -> Tensor:
        with torch.no_grad():
            return attend(*packed, planned[name], scale=scale)

    def both(name: str) -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(*leaves, planned[name], scale=scale), leaves, upstream)

    output, gradient = exact(case, tensors)
    entries = []
    for name in backends:
        trains = not (name == "flex" and device.type == "cpu")
        entry = Entry(
            backend=name, trains=trains, first=timed(lambda name=name: forward(name), device), forward=[], both=[],
            error=share(forward(name), output), gradient_error=share(both(name)[0], gradient) if trains else None,
        )  # fmt: skip
        entries.append(entry)
    for turn in range(rounds):
        start = turn % len(entries)
        for entry in entries[start:] + entries[:start]:
            entry.forward.append(timed(lambda name=entry.backend: forward(name), device))
            if entry.trains:
                entry.both.append(timed(lambda name=entry.backend: both(name), device))
    return entries


def share(found: Tensor, true: Tensor) -> float:
    return float((found.double() - true).abs().max() / true.abs().max())


def cell(times: Sequence[float]) -> str:
    if not times:
        return "none"
    low, middle, high = statistics.quantiles(times, n=4) if len(times) > 1 else [times[0]] * 3
    return f"{middle:.2f} ± {high - low:.2f}"


def table(case: Case, entries: Sequence[Entry]) -> str:
    kind = "causal" if case.causal else "not causal"
    lines = [
        f"{case.name}: {sum(case.lengths)} tokens in {len(case.lengths)} segments of {min(case.lengths)} to "
        f"{max(case.lengths)}, {kind}, {case.heads} heads on {case.kv_heads}, head_dim {case.head_dim}",
        "",
        "| backend | first call, ms | forward, ms | forward and backward, ms | error | error of the gradient |",
        "|---|---|---|---|---|---|",
    ]
    for each in entries:
        gradient = "none" if each.gradient_error is None else f"{each.gradient_error:.1e}"
        lines.append(
            f"| {each.backend} | {each.first:.0f} | {cell(each.forward)} | {cell(each.both)} | {each.error:.1e} "
            f"| {gradient} |"
        )
    return "\n".join([*lines, ""])


def main() -> None:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument("--dtype", default=None, choices=["float32", "bfloat16", "float16"])
    parser.add_argument("--tokens", type=int, default=None, help="of each sequence; 2048 on a CPU, 16384 on a GPU")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--only", nargs="+", default=list(BACKENDS), choices=list(BACKENDS), metavar="BACKEND")
    args = parser.parse_args()
    device = torch.device(args.device)
    gpu = device.type == "cuda"
    dtype = getattr(torch, args.dtype or ("bfloat16" if gpu else "float32"))
    tokens = args.tokens or (16384 if gpu else 2048)
    name = torch.cuda.get_device_name(device) if gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"torch {torch.__version__}, {name}, {str(dtype).removeprefix('torch.')}")
    print(describe("auto", device, dtype), end="\n\n")
    for case in cases(tokens, small=not gpu):
        reasons = {each: BACKENDS[each].refuses(device, dtype, case.head_dim) for each in args.only}
        if tokens > EAGER_TOKENS and "eager" in reasons:
            reasons["eager"] = f"left out above {EAGER_TOKENS} tokens"
        print(table(case, measure(case, [each for each, no in reasons.items() if not no], args.rounds, device, dtype)))
        print("\n".join(f"{each}: {no}" for each, no in reasons.items() if no), end="\n\n")


if __name__ == "__main__":
    main()
