"""A model of three parts with a few hundred parameters, its batches, its loss, and engines around it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from sail_train import dist
from sail_train.engine.config import EngineConfig, OptimConfig, ScheduleConfig
from sail_train.engine.deepspeed import StepResult, TrainEngine
from sail_train.engine.fragments import KINDS
from sail_train.types import IGNORE_INDEX, Batch

VOCAB, HIDDEN, PATCH = 11, 8, 6
FP32 = [(0, "fp32"), (1, "fp32"), (2, "fp32"), (3, "fp32")]
MODES = [*FP32, (1, "bf16"), (2, "bf16"), (3, "bf16")]
"""Every ZeRO stage and precision that may be combined."""
CLIP = 0.8
"""Some steps' gradients are larger, some smaller."""


class Vlm(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.checkpointed = False
        self.vision = torch.nn.Linear(PATCH, HIDDEN)
        self.adapter = torch.nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.language_model = torch.nn.Sequential(
            torch.nn.Embedding(VOCAB, HIDDEN), torch.nn.Linear(HIDDEN, 16), torch.nn.Tanh(), torch.nn.Linear(16, VOCAB)
        )
        self.register_buffer("steps_seen", torch.zeros(1))

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, bool]) -> None:
        assert gradient_checkpointing_kwargs == {"use_reentrant": False}
        self.checkpointed = True

    def forward(self, batch: Batch, images: bool = True) -> torch.Tensor:
        """Log-probs of the trained tokens, (N,)."""
        hidden = self.language_model[0](batch.input_ids)  # (T, H)
        if images:
            hidden = hidden + self.adapter(self.vision(batch.patches.to(self.vision.weight.dtype)))
        keep = batch.labels != IGNORE_INDEX
        if self.checkpointed:
            logits = torch.utils.checkpoint.checkpoint(self.language_model[1:], hidden[keep], use_reentrant=False)
        else:
            logits = self.language_model[1:](hidden[keep])  # (N, V)
        return logits.float().log_softmax(-1).gather(1, batch.labels[keep][:, None])[:, 0]


class Packed(torch.nn.Module):
    """As PackedLM: the module that the loss calls."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.vlm = Vlm()

    def forward(self, batch: Batch, images: bool = True) -> torch.Tensor:
        return self.vlm(batch, images)


def parts_of(module: torch.nn.Module) -> dict[str, list[tuple[str, torch.nn.Parameter]]]:
    parts: dict[str, list[tuple[str, torch.nn.Parameter]]] = {"vision": [], "adapter": [], "language": []}
    for name, parameter in module.named_parameters():
        parts[name.removeprefix("vlm.").split(".")[0].removesuffix("_model")].append((name, parameter))
    return parts


def loss(module: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
    summed = -module(batch).sum()
    count = float((batch.labels != IGNORE_INDEX).sum())
    return summed, {f"loss/{batch.sources[0]}": summed, f"loss/{batch.sources[0]}:count": count}


def make_batch(seed: int, *, trained: int = 5, tokens: int = 7, source: str = "text") -> Batch:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.full((tokens,), IGNORE_INDEX)
    labels[:trained] = torch.randint(VOCAB, (trained,), generator=generator)
    return Batch(
        input_ids=torch.randint(VOCAB, (tokens,), generator=generator),
        labels=labels,
        position_ids=torch.arange(tokens),
        cu_seqlens=torch.tensor([0, tokens], dtype=torch.int32),
        patches=torch.randint(4, (tokens, PATCH), generator=generator, dtype=torch.uint8),
        grids=torch.tensor([[1, tokens]]),
        sources=(source,),
        keys=(f"sample-{seed}",),
    )


def step_batches(step: int) -> list[Batch]:
    """The four micro batches of a step, with different numbers of trained tokens; the last has none."""
    return [
        make_batch(100 * step + index, trained=(7, 3, 1 + step % 4, 0)[index], source=("a", "b", "a", "c")[index])
        for index in range(4)
    ]


def mine(batches: Sequence[Batch]) -> list[Batch]:
    """This rank's share of a step: rank 0 the first ones, so that the last rank has the one without a target."""
    each = len(batches) // dist.world_size()
    return list(batches[dist.rank() * each : (dist.rank() + 1) * each])


def trained_tokens(batches: Sequence[Batch]) -> float:
    return float(sum(int((batch.labels != IGNORE_INDEX).sum()) for batch in batches))


