"""Weights of released folders -> ours, and back: SAIL-VL2, SAIL-ViT, Apple's AIMv2, and language models as they are.

A folder's family is told from its config and the names of its weights; each family says by rules (`rules`) which parts
it has and what they are called. What a part lacks, or holds beyond what is known to be harmless, is an error that
names it; what was reshaped is logged.
Names after SAIL-VL2's released checkpoints (arXiv 2509.14033), apple/aimv2 (arXiv 2411.14402) and transformers' Aimv2.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from sail_train.model.folder import tensor_names, tensors
from sail_train.model.names import PARTS
from sail_train.model.released_config import OURS, read_json
from sail_train.model.rules import LoadReport, Rule, to_ours

log = logging.getLogger(__name__)


def _aimv2(prefix: str) -> tuple[Rule, ...]:
    """The names in which AIMv2 was published, and SAIL-ViT with it, behind a prefix."""
    layer = f"{prefix}trunk.blocks.{{n}}."
    return (
        Rule(
            ours="patch_embedding.weight", theirs=(f"{prefix}preprocessor.patchifier.proj.weight",), shape="convolution"
        ),
        Rule(ours="patch_embedding.bias", theirs=(f"{prefix}preprocessor.patchifier.proj.bias",)),
        Rule(ours="patch_norm.weight", theirs=(f"{prefix}preprocessor.patchifier.norm.weight",)),
        Rule(ours="positions.table", theirs=(f"{prefix}preprocessor.pos_embed",), shape="one row of positions"),
        Rule(ours="layers.{n}.norm_attention.{rest}", theirs=(f"{layer}norm_1.{{rest}}",)),
        Rule(ours="layers.{n}.qkv.{rest}", theirs=(f"{layer}attn.qkv.{{rest}}",)),
        Rule(ours="layers.{n}.out.{rest}", theirs=(f"{layer}attn.proj.{{rest}}",)),
        Rule(ours="layers.{n}.norm_mlp.{rest}", theirs=(f"{layer}norm_2.{{rest}}",)),
        Rule(ours="layers.{n}.gate_up.{rest}", theirs=(f"{layer}mlp.fc1.{{rest}}", f"{layer}mlp.fc3.{{rest}}")),
        Rule(ours="layers.{n}.down.{rest}", theirs=(f"{layer}mlp.fc2.{{rest}}",)),
        Rule(ours="norm.weight", theirs=(f"{prefix}trunk.post_trunk_norm.weight",)),
    )


def _aimv2_transformers(prefix: str) -> tuple[Rule, ...]:
    """transformers' names of AIMv2, behind a prefix."""
    layer = f"{prefix}encoder.layers.{{n}}."
    attention = tuple(f"{layer}attention.{name}_proj.{{rest}}" for name in "qkv")
    return (
        Rule(ours="patch_embedding.weight", theirs=(f"{prefix}embeddings.patch_embed.weight",), shape="convolution"),
        Rule(ours="patch_embedding.bias", theirs=(f"{prefix}embeddings.patch_embed.bias",)),
        Rule(ours="patch_norm.weight", theirs=(f"{prefix}embeddings.rms_norm.weight",)),
        Rule(ours="positions.table", theirs=(f"{prefix}embeddings.position_embedding.weight",)),
        Rule(ours="layers.{n}.norm_attention.{rest}", theirs=(f"{layer}rms_norm1.{{rest}}",)),
        Rule(ours="layers.{n}.qkv.{rest}", theirs=attention),
        Rule(ours="layers.{n}.out.{rest}", theirs=(f"{layer}attention.out_proj.{{rest}}",)),
        Rule(ours="layers.{n}.norm_mlp.{rest}", theirs=(f"{layer}rms_norm2.{{rest}}",)),
        Rule(
            ours="layers.{n}.gate_up.{rest}",
            theirs=(f"{layer}ffn.gate_proj.{{rest}}", f"{layer}ffn.up_proj.{{rest}}"),
        ),
        Rule(ours="layers.{n}.down.{rest}", theirs=(f"{layer}ffn.down_proj.{{rest}}",)),
        Rule(ours="norm.weight", theirs=(f"{prefix}rms_norm.weight",)),
    )


def _prefixed(prefix: str) -> tuple[Rule, ...]:
    return (Rule(ours="{rest}", theirs=(f"{prefix}{{rest}}",)),)


