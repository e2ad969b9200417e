"""A foreign vision model's weights out of a folder: alone, or inside a larger model, under whatever prefix.

names in the folder -> the names that this transformers gives them (its own renamings of older ones) -> the prefix
under which all of the model's names are found. Read by the safetensors reader, never by the folder's own code.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from torch import Tensor
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming

from sail_train.model.config import VisionConfig
from sail_train.model.folder import tensor_names, tensors
from sail_train.model.hf_config import SailVLConfig, SailVLVisionConfig
from sail_train.model.vision.foreign_config import UNUSED, draws, foreign_config

_NOT_SHAPES = {
    *("dtype", "torch_dtype", "architectures", "transformers_version", "initializer_range", "initializer_factor"),
    *("projection_dim", "tie_last_hidden_states", *UNUSED),
}
"""Fields that a folder's config may have otherwise: they change no feature of a patch."""


def foreign_tensors(model: PreTrainedModel, folder: Path) -> Iterator[tuple[str, Tensor]]:
    """(the model's name, tensor) of each of its weights; ValueError names those that the folder lacks."""
    found = match(model.state_dict().keys(), _renamed(model, tensor_names(folder)), folder)
    for name, tensor in tensors(folder, only=found.keys()):
        yield found[name], tensor


def match(wanted: Iterable[str], available: Mapping[str, str], folder: Path) -> dict[str, str]:
    """Name in the folder -> the model's name, for all of `wanted`.

    `available` maps renamed names to those in the folder. Of the prefixes under which any of them stands the one with
    the most is taken; ValueError if some are missing there too.
    """
    names = list(wanted)
    known = set(names)
    prefixes = {prefix for key in available for prefix in _prefixes(key) if key.removeprefix(prefix) in known}
    best = max(sorted(prefixes), key=lambda prefix: sum(prefix + name in available for name in names), default="")
    if missing := [name for name in names if best + name not in available]:
        raise ValueError(
            f"{folder} lacks weights of the vision model: {', '.join(missing[:5])} ({len(missing)} in all); "
            f"the best prefix was {best!r}"
        )
    return {available[best + name]: name for name in names}


def check_foreign(config: VisionConfig, values: Mapping[str, Any], folder: Path) -> None:
    """ValueError if a folder's config.json has no such vision model; names the field and both values."""
    own, theirs = foreign_config(config), _vision_values(values)
    if theirs is None or theirs.model_type != own.model_type:
        raise ValueError(f"{folder} holds a {values.get('model_type')!r} model, which has no {own.model_type!r} in it")
    wanted, found = own.to_dict(), theirs.to_dict()
    for name in sorted(name for name in wanted.keys() & found.keys() if not name.startswith("_")):
        if name not in _NOT_SHAPES and not draws(name) and found[name] != wanted[name]:
            raise ValueError(
                f"vision.model.{name} is {wanted[name]} in the config, {found[name]} in {folder}; they must agree"
            )


def _prefixes(key: str) -> list[str]:
    """What may stand before a name in `key`: nothing, or all up to one of its dots."""
    parts = key.split(".")
    return ["", *(".".join(parts[:i]) + "." for i in range(1, len(parts)))]


def _vision_values(values: Mapping[str, Any]) -> PretrainedConfig | None:
    """The vision config of a folder's config.json, which may be that of a larger model."""
    if values.get("model_type") == SailVLConfig.model_type:
        own = SailVLVisionConfig(**values.get("vision_config", {}))
        return foreign_config(own) if own.type == "transformers" else None
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        return None
    try:
        config = CONFIG_MAPPING[kind](**{k: v for k, v in values.items() if k != "model_type"})
    except (AttributeError, TypeError, ValueError, StrictDataclassError) as error:
        raise ValueError(f"config.json is no config of {kind!r}: {error}") from error
    return config.vision_config if "vision_config" in values else config


def _renamed(model: PreTrainedModel, names: Sequence[str]) -> dict[str, str]:
    """Name in the folder, and today's name by transformers' renamings of this architecture -> name in the folder.

    The renamings look at names from their beginning, so each is tried behind every prefix.
    """
    renamings = [step for step in get_model_conversion_mapping(model) if isinstance(step, WeightRenaming)]
    renamed = {name: name for name in names}
    for name in names:
        for prefix in _prefixes(name):
            key = name.removeprefix(prefix)
            for step in renamings:
                key, _ = step.rename_source_key(key)
            renamed.setdefault(prefix + key, name)
    return renamed
