"""The FLOP formula of `sail_train.cost` against torch's counter, on a tiny model of each family."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from sail_train.cost import PARTS, ModelShape, Tower
from sail_train.model.config import AdapterConfig, ImageConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.names import part_of
from sail_train.model.packed import PackedLM

VOCABULARY = 64
# far enough apart that sdpa pads none of them
TEXTS = (30, 4, 4)
GRIDS = ((4, 4), (4, 4))

# Equal to the operation with what is installed here; a transformers that computes rotary angles as a matrix product
# adds 1.5e-4 to models as tiny as these.
TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class Family:
    config: ModelConfig
    shape: ModelShape


def family(*, vision: dict[str, Any] | None = None, reduction: str = "pixel_shuffle", **experts: Any) -> Family:
    seeing, gated = vision or {}, (vision or {}).get("gated_mlp", True)
    config = ModelConfig(
        vision=VisionConfig(
            hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=2, patch_size=4, **seeing
        ),
        adapter=AdapterConfig(hidden_size=40, reduction=reduction),
        language=LanguageConfig(
            hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=16, **experts,
        ),
        image=ImageConfig(min_pixels=64, max_pixels=4096),
    )  # fmt: skip
    language = Tower(
        layers=2, hidden=48, heads=4, kv_heads=2, head_dim=16, causal=True,
        intermediate=config.language.moe_intermediate_size or 80, experts=config.language.num_experts or 1,
        active_experts=config.language.num_experts_per_tok or 1,
    )  # fmt: skip
    layers = 3 + 1 + config.vision.select_layer
    encoder = Tower(
        layers=layers, hidden=32, intermediate=48, heads=2, kv_heads=2, head_dim=16, causal=False, gated=gated
    )
    shape = ModelShape(
        vision=encoder, patch_dim=48, merge=4, adapter_hidden=40, pools=reduction == "avg_pool", language=language,
        vocab=VOCABULARY, tied=True,
    )  # fmt: skip
    return Family(config=config, shape=shape)


MIXTURE = {"model_type": "qwen3_moe", "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SEED = {
    "norm": "layer", "gated_mlp": False, "hidden_act": "gelu", "bias": True, "final_norm": False,
}  # fmt: skip

FAMILIES = {
    "native": family(),
    "aimv2": family(vision={"type": "aimv2", "position_grid": 4}),
    "aimv2, an inner layer": family(vision={"type": "aimv2", "position_grid": 4, "select_layer": -2}),
    "mixture of experts": family(**MIXTURE),
    "seed": family(vision=SEED, reduction="avg_pool", **MIXTURE),
}


def row(make_sample: Callable[..., dict], pack_samples: Callable[..., dict]) -> dict[str, torch.Tensor]:
    first, *others = (make_sample(i, length, *(GRIDS if i == 0 else ())) for i, length in enumerate(TEXTS))
    return pack_samples(first, *others)


def counted(model: PackedLM, batch: dict[str, torch.Tensor], trained: Collection[str]) -> int:
    """What torch counts. sdpa in its plain form, since the counter does not know the fused kernel of a CPU."""
    for name, parameter in model.vlm.named_parameters():
        parameter.requires_grad_(part_of(name) in trained)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        logprobs, _ = model(**batch)
        if trained:
            logprobs.sum().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    "trained", [(), ("adapter",), ("language",), ("vision",), ("vision", "adapter"), PARTS], ids="+".join
)
@pytest.mark.parametrize("name", FAMILIES)
def test_the_formula_equals_what_torch_counts(
    make_model: Callable, make_sample: Callable, pack_samples: Callable, name: str, trained: tuple[str, ...]
) -> None:
    family = FAMILIES[name]
    vlm = make_model(family.config)
    if family.config.language.num_experts:
        vlm.language_model.set_experts_implementation("eager")  # the counter does not know the grouped product
    batch = row(make_sample, pack_samples)
    lengths = batch["cu_seqlens"].diff().tolist()
    patches = [rows * cols for rows, cols in GRIDS]
    num_trained = int((batch["labels"] != -100).sum())
    ours = family.shape.train_flops(lengths, patches, trained=trained, num_trained=num_trained)
    # torch counts all of a causal sample's square, for the plain form computes it; the formula counts half
    masked_half = family.shape.language.attention_flops(lengths) * (3 if trained else 1)
    theirs = counted(PackedLM(vlm), batch, trained)
    assert ours + masked_half == pytest.approx(theirs, rel=TOLERANCE)


def test_attention_is_counted_by_sample_and_by_picture(
    make_model: Callable, make_sample: Callable, pack_samples: Callable
) -> None:
    """One row of the same tokens and patches, once apart and once together: the difference is the squares' alone."""
    family = FAMILIES["native"]
    model = PackedLM(make_model(family.config))
    apart = row(make_sample, pack_samples)
    total = len(apart["input_ids"])
    together = apart | {
        "cu_seqlens": torch.tensor([0, total], dtype=torch.int32),
        "position_ids": torch.arange(total),
        "grids": torch.tensor([(8, 4)]),
    }
    theirs = counted(model, together, ()) - counted(model, apart, ())
    lengths = apart["cu_seqlens"].diff().tolist()
    language, vision = family.shape.language, family.shape.vision
    ours = 2 * (language.attention_flops([total]) - language.attention_flops(lengths))
    ours += vision.attention_flops([32]) - vision.attention_flops([16, 16])
    assert ours == theirs
