"""Everything that one stage of training may set: the sections are the config dataclasses of the parts, composed."""

from __future__ import annotations

from dataclasses import dataclass, field

from sail_train.config import choice
from sail_train.data.config import DataConfig, SourceConfig, check_named
from sail_train.engine.config import EngineConfig, LogConfig, OptimConfig, ScheduleConfig, TrainConfig
from sail_train.eval.config import EvalConfig
from sail_train.loops import LOOPS
from sail_train.loops.sample_config import SampleConfig
from sail_train.loops.soup_config import SoupConfig
from sail_train.model.config import ModelConfig
from sail_train.processor import STYLES
from sail_train.rewards.config import RewardsConfig
from sail_train.rl.config import RLConfig


@dataclass(kw_only=True)
class RunConfig:
    """One run of one stage."""

    loop: str
    """Which loop runs the stage: a name in `sail_train.loops.LOOPS`."""
    run_dir: str
    """Where the run writes everything; set by the command line."""
    recipe_dir: str = "runs/adhoc"
    """Directory of the recipe's runs, so that a stage can name what an earlier one wrote."""
    data_dir: str = "data/tiny"
    """Root of the data that stages name relative to it."""
    seed: int = 0
    """Fixes initialisation, the order of the data and what is sampled."""
    parents: dict[str, str] = field(default_factory=dict)
    """What the stage starts from: run directory or model folder by role. "model" is a whole model; "vision",
    "adapter" and "language" one part of it; "member_1", "member_2" ... those of a soup. What no parent gives comes
    from `model`."""
    model: ModelConfig
    data: DataConfig = field(default_factory=DataConfig)
    valid: dict[str, SourceConfig] = field(default_factory=dict)
    """Held-out sources whose loss is measured every `train.valid_every` steps."""
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr={}))
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    train: TrainConfig = field(default_factory=lambda: TrainConfig(max_steps=1))
    log: LogConfig = field(default_factory=LogConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    rewards: RewardsConfig = field(default_factory=RewardsConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    soup: SoupConfig = field(default_factory=SoupConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    system: str | None = None
    """System message for conversations that bring none; null: that of `model.template`; empty: none."""

    def __post_init__(self) -> None:
        choice("loop", self.loop, LOOPS)
        choice("model.template", self.model.template, STYLES)
        roles = {"model", "vision", "adapter", "language"}
        for role in self.parents:
            if not role.startswith("member_"):
                choice("parents", role, dict.fromkeys(roles | {"member_1"}))
        if "model" in self.parents and len(roles & set(self.parents)) > 1:
            raise ValueError(f"parents={sorted(self.parents)}: give a whole model, or its parts, not both")
        check_named("valid", self.valid)
        if self.valid and not self.train.valid_every:
            raise ValueError(
                f"valid names {', '.join(self.valid)}, and train.valid_every=0 measures nothing; set "
                "train.valid_every=N to measure them every N steps, or take them away with ~valid"
            )
