"""Two ranks under ZeRO 3 against one process, for encoders of each kind; started by test_zero3_encoders.py.

Rank 0 has text alone, rank 1 pictures of three shapes: a foreign model is called once for each shape, and the ranks
must gather its weights equally often all the same. Layers are checkpointed, so the backward gathers them again. A
second pass runs on the trace that the first recorded; one foreign encoder has a layer and a mask token that nothing
uses, whose gradients stay zero.
"""

from __future__ import annotations

import sys
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_grad

from sail_train.model.build import build_model
from sail_train.model.config import AdapterConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.packed import PackedLM

KINDS: tuple[dict[str, Any], ...] = (
    {"type": "aimv2", "position_grid": 4},
    {"type": "transformers", "model": {"model_type": "dinov2_with_registers", "image_size": 16}, "select_layer": -2},
    {"type": "transformers", "model": {"model_type": "siglip2_vision_model", "num_patches": 16}},
)
GRIDS = ((4, 6), (4, 4), (2, 2), (4, 6))
IMAGE = 61


def build(kind: dict[str, Any]) -> PackedLM:
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = ModelConfig(
        vision=VisionConfig(**sizes, patch_size=4, initializer_range=0.2, **kind),
        adapter=AdapterConfig(reduction="avg_pool"),
        language=LanguageConfig(**sizes, num_key_value_heads=2, head_dim=8, initializer_range=0.2),
    )
    vlm = build_model(config, parents={}, seed=0, token_ids={"image": IMAGE, "eos": 62, "pad": 63}, vocab_size=64)
    vlm.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return PackedLM(vlm)


def batch(with_images: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 60, (40,), generator=generator)
    grids = GRIDS if with_images else ()
    count = sum(rows * cols for rows, cols in grids)
    ids[3 : 3 + count // 4] = IMAGE
    return {
        "input_ids": ids,
        "labels": ids.roll(-1),
        "position_ids": torch.arange(40),
        "cu_seqlens": torch.tensor([0, 40], dtype=torch.int32),
        "patches": torch.randint(0, 256, (count, 48), generator=generator, dtype=torch.uint8),
        "grids": torch.tensor(grids).long().reshape(-1, 2),
    }


def check(kind: dict[str, Any]) -> None:
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0},
    }
    module = build(kind)
    engine = deepspeed.initialize(
        model=module, optimizer=torch.optim.SGD(module.parameters(), lr=0.1), config=settings
    )[0]
    rank = torch.distributed.get_rank()
    for _ in range(2):
        logprobs = engine(**batch(with_images=rank == 1))[0]
        engine.backward(-logprobs.sum())
        grads = {name: safe_get_full_grad(p) for name, p in engine.module.named_parameters()}
        engine.optimizer.zero_grad()
    expected = build(kind)
    loss = sum(-expected(**batch(with_images))[0].sum() for with_images in (False, True))
    loss.backward()
    for name, parameter in expected.named_parameters():
        grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(grads[name] * 2, grad, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")
    engine.destroy()


if __name__ == "__main__":
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles for minutes
    deepspeed.init_distributed("gloo", verbose=False)
    for each in KINDS:
        check(each)
    print("ok")
    sys.stdout.flush()
