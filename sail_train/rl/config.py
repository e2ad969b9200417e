"""How a policy is improved: what is rolled out, which groups count, and the objective of an update."""

from __future__ import annotations

from dataclasses import dataclass, field

from sail_train.types import THINK_MODES

LOSS_AGG_MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
"""Denominators of the loss; the names are verl's."""


@dataclass(kw_only=True)
class PromptTypeConfig:
    """What prompts of one source do otherwise; None keeps the value of `rl`."""

    think: str | None = None
    """"on", "off" or "auto"."""
    group_size: int | None = None
    """Responses per prompt."""
    kl_coef: float | None = None
    """Weight of the penalty for leaving the reference policy."""

    def __post_init__(self) -> None:
        check_think("rl.by_source.*.think", "auto" if self.think is None else self.think)
        if self.group_size is not None and self.group_size < 2:
            raise ValueError(f"rl.by_source.*.group_size={self.group_size} must be at least 2")
        if self.kl_coef is not None and self.kl_coef < 0:
            raise ValueError(f"rl.by_source.*.kl_coef={self.kl_coef} must be 0 or more")


@dataclass(kw_only=True)
class DynamicSamplingConfig:
    """Keep only groups with a right and a wrong answer, and ask further prompts until the step is full (DAPO)."""

    enable: bool = True
    max_batches: int = 4
    """Batches of prompts generated for one step at most; after them the step runs with the groups it has."""

    def __post_init__(self) -> None:
        if self.max_batches < 1:
            raise ValueError(f"rl.dynamic_sampling.max_batches={self.max_batches} must be at least 1")


@dataclass(kw_only=True)
class OverlongConfig:
    """Soft penalty of long responses (DAPO): from 0 to -penalty over the last `buffer` tokens."""

    enable: bool = False
    buffer: int = 0
    """Tokens before max_new_tokens over which the penalty grows."""
    penalty: float = 1.0
    """What the longest response loses."""

    def __post_init__(self) -> None:
        if self.enable and self.buffer < 1:
            raise ValueError(f"rl.overlong.buffer={self.buffer} must be at least 1 with rl.overlong.enable set")
        if self.penalty < 0:
            raise ValueError(f"rl.overlong.penalty={self.penalty} must be 0 or more")


@dataclass(kw_only=True)
class ParityConfig:
    """The gate that compares the engine's log-probs with the trainer's, and stops the run on drift."""

    every: int = 20
    """Rollout batches between two checks, the first one included; 0 never checks."""
    probes: int = 4
    """Responses of the rollout batch that are compared."""
    tolerance: float = 1e-3
    """Largest mean absolute difference of log-probs (fp32 embedded: 1e-5; a bf16 engine of its own: 2e-2)."""

    def __post_init__(self) -> None:
        if self.every < 0 or self.probes < 1 or self.tolerance <= 0:
            raise ValueError(
                f"rl.parity.every={self.every} must be 0 or more, probes={self.probes} at least 1 and "
                f"tolerance={self.tolerance} above 0"
            )


