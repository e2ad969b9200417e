"""What a user may set about the step: engine, optimizer, schedule, training loop, log. Pure values, no torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from sail_train.config import choice

PRECISIONS = ("fp32", "bf16")
SCHEDULES = ("cosine", "linear", "constant", "wsd")
LOSSES = ("token", "sample")
WANDB_MODES = ("off", "offline", "online")


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> None:
    choice(name, value, dict.fromkeys(choices))


def _share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name}={value} must be between 0 and 1")


def _at_least(name: str, value: float, least: float) -> None:
    if value < least:
        raise ValueError(f"{name}={value} must be at least {least}")


@dataclass(kw_only=True)
class EngineConfig:
    """How weights, gradients and moments are held."""

    zero_stage: int = 0
    """DeepSpeed ZeRO: 0 replicates all, 1 shards moments, 2 also gradients, 3 also weights."""
    precision: str = "fp32"
    """"fp32", or "bf16": bf16 weights with fp32 master weights, moments and gradient accumulation (ZeRO 1-3)."""
    gradient_clipping: float = 1.0
    """Largest global gradient norm; 0 does not clip."""
    activation_checkpointing: bool = False
    """Recompute activations in the backward: about a third more compute for far less memory."""
    max_bad_steps: int = 10
    """Steps in a row with a NaN or infinite loss or gradient after which training stops; each one is skipped."""
    offload_optimizer: bool = False
    """Moments and master weights in host memory (ZeRO 1-3); slower, for large models. Every micro batch must then use
    every trained parameter: DeepSpeed takes over only the gradients that the last one touches."""
    offload_weights: bool = False
    """Weights in host memory too (ZeRO 3 on a GPU)."""
    bucket_elements: int = 50_000_000
    """Gradient elements per collective: larger overlaps better and needs more memory."""
    timeout_minutes: float = 30.0
    """How long a rank waits for the others before it gives up."""

    def __post_init__(self) -> None:
        if self.zero_stage not in (0, 1, 2, 3):
            raise ValueError(f"engine.zero_stage={self.zero_stage} is unknown; use one of 0, 1, 2, 3")
        _one_of("engine.precision", self.precision, PRECISIONS)
        if self.zero_stage == 0 and self.precision == "bf16":
            raise ValueError(
                "engine.zero_stage=0 with engine.precision=bf16 trains wrongly in DeepSpeed (the optimizer is stepped"
                " with zero gradients); set engine.zero_stage=1, or engine.precision=fp32"
            )
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("engine.offload_optimizer=true needs engine.zero_stage of at least 1")
        if self.offload_weights and self.zero_stage != 3:
            raise ValueError(f"engine.offload_weights=true needs engine.zero_stage=3, not {self.zero_stage}")
        _at_least("engine.gradient_clipping", self.gradient_clipping, 0)
        _at_least("engine.max_bad_steps", self.max_bad_steps, 1)
        _at_least("engine.bucket_elements", self.bucket_elements, 1)
        if self.timeout_minutes <= 0:
            raise ValueError(f"engine.timeout_minutes={self.timeout_minutes} must be above 0")


@dataclass(kw_only=True)
class OptimConfig:
    """AdamW, one group of learning rate per part."""

    lr: dict[str, float]
    """Peak learning rate by part (vision, adapter, language); 0 or left out freezes the part."""
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    """Decay of the first and the second moment."""
    eps: float = 1e-8
    weight_decay: float = 0.0
    """Decoupled; on matrices only, never on norms, biases and other vectors."""

    def __post_init__(self) -> None:
        for part, lr in self.lr.items():
            _at_least(f"optim.lr.{part}", lr, 0)
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas={self.betas} must be two numbers from 0 to below 1")
        if self.eps <= 0:
            raise ValueError(f"optim.eps={self.eps} must be above 0")
        _at_least("optim.weight_decay", self.weight_decay, 0)


@dataclass(kw_only=True)
class ScheduleConfig:
    """Learning rate over the steps, as a factor of the peak: linear warmup, then `name`."""

    name: str = "cosine"
    """"cosine" or "linear" from 1 to min_ratio, "constant", "wsd" (constant, then linear decay at the end)."""
    warmup_steps: int = 0
    """Steps of warmup; set this or warmup_ratio."""
    warmup_ratio: float = 0.0
    """Warmup as a share of max_steps, rounded up."""
    min_ratio: float = 0.0
    """Factor that cosine, linear and wsd reach at max_steps."""
    decay_ratio: float = 0.1
    """Share of max_steps that decays at the end (wsd)."""

    def __post_init__(self) -> None:
        _one_of("schedule.name", self.name, SCHEDULES)
        _at_least("schedule.warmup_steps", self.warmup_steps, 0)
        _share("schedule.warmup_ratio", self.warmup_ratio)
        _share("schedule.min_ratio", self.min_ratio)
        _share("schedule.decay_ratio", self.decay_ratio)
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError(
                f"schedule.warmup_steps={self.warmup_steps} and schedule.warmup_ratio={self.warmup_ratio} are both"
                " set; set one of them to 0"
            )


@dataclass(kw_only=True)
class TrainConfig:
    """How long to train, and what happens every so many steps. 0 for an `_every` means never."""

    max_steps: int
    """Updates of this stage."""
    save_every: int = 500
    """Steps between checkpoints; the last step is always saved."""
    keep: int = 2
    """Checkpoints kept, newest first; at least 2, so that one that breaks has a predecessor."""
    valid_every: int = 0
    """Steps between validations; the best by validation loss is kept in best/."""
    log_every: int = 10
    """Steps between plain log lines; metrics.jsonl has every step."""
    loss: str = "token"
    """"token": summed loss over trained tokens of the step / their number; "sample": mean over samples of means."""

    def __post_init__(self) -> None:
        _at_least("train.max_steps", self.max_steps, 1)
        _at_least("train.save_every", self.save_every, 0)
        _at_least("train.keep", self.keep, 2)
        _at_least("train.valid_every", self.valid_every, 0)
        _at_least("train.log_every", self.log_every, 1)
        _one_of("train.loss", self.loss, LOSSES)


@dataclass(kw_only=True)
class LogConfig:
    """Where metrics go besides metrics.jsonl; a tracker that fails is switched off, training goes on."""

    wandb: str = "off"
    """"off", "offline" (files in the run directory) or "online" (key from the environment, WANDB_API_KEY)."""
    project: str = "sail_train"
    """wandb project."""
    tensorboard: bool = False
    """Event files in the run directory."""

    def __post_init__(self) -> None:
        _one_of("log.wandb", self.wandb, WANDB_MODES)
