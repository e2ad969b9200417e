"""What is evaluated: suites (held-out sources), the modes each is asked in, and how much of it.

A suite is declared once for the whole project (`configs/data`); a stage chooses from them with
`eval.modes`, so that a suite means the same prompts after every stage and results can be paired.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sail_train.config import choice


@dataclass(frozen=True, kw_only=True)
class Mode:
    """One way to ask: what the prompt says about thinking, and how the answer is drawn."""

    think: str
    """"on", "off" or "auto", as in `SailVLProcessor.encode_prompt`."""
    temperature: float
    """0 is greedy."""
    force: bool = False
    """Whether the answer's opening is written for the model (the hard switch), not only asked for."""


MODES: dict[str, Mode] = {
    "greedy": Mode(think="auto", temperature=0.0),
    "t1": Mode(think="auto", temperature=1.0),
    "auto": Mode(think="auto", temperature=0.0),
    "on": Mode(think="on", temperature=0.0),
    "off": Mode(think="off", temperature=0.0),
    "on_t1": Mode(think="on", temperature=1.0),
    "off_t1": Mode(think="off", temperature=1.0),
    "on_forced": Mode(think="on", temperature=0.0, force=True),
    "off_forced": Mode(think="off", temperature=0.0, force=True),
}
"""`greedy` and `auto` ask the same and are generated once: the first is how a stage without flags is read,
the second stands beside `on` and `off`."""


@dataclass(kw_only=True)
class SuiteConfig:
    """One held-out source."""

    shards: str | list[str]
    """Paths, globs or braces of webdataset shards, as in `data.sources`."""
    format: str = "messages"
    """How a sample's files become a conversation: a name in `sail_train.data.FORMATS`."""
    limit: int = 512
    """Prompts taken, from the first on; 512 give a standard error of at most 2.2 points. 0 takes all."""
    blank_images: bool = False
    """Replaces every image and video by mid-grey of its size: what the model knows without looking."""
    max_tiles: int | None = None
    """As of a training source (`SourceConfig.max_tiles`): most tiles of one image; null: the model's."""
    fps: float | None = None
    """As of a training source: frames a second of a video; null: the model's."""

    def __post_init__(self) -> None:
        if self.limit < 0:
            raise ValueError(f"limit={self.limit} must be 0 (all) or more")
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ValueError(f"max_tiles={self.max_tiles} must be at least 1, or null for the model's")
        if self.fps is not None and self.fps <= 0:
            raise ValueError(f"fps={self.fps} must be above 0, or null for the model's")


@dataclass(kw_only=True)
class EvalConfig:
    """The `eval` section of a run."""

    suites: dict[str, SuiteConfig] = field(default_factory=dict)
    """Every held-out source there is, by name."""
    modes: dict[str, list[str]] = field(default_factory=dict)
    """What this stage is evaluated on: suite -> modes (`MODES`). An empty list leaves out a suite that another file
    asked for; nothing at all is no evaluation."""
    limit: int = 0
    """Cap on the prompts of every suite, e.g. for a smoke run; 0 leaves each suite's own."""
    max_new_tokens: int = 128
    """Longest answer; one that is cut off counts as truncated and is graded as it stands."""
    batch_size: int = 128
    """Prompts generated together: memory and speed, never results."""
    samples: int = 1
    """Completions a prompt in modes with a temperature; their mean is the prompt's score (mean@k)."""
    before: bool = True
    """Whether the model that a stage starts from is evaluated too (`metrics_before` of the summary)."""
    show: int = 10
    """Right and wrong samples of each suite whose images are kept for the report, each so many."""

    def __post_init__(self) -> None:
        for suite, modes in self.modes.items():
            choice(f"eval.modes.{suite}", suite, self.suites)
            for mode in modes:
                choice(f"eval.modes.{suite}", mode, MODES)
        self.modes = {suite: modes for suite, modes in self.modes.items() if modes}
        for name, least in (("limit", 0), ("max_new_tokens", 1), ("batch_size", 1), ("samples", 1), ("show", 0)):
            if vars(self)[name] < least:
                raise ValueError(f"eval.{name}={vars(self)[name]} must be at least {least}")

    def prompts_of(self, suite: str) -> int | None:
        """How many prompts of `suite` are asked; None for all."""
        limits = [limit for limit in (self.limit, self.suites[suite].limit) if limit]
        return min(limits) if limits else None
