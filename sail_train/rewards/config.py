"""What a response is graded by: the weights of the reward's parts, the judge and the pool that verifies."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

PARTS = ("answer", "format", "think")
"""The parts of a reward: the verifier's verdict, the response's grammar, the judge's verdict on the thought."""


@dataclass(kw_only=True)
class JudgeConfig:
    """An OpenAI-compatible endpoint that grades thoughts; only asked when the part `think` has a weight."""

    url: str = ""
    """Base address, e.g. "http://127.0.0.1:8377/v1"; "embedded" starts the rule-based judge in this process."""
    model: str = "rules"
    """Name of the model in the request."""
    timeout: float = 30.0
    """Seconds that one request may take."""
    max_retries: int = 3
    """Further tries after a refused connection, a timeout, a 429 or a 5xx, with growing pauses."""
    backoff: float = 0.5
    """Seconds before the first retry; doubled each time."""
    concurrency: int = 8
    """Requests in flight at once."""
    max_chars: int = 20_000
    """Longest thought sent; the middle of a longer one is left out."""
    max_fail_rate: float = 0.1
    """Share of failed verdicts in one step above which the run stops; failed ones are masked, never zero."""
    api_key_env: str = ""
    """Name of the environment variable that holds the key; the key itself never stands in a config."""

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise ValueError(f"rewards.judge.timeout={self.timeout} must be above 0 seconds")
        if not 0 <= self.max_fail_rate <= 1:
            raise ValueError(f"rewards.judge.max_fail_rate={self.max_fail_rate} must be a share between 0 and 1")
        if self.max_retries < 0 or self.concurrency < 1:
            raise ValueError(
                f"rewards.judge.max_retries={self.max_retries} must be 0 or more and "
                f"rewards.judge.concurrency={self.concurrency} at least 1"
            )
        if self.api_key_env and not self.api_key_env.isidentifier():
            raise ValueError(
                "rewards.judge.api_key_env must be the NAME of an environment variable such as JUDGE_API_KEY; "
                "what is set does not look like one (put the key itself into the environment, never here)"
            )


@dataclass(kw_only=True)
class VerifierConfig:
    """How verifiers that run untrusted text are held."""

    workers: int = 1
    """Processes that parse mathematics; each is killed and replaced when it overruns."""
    timeout: float = 5.0
    """Seconds that one comparison may take before its process is killed."""
    box_iou: float = 0.5
    """Overlap from which the verifier `box` counts a box as right."""
    max_fail_rate: float = 0.1
    """Share of timeouts and errors in one step above which the run stops."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"rewards.verifier.workers={self.workers} must be at least 1")
        if self.timeout <= 0:
            raise ValueError(f"rewards.verifier.timeout={self.timeout} must be above 0 seconds")
        if not 0 < self.box_iou <= 1:
            raise ValueError(f"rewards.verifier.box_iou={self.box_iou} must be above 0 and at most 1")
        if not 0 <= self.max_fail_rate <= 1:
            raise ValueError(f"rewards.verifier.max_fail_rate={self.max_fail_rate} must be a share between 0 and 1")


def check_parts(name: str, parts: dict[str, float]) -> None:
    """Raise ValueError unless `parts` are known names with weights >= 0 that sum to 1."""
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"{name}: unknown part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    if any(weight < 0 for weight in parts.values()):
        raise ValueError(f"{name}={parts}: a weight is negative; set it to 0 to leave the part out")
    if not math.isclose(sum(parts.values()), 1.0, abs_tol=1e-6):
        raise ValueError(f"{name}={parts} sums to {sum(parts.values()):g}; the weights must sum to 1")


@dataclass(kw_only=True)
class RewardsConfig:
    parts: dict[str, float] = field(default_factory=lambda: {"answer": 0.9, "format": 0.1})
    """Weight of each part of the reward (answer, format, think); they sum to 1."""
    parts_by_source: dict[str, dict[str, float]] = field(default_factory=dict)
    """Other weights for the prompts of one source, complete: a part that is not named has weight 0."""
    format_gate: bool = False
    """A response with the wrong format gets 0 whatever its answer, and no judge is asked (Seed1.5-VL, GLM-4.1V)."""
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    verifier: VerifierConfig = field(default_factory=VerifierConfig)

    def __post_init__(self) -> None:
        check_parts("rewards.parts", self.parts)
        for source, parts in self.parts_by_source.items():
            check_parts(f"rewards.parts_by_source.{source}", parts)
        if self.uses_judge and not self.judge.url:
            raise ValueError(
                "rewards.judge.url is empty but the part 'think' has a weight; name an OpenAI-compatible endpoint, "
                "or 'embedded' for the rule-based judge of the tiny tasks"
            )

    @property
    def uses_judge(self) -> bool:
        return any(parts.get("think", 0) > 0 for parts in (self.parts, *self.parts_by_source.values()))

    def weights(self, source: str) -> dict[str, float]:
        """The weights above 0 for prompts of `source`."""
        parts = self.parts_by_source.get(source, self.parts)
        return {name: weight for name, weight in parts.items() if weight > 0}
