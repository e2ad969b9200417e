#!/usr/bin/env python
"""Training steps of a model with random weights: tokens a second, memory, and MFU against the matmul peak measured.

    scripts/bench/step.py model=sail_vl2_2b --attention auto sdpa     on a GPU: bf16, ZeRO 1, rows of 8k tokens
    scripts/bench/step.py model=tiny --tokens 1024 --tile 84          anywhere

A row is packed from samples of one image and some text. The attention backends that are named take turns within one
run, so that a noisy machine is noisy to all of them; prints a markdown table, and their largest difference in
log-probs on one row.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass, field
from itertools import cycle

import torch

from sail_train import dist
from sail_train.cost import mfu
from sail_train.engine.config import EngineConfig, OptimConfig, ScheduleConfig
from sail_train.engine.deepspeed import TrainEngine
from sail_train.job.compose import Configs
from sail_train.job.model import compose_model
from sail_train.job.overrides import parse_tokens
from sail_train.loops.supervised import num_trained, token_loss
from sail_train.model.build import build_model
from sail_train.model.config import ModelConfig
from sail_train.model.flops import model_shape
from sail_train.model.names import PARTS, part_of
from sail_train.model.packed import PackedLM
from sail_train.types import IGNORE_INDEX, Batch

WARMUP = 3
TOKEN_IDS = {"image": 5, "eos": 6, "pad": 7}
ADDED = 8
"""Rows of the embedding that are no text."""


def main() -> None:
    options = parse()
    config = compose_model(Configs(), parse_tokens(options.tokens_of_config))
    dist.init(timeout_minutes=10)
    vocab = max(config.language.vocab_size or 0, 512)
    vlm = build_model(config, parents={}, seed=0, token_ids=TOKEN_IDS, vocab_size=vocab)
    torch.nn.Module.to(vlm, dist.device())
    module = PackedLM(vlm).train()
    engine = make_engine(module, options)
    rows = [batch(config, options, vocab, seed) for seed in range(4)]
    flops = statistics.mean(row_flops(config, vocab, row) for row in rows)
    peak = matmul_peak()
    times: dict[str, list[float]] = {name: [] for name in options.attention}
    memory = dict.fromkeys(options.attention, 0.0)
    for step, row in zip(range((WARMUP + options.steps) * len(times)), cycle(rows), strict=False):
        name = options.attention[step % len(times)]
        use_attention(module, name)
        seconds, peak_bytes = timed(engine, row)
        times[name] += [seconds] if step >= WARMUP * len(times) else []
        memory[name] = max(memory[name], peak_bytes)
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    said = " ".join(options.tokens_of_config)
    print(f"{said}, {engine_line(options)}, {where}; matmul peak {peak / 1e12:.2f} TFLOP/s")
    print()
    print("| attention | ms a step | tokens/s | TFLOP/s | MFU of the measured peak | peak memory, GiB |")
    print("|---|---|---|---|---|---|")
    for name, seconds in times.items():
        middle = statistics.median(seconds)
        print(
            f"| {name} | {middle * 1e3:.0f} | {options.tokens / middle:.0f} | {flops / middle / 1e12:.2f} |"
            f" {100 * mfu(flops, middle, num_devices=1, peak=peak):.1f}% | {memory[name] / 2**30:.1f} |"
        )
    print(f"\nlargest difference of a log-prob from {options.attention[0]}'s: {differences(module, rows[0], options)}")


@dataclass
class Options:
    tokens_of_config: list[str]
    attention: list[str]
    tokens: int
    tile: int
    text: int
    steps: int
    zero: int
    fp32: bool
    freeze: list[str] = field(default_factory=list)
    checkpointing: bool = False


def parse() -> Options:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokens_of_config", nargs="+", metavar="model=NAME", help="and overrides of model.")
    parser.add_argument("--attention", nargs="+", default=["auto"])
    parser.add_argument("--tokens", type=int, default=8192, help="of a packed row")
    parser.add_argument("--tile", type=int, default=448, help="side of each sample's image in pixels")
    parser.add_argument("--text", type=int, default=96, help="text tokens of each sample, all trained")
    parser.add_argument("--steps", type=int, default=10, help="measured, after the warm-up, for each backend")
    parser.add_argument("--zero", type=int, default=1)
    parser.add_argument("--fp32", action="store_true")
    parser.add_argument("--freeze", nargs="*", default=[], choices=list(PARTS))
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    return Options(**vars(parser.parse_intermixed_args()))


def use_attention(module: PackedLM, name: str) -> None:
    module.vlm.config.attention = name
    if hasattr(module.vlm.vision, "attention"):  # an encoder of transformers has its own
        module.vlm.vision.attention = name


def engine_line(options: Options) -> str:
    return f"ZeRO {options.zero} {'fp32' if options.fp32 else 'bf16'}, {options.tokens} tokens a step"


def make_engine(module: PackedLM, options: Options) -> TrainEngine:
    parts: dict[str, list[tuple[str, torch.nn.Parameter]]] = {part: [] for part in PARTS}
    for name, parameter in module.named_parameters():
        parts[part_of(name)].append((name, parameter))
    return TrainEngine(
        module,
        parts=parts,
        optim=OptimConfig(lr={part: 1e-5 for part in PARTS if part not in options.freeze}),
        schedule=ScheduleConfig(),
        engine=EngineConfig(
            zero_stage=options.zero,
            precision="fp32" if options.fp32 else "bf16",
            activation_checkpointing=options.checkpointing,
        ),
        max_steps=1000,
        accumulation=1,
    )


def batch(config: ModelConfig, options: Options, vocab: int, seed: int) -> Batch:
    """A row of exactly `--tokens` tokens: samples of one image and text, the last one text alone."""
    generator = torch.Generator().manual_seed(seed)
    spec = config.image_spec
    grids = spec.grids(options.tile, options.tile)
    image = spec.tokens_of(grids)
    ids, labels, positions, lengths, shown = [], [], [], [], 0
    left = options.tokens
    while left:
        pictured = image if left >= image + options.text else 0
        length = pictured + min(options.text, left - pictured)
        text = torch.randint(ADDED, vocab, (length - pictured,), generator=generator)
        ids.append(torch.cat((torch.full((pictured,), TOKEN_IDS["image"]), text)))
        labels.append(torch.cat((torch.full((pictured,), IGNORE_INDEX), text)))
        positions.append(torch.arange(length))
        lengths.append(length)
        shown += bool(pictured)
        left -= length
    all_grids = torch.tensor(grids * shown, dtype=torch.int64).reshape(-1, 2)
    count = int(all_grids.prod(-1).sum())
    made = Batch(
        input_ids=torch.cat(ids),
        labels=torch.cat(labels),
        position_ids=torch.cat(positions),
        cu_seqlens=torch.tensor([0, *lengths]).cumsum(0).to(torch.int32),
        patches=torch.randint(0, 256, (count, spec.patch_dim), dtype=torch.uint8, generator=generator),
        grids=all_grids,
        sources=("bench",) * len(lengths),
        keys=tuple(map(str, range(len(lengths)))),
    )
    return made.to(dist.device())


def row_flops(config: ModelConfig, vocab: int, row: Batch) -> float:
    shape = model_shape(config, vocab_size=vocab)
    patches = row.grids.prod(-1).tolist()
    return shape.train_flops(row.cu_seqlens.diff().tolist(), patches, num_trained=num_trained(row))


def timed(engine: TrainEngine, row: Batch) -> tuple[float, float]:
    """(seconds, peak bytes) of one step."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    begin = time.perf_counter()
    engine.step([row], token_loss, float(num_trained(row)))
    if cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - begin, float(torch.cuda.max_memory_allocated()) if cuda else 0.0


def matmul_peak() -> float:
    """FLOP/s of the largest square matmul that fits a moment, in the precision that trains there."""
    cuda = torch.cuda.is_available()
    side, dtype = (8192, torch.bfloat16) if cuda else (1024, torch.float32)
    left, right = (torch.randn(side, side, device=dist.device(), dtype=dtype) for _ in range(2))
    best = 0.0
    for _ in range(5):
        begin = time.perf_counter()
        for _ in range(10):
            left @ right
        if cuda:
            torch.cuda.synchronize()
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - begin))
    return best


@torch.no_grad()
def differences(module: PackedLM, row: Batch, options: Options) -> dict[str, float]:
    """Largest absolute difference of the row's log-probs between the first backend and each other."""
    found: dict[str, torch.Tensor] = {}
    for name in options.attention:
        use_attention(module, name)
        found[name], _ = module(row.input_ids, row.labels, row.position_ids, row.cu_seqlens, row.patches, row.grids)
    first = found[options.attention[0]]
    return {name: float((values - first).abs().max()) for name, values in found.items()}


if __name__ == "__main__":
    main()
