"""A model by itself, without a stage: what `model=NAME` and overrides of `model.` say."""

from __future__ import annotations

from sail_train.config import to_dataclass
from sail_train.job.compose import Configs, Layer
from sail_train.job.job import COMMAND_LINE
from sail_train.job.overrides import Request
from sail_train.model.config import ModelConfig

DATA_DIR = "data/tiny"
"""Where the tiny models' tokenizer lies, unless `data_dir=` says otherwise."""


def compose_model(configs: Configs, request: Request) -> ModelConfig:
    """The model of the request's group and values; `ValueError` for whatever in it is wrong.

    Only `model=`, `model.x=` and `data_dir=` mean something here: another key is refused.
    """
    if "model" not in request.groups:
        raise ValueError(f"which model? Say model=NAME; there are {', '.join(configs.names('model'))}")
    others = [group for group in request.groups if group != "model"]
    others += [name for name in ("recipe", "stage", "parent") if getattr(request, name)]
    others += [item.key for item in request.assignments if item.key.split(".")[0] not in ("model", "data_dir")]
    if others:
        raise ValueError(f"{others[0]}=...: a model by itself takes model=NAME, model.KEY=VALUE and data_dir=PATH")
    composed = configs.compose(
        stage=configs.names("stage")[0],
        groups={"model": request.groups["model"]},
        layers=[Layer(label=COMMAND_LINE, assignments=request.assignments)],
        only={"model"},
    )
    if "data_dir" not in composed.tree:
        composed.tree["data_dir"] = DATA_DIR
    return to_dataclass(ModelConfig, composed.resolved()["model"], path="model")