_ADAPTER = tuple(
    Rule(ours=f"{ours}.{{rest}}", theirs=(f"mlp1.{number}.{{rest}}",))
    for ours, number in {"norm": 0, "up": 1, "down": 3}.items()
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kind of folder, by what its weights are called."""

    name: str
    sign: str
    """A name that its weights have among them."""
    parts: Mapping[str, Sequence[Rule]]
    """The rules of each part that it has."""
    harmless: tuple[str, ...] = ()
    """Regular expressions of names that nothing of ours needs."""


_LATE = r"layers\.\d+\.|norm\."
"""Our names of what an encoder may have behind the layer that is selected."""
_INV_FREQ = r".*rotary_emb\.inv_freq"

FAMILIES = (
    Family(
        name="SAIL-VL2 as released",
        sign="mlp1.0.weight",
        parts={
            "vision": _aimv2("vision_model."),
            "adapter": _ADAPTER,
            "language": _prefixed("language_model."),
        },
        harmless=(_INV_FREQ,),
    ),
    Family(
        name="SAIL-ViT as released",
        sign="vision_model.preprocessor.patchifier.proj.weight",
        parts={"vision": _aimv2("vision_model.")},
        harmless=(r"vision_model\.head\..*",),
    ),
    Family(
        name="AIMv2 as published",
        sign="preprocessor.patchifier.proj.weight",
        parts={"vision": _aimv2("")},
        harmless=(r"head\..*",),
    ),
    Family(
        name="transformers' AIMv2",
        sign="embeddings.patch_embed.weight",
        parts={"vision": _aimv2_transformers("")},
        harmless=(r"head\..*",),
    ),
    Family(
        name="transformers' AIMv2 with its text encoder",
        sign="vision_model.embeddings.patch_embed.weight",
        parts={"vision": _aimv2_transformers("vision_model.")},
        harmless=(r"vision_model\.head\..*", r"text_model\..*", r"visual_projection\..*", r"text_projection\..*",
                  "logit_scale"),
    ),
    Family(
        name="a language model",
        sign="model.embed_tokens.weight",
        parts={"language": _prefixed("")},
        harmless=(_INV_FREQ,),
    ),
)  # fmt: skip
"""In the order in which they are tried."""

SAIL_VL2 = FAMILIES[0]


def detect(folder: Path) -> Family:
    """The family of a folder that is not ours; ValueError that says what was looked for."""
    names = set(tensor_names(folder))
    for family in FAMILIES:
        if family.sign in names:
            return family
    looked = "; ".join(f"{family.name}: {family.sign}" for family in FAMILIES)
    raise ValueError(f"{folder} holds weights of no known kind (looked for {looked}); {_some(sorted(names))}")


def part_tensors(folder: Path, part: str, known: Collection[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """(our name within the part, tensor) of a part's weights in a model folder of ours or of a known family.

    Args:
        known: the names that the module has; layers behind the one that is selected are then left in the folder.

    Raises:
        ValueError: the folder has no such part, pieces of a weight are missing, or there are weights beyond it.
    """
    if read_json(folder / "config.json").get("model_type") == OURS:
        yield from tensors(folder, PARTS[part])
        return
    family = detect(folder)
    if part not in family.parts:
        raise ValueError(f"{folder} holds {family.name}, which has no {part} part; it has {', '.join(family.parts)}")
    report, left = LoadReport(), []
    names = _own_names(folder, family, part)
    needed = {name for name in names if not any(re.fullmatch(pattern, name) for pattern in family.harmless)}
    for name, tensor in to_ours(tensors(folder, only=needed), family.parts[part], report):
        if part == "vision" and known is not None and name not in known and re.match(_LATE, name):
            left.append(name)
        else:
            yield name, tensor
    if report.missing:
        raise ValueError(f"{folder} lacks {part} weights: {_some(report.missing)}")
    if report.unexpected:
        raise ValueError(f"{folder} has {part} weights that {family.name} has not: {_some(report.unexpected)}")
    for what, which in {
        "brought into our shape": report.reshaped,
        "not needed": left + sorted(set(names) - needed),
    }.items():
        if which:
            log.info("%s: %d %s weights were %s: %s", folder, len(which), part, what, _some(which))


def _own_names(folder: Path, family: Family, part: str) -> list[str]:
    """Names of the folder's weights but for those that another of its parts takes."""
    others = [prefix for other, rules in family.parts.items() if other != part for prefix in _prefixes_of(rules)]
    return [name for name in tensor_names(folder) if not any(name.startswith(prefix) for prefix in others)]


def _prefixes_of(rules: Sequence[Rule]) -> set[str]:
    return {name.split(".")[0] + "." for rule in rules for name in rule.theirs}


def _some(names: Sequence[str]) -> str:
    return f"{', '.join(sorted(names)[:5])} ({len(names)} in all)"
