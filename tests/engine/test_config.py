"""What the engine's settings refuse, each with its name, its value and a remedy."""

import subprocess
import sys
from typing import Any

import pytest

from sail_train.config import to_dataclass
from sail_train.engine.config import EngineConfig, LogConfig, OptimConfig, ScheduleConfig, TrainConfig


@pytest.mark.parametrize(
    ("cls", "values", "message"),
    [
        (EngineConfig, {"zero_stage": 4}, r"engine\.zero_stage=4 is unknown; use one of 0, 1, 2, 3"),
        (EngineConfig, {"precision": "fp16"}, r"engine\.precision='fp16'.*bf16"),
        (EngineConfig, {"zero_stage": 0, "precision": "bf16"}, r"set engine\.zero_stage=1"),
        (EngineConfig, {"offload_optimizer": True}, r"engine\.offload_optimizer=true needs engine\.zero_stage"),
        (EngineConfig, {"offload_weights": True, "zero_stage": 2}, r"needs engine\.zero_stage=3, not 2"),
        (EngineConfig, {"gradient_clipping": -1.0}, r"engine\.gradient_clipping=-1\.0 must be at least 0"),
        (EngineConfig, {"max_bad_steps": 0}, r"engine\.max_bad_steps=0 must be at least 1"),
        (EngineConfig, {"bucket_elements": 0}, r"engine\.bucket_elements=0"),
        (EngineConfig, {"timeout_minutes": 0.0}, r"engine\.timeout_minutes=0\.0 must be above 0"),
        (OptimConfig, {"lr": {"vision": -1e-3}}, r"optim\.lr\.vision=-0\.001"),
        (OptimConfig, {"lr": {}, "betas": [0.9]}, r"optim\.betas=\[0\.9\] must be two numbers"),
        (OptimConfig, {"lr": {}, "betas": [0.9, 1.0]}, r"optim\.betas"),
        (OptimConfig, {"lr": {}, "eps": 0.0}, r"optim\.eps=0\.0 must be above 0"),
        (OptimConfig, {"lr": {}, "weight_decay": -0.1}, r"optim\.weight_decay=-0\.1"),
        (ScheduleConfig, {"name": "cosin"}, r"schedule\.name='cosin'.*did you mean 'cosine'"),
        (ScheduleConfig, {"warmup_steps": -1}, r"schedule\.warmup_steps=-1"),
        (ScheduleConfig, {"warmup_ratio": 1.5}, r"schedule\.warmup_ratio=1\.5 must be between 0 and 1"),
        (ScheduleConfig, {"min_ratio": -0.1}, r"schedule\.min_ratio=-0\.1"),
        (ScheduleConfig, {"decay_ratio": 2.0}, r"schedule\.decay_ratio=2\.0"),
        (ScheduleConfig, {"warmup_steps": 3, "warmup_ratio": 0.1}, r"are both set; set one of them to 0"),
        (TrainConfig, {"max_steps": 0}, r"train\.max_steps=0 must be at least 1"),
        (TrainConfig, {"max_steps": 1, "save_every": -1}, r"train\.save_every=-1"),
        (TrainConfig, {"max_steps": 1, "keep": 1}, r"train\.keep=1 must be at least 2"),
        (TrainConfig, {"max_steps": 1, "valid_every": -1}, r"train\.valid_every=-1"),
        (TrainConfig, {"max_steps": 1, "log_every": 0}, r"train\.log_every=0"),
        (TrainConfig, {"max_steps": 1, "loss": "tokens"}, r"train\.loss='tokens'.*did you mean 'token'"),
        (LogConfig, {"wandb": "on"}, r"log\.wandb='on'.*online"),
    ],
)
def test_a_wrong_value_is_refused(cls: type, values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_dataclass(cls, values)


def test_configs_and_signals_import_without_torch() -> None:
    code = "import sys, sail_train.engine.config, sail_train.engine.signals, sail_train.dist, sail_train.cost"
    code += "; print([name for name in ('torch', 'deepspeed', 'transformers', 'numpy') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