@dataclass(kw_only=True)
class RLConfig:
    prompts_per_step: int = 64
    """Prompts (groups) of one rollout batch, over all ranks."""
    group_size: int = 8
    """Responses per prompt."""
    mini_batches: int = 1
    """Updates per pass over one rollout batch; whole groups are dealt to them."""
    epochs: int = 1
    """Passes over one rollout batch."""
    temperature: float = 1.0
    """Of sampling and of the log-probs that are trained; top-p and top-k stay off in RL."""
    max_new_tokens: int = 256
    """Longest response in tokens."""
    think: str = "auto"
    """Whether prompts ask for a thought: "on", "off" or "auto"."""
    force_think: bool = False
    """Also write the opening of the thought (or the empty one) into the prompt; it is not trained."""
    by_source: dict[str, PromptTypeConfig] = field(default_factory=dict)
    """What prompts of one source do otherwise."""
    engine: str = "embedded"
    """Name in sail_train.rl.rollout.ENGINES."""
    max_batch: int = 256
    """Responses decoded at once per rank."""
    advantage: str = "grpo"
    """Name in sail_train.rl.advantage.ADVANTAGES: grpo, dr_grpo, rloo."""
    objective: str = "dapo"
    """Name in sail_train.rl.objectives.OBJECTIVES: dapo, gspo, cispo."""
    clip_ratio_low: float | None = None
    """Ratios below 1 - this are clipped; None takes the objective's own (dapo 0.2, gspo 3e-4, cispo 1)."""
    clip_ratio_high: float | None = None
    """Ratios above 1 + this are clipped; None takes the objective's own (dapo 0.28, gspo 4e-4, cispo 4)."""
    clip_ratio_c: float | None = None
    """Cap on the ratio where the advantage is negative (dual clip, dapo only); None takes 3, 0 switches it off."""
    loss_agg_mode: str | None = None
    """One of LOSS_AGG_MODES; None takes the objective's own (token-mean; gspo seq-mean-token-mean)."""
    kl_coef: float = 0.0
    """Weight of k3 against the reference policy (the weights the run started from); 0 keeps no reference."""
    entropy: bool = True
    """Log the policy's entropy at every update."""
    dynamic_sampling: DynamicSamplingConfig = field(default_factory=DynamicSamplingConfig)
    overlong: OverlongConfig = field(default_factory=OverlongConfig)
    mask_truncated: bool = False
    """Leave responses without an end token out of the loss (they still count in their group's statistics)."""
    blank_images: bool = False
    """The blind control: every image is replaced by mid-grey in rollouts and in training."""
    micro_batch_tokens: int = 8192
    """Tokens of one micro batch at most, prompts included; a longer sequence gets one of its own."""
    parity: ParityConfig = field(default_factory=ParityConfig)

    def __post_init__(self) -> None:
        check_think("rl.think", self.think)
        self._check_counts()
        if self.temperature <= 0:
            raise ValueError(f"rl.temperature={self.temperature} must be above 0: greedy groups have no variance")
        if self.loss_agg_mode is not None and self.loss_agg_mode not in LOSS_AGG_MODES:
            raise ValueError(f"rl.loss_agg_mode={self.loss_agg_mode!r} must be one of {', '.join(LOSS_AGG_MODES)}")
        if self.kl_coef < 0:
            raise ValueError(f"rl.kl_coef={self.kl_coef} must be 0 or more")
        if self.overlong.enable and self.overlong.buffer > self.max_new_tokens:
            raise ValueError(
                f"rl.overlong.buffer={self.overlong.buffer} exceeds rl.max_new_tokens={self.max_new_tokens}; lower it"
            )

    def _check_counts(self) -> None:
        for name in ("prompts_per_step", "mini_batches", "epochs", "max_new_tokens", "max_batch", "micro_batch_tokens"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"rl.{name}={value} must be at least 1")
        if self.group_size < 2:
            raise ValueError(f"rl.group_size={self.group_size} must be at least 2: an advantage compares responses")
        if self.mini_batches > self.prompts_per_step:
            raise ValueError(
                f"rl.mini_batches={self.mini_batches} exceeds rl.prompts_per_step={self.prompts_per_step}; "
                "a mini batch holds whole groups"
            )

    @property
    def needs_reference(self) -> bool:
        return self.kl_coef > 0 or any((kind.kl_coef or 0) > 0 for kind in self.by_source.values())

    def prompt_type(self, source: str) -> PromptTypeConfig:
        """Think mode, group size and KL weight of the prompts of `source`, all filled in."""
        own = self.by_source.get(source, PromptTypeConfig())
        return PromptTypeConfig(
            think=self.think if own.think is None else own.think,
            group_size=self.group_size if own.group_size is None else own.group_size,
            kl_coef=self.kl_coef if own.kl_coef is None else own.kl_coef,
        )


def check_think(name: str, value: str) -> None:
    if value not in THINK_MODES:
        raise ValueError(f"{name}={value!r} must be one of {', '.join(THINK_MODES)}")
