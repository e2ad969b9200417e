"""What the sample loop draws from a model and what of it is kept."""

from __future__ import annotations

from dataclasses import dataclass

from sail_train.types import THINK_MODES


@dataclass(kw_only=True)
class SampleConfig:
    """The `sample` section of a run: rejection sampling, and pass rates as a measure of difficulty."""

    prompts: int = 1024
    """Prompts drawn from `data.sources`, in the stream's order, rounded up to equal rounds of whole turns of the
    streams; each is asked `n` times."""
    n: int = 4
    """Answers per prompt, at least 2; the pass rate is the right ones among them."""
    temperature: float = 1.0
    max_new_tokens: int = 256
    think: str = "on"
    """"on", "off" or "auto"."""
    keep_per_prompt: int = 1
    """Right, well-formed and different answers kept of one prompt, the shortest first."""
    min_pass_rate: float = 0.0
    """Prompts that pass no more often than this are left out (DAPO and SAIL: 0)."""
    max_pass_rate: float = 1.0
    """Prompts that pass more often than this are left out (Seed: 0.75)."""
    samples_per_shard: int = 500

    def __post_init__(self) -> None:
        if self.think not in THINK_MODES:
            raise ValueError(f"sample.think={self.think!r} must be one of {', '.join(THINK_MODES)}")
        for name in ("prompts", "max_new_tokens", "keep_per_prompt", "samples_per_shard"):
            if vars(self)[name] < 1:
                raise ValueError(f"sample.{name}={vars(self)[name]} must be at least 1")
        if self.n < 2:
            raise ValueError(f"sample.n={self.n} must be at least 2: one answer gives no pass rate")
        if self.temperature <= 0:
            raise ValueError(f"sample.temperature={self.temperature} must be above 0: greedy answers are all the same")
        if not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1:
            raise ValueError(
                f"sample.min_pass_rate={self.min_pass_rate} and sample.max_pass_rate={self.max_pass_rate} must be "
                "shares, the first no larger than the second"
            )