def make_engine(
    zero_stage: int = 0,
    precision: str = "fp32",
    *,
    module: torch.nn.Module | None = None,
    lr: dict[str, float] | None = None,
    weight_decay: float = 0.1,
    max_steps: int = 10,
    accumulation: int | None = None,
    **engine: float,
) -> TrainEngine:
    module = Packed() if module is None else module
    return TrainEngine(
        module,
        parts=parts_of(module),
        optim=OptimConfig(lr=lr or {"vision": 1e-3, "adapter": 1e-2, "language": 3e-3}, weight_decay=weight_decay),
        schedule=ScheduleConfig(warmup_steps=2),
        engine=EngineConfig(
            zero_stage=zero_stage, precision=precision, timeout_minutes=1, **{"gradient_clipping": CLIP, **engine}
        ),
        max_steps=max_steps,
        accumulation=accumulation or 4 // dist.world_size(),
    )


def run_step(engine: TrainEngine, step: int, spoil: Callable | None = None) -> StepResult:
    batches = step_batches(step)
    return engine.step(mine(batches), spoil or loss, trained_tokens(batches))


def run_steps(engine: TrainEngine, first: int, last: int) -> list[StepResult]:
    return [run_step(engine, step) for step in range(first, last)]


def weights_of(engine: TrainEngine) -> dict[str, torch.Tensor]:
    """Whole weights on every rank."""
    with engine.unsharded() as module:
        return {name: p.detach().float().clone() for name, p in module.named_parameters()}


def save(engine: TrainEngine, directory: Path) -> None:
    """What a checkpoint does, without its commit."""
    directory.mkdir(parents=True, exist_ok=True)
    engine.save(directory)
    dist.barrier()


def bits(engine: TrainEngine) -> str:
    """A digest of every bit on this rank that training depends on: weights as computed with, fp32 weights, moments."""
    found = hashlib.sha256()
    for name, weight in weights_of(engine).items():
        found.update(name.encode() + weight.numpy().tobytes())
    for fragment in engine._fragments:  # not the owners whole: DeepSpeed leaves their padding as it found the memory
        for kind in KINDS:
            found.update(fragment.view(kind, engine._torch).numpy().tobytes())
        found.update(engine._torch.state[fragment.owner]["step"].numpy().tobytes())
    return found.hexdigest()


def digest_of_a_stage() -> str:
    """Of a short ZeRO 0 stage, of a random draw after it, and of what DeepSpeed might have replaced in torch."""
    torch.manual_seed(3)
    engine = make_engine(0)
    run_steps(engine, 0, 3)
    found = f"{bits(engine)} {float(torch.rand(()))} {torch.nn.functional.linear.__name__}"
    engine.close()
    return found


class _SpoiltGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: torch.Tensor, bad: float) -> torch.Tensor:
        ctx.bad = bad
        return values.clone()

    @staticmethod
    def backward(ctx: object, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        return grad * ctx.bad, None


def spoilt_loss(kind: str, bad: float, *, rank: int) -> Callable:
    """A loss callable that goes wrong on one rank only: in the loss's value, or in the gradient only."""

    def spoilt(module: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
        if dist.rank() != rank:
            return loss(module, batch)
        if kind == "loss":  # a constant: the gradient stays finite
            summed, sums = loss(module, batch)
            return summed + bad, sums
        logprobs = _SpoiltGradient.apply(module(batch), bad)
        return -logprobs.sum(), {}

    return spoilt


def reference(steps: int, *, clip: float = CLIP) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """Plain torch, one process, the whole batch at once: losses, gradient norms, final weights."""
    module, peak = Packed(), {"vision": 1e-3, "adapter": 1e-2, "language": 3e-3}
    groups = [
        {"params": [p for _, p in named if (p.ndim >= 2) == (decay > 0)], "weight_decay": decay, "part": part}
        for part, named in parts_of(module).items()
        for decay in (0.1, 0.0)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8)
    losses, norms = [], []
    for step in range(steps):
        factor = (step + 1) / 2 if step < 2 else (1 + math.cos(math.pi * (step - 2) / 8)) / 2
        for group in optimizer.param_groups:
            group["lr"] = peak[group["part"]] * factor
        batches = step_batches(step)
        mean = sum(loss(module, batch)[0] for batch in batches) / trained_tokens(batches)
        optimizer.zero_grad()
        mean.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(module.parameters(), clip)))
        losses.append(float(mean.detach()))
        optimizer.step()
    return losses, norms, {name: p.detach().clone() for name, p in module.named_parameters()}
