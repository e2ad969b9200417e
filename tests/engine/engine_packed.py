"""The real model, tiny, in the engine: its parts, a batch with an image or without one, its loss, prompts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sail_train import dist
from sail_train.engine.config import EngineConfig, OptimConfig, ScheduleConfig
from sail_train.engine.deepspeed import TrainEngine
from sail_train.generate.generator import Generator
from sail_train.model.build import build_model
from sail_train.model.config import AdapterConfig, ImageConfig, LanguageConfig, ModelConfig, VisionConfig
from sail_train.model.names import PARTS, part_of
from sail_train.model.packed import PackedLM
from sail_train.model.placement import HOST, Placement
from sail_train.model.router import expert_blocks
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.types import Batch, Completion, Prompt, Sampling

IMAGE, EOS, PAD = 61, 62, 63


MIXTURE = {"model_type": "qwen3_moe", "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
AIMV2 = {"type": "aimv2", "position_grid": 5}
SIGLIP = {"type": "transformers", "model": {"model_type": "siglip_vision_model", "image_size": 16}}


def packed_config(*, vision: dict[str, Any] | None = None, **language: Any) -> ModelConfig:
    return ModelConfig(
        vision=VisionConfig(
            **{
                **{"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
                **{"patch_size": 4, **(vision or {})},
            }
        ),
        adapter=AdapterConfig(hidden_size=20),
        language=LanguageConfig(
            **{
                **{"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4},
                **{"num_key_value_heads": 2, "head_dim": 8, **language},
            }
        ),
        image=ImageConfig(min_pixels=64, max_pixels=4096),
    )


def packed_model(
    config: ModelConfig | None = None,
    *,
    placement: Placement = HOST,
    parents: dict[str, str] | None = None,
    seed: int = 0,
    rows: int = 64,
) -> SailVLForConditionalGeneration:
    tokens = {"image": IMAGE, "eos": EOS, "pad": PAD}
    return build_model(
        config or packed_config(),
        parents=parents or {},
        seed=seed,
        token_ids=tokens,
        vocab_size=rows,
        placement=placement,
    )


def make_packed_engine(
    zero_stage: int,
    precision: str,
    *,
    activation_checkpointing: bool = False,
    vlm: SailVLForConditionalGeneration | None = None,
) -> TrainEngine:
    """The engine around `vlm`, by default a small dense model; a mixture's blocks are gathered whole."""
    vlm = packed_model() if vlm is None else vlm
    module = PackedLM(vlm).train()
    parts: dict[str, list[tuple[str, torch.nn.Parameter]]] = {part: [] for part in PARTS}
    for name, parameter in module.named_parameters():
        parts[part_of(name)].append((name, parameter))
    return TrainEngine(
        module,
        parts=parts,
        optim=OptimConfig(lr={"vision": 1e-3, "adapter": 1e-2, "language": 1e-3}),
        schedule=ScheduleConfig(name="constant"),
        engine=EngineConfig(
            zero_stage=zero_stage,
            precision=precision,
            activation_checkpointing=activation_checkpointing,
            timeout_minutes=1,
        ),
        max_steps=10,
        accumulation=2,
        leaves=expert_blocks(vlm.language_model),
    )


def packed_batch(seed: int, *, image: bool) -> Batch:
    """Two samples, the first with an image of one token if asked for."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(60, (11,), generator=generator)
    if image:
        ids[0] = IMAGE
    labels = torch.cat([ids[1:], torch.tensor([-100])])
    labels[:3] = labels[5] = -100
    return Batch(
        input_ids=ids,
        labels=labels,
        position_ids=torch.cat([torch.arange(6), torch.arange(5)]),
        cu_seqlens=torch.tensor([0, 6, 11], dtype=torch.int32),
        patches=torch.randint(256, (4 if image else 0, 48), generator=generator, dtype=torch.uint8),
        grids=torch.tensor([[2, 2]] if image else [], dtype=torch.int64).reshape(-1, 2),
        sources=("a", "b"),
        keys=("1", "2"),
    )


def packed_loss(module: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor | float]]:
    arguments = (batch.input_ids, batch.labels, batch.position_ids, batch.cu_seqlens, batch.patches, batch.grids)
    logprobs, _ = module(*arguments)
    return -logprobs.sum(), {}


def prompts(count: int) -> list[Prompt]:
    return [
        Prompt(
            uid=str(index),
            input_ids=np.array([IMAGE, 3, 5 + index], dtype=np.int32),
            patches=np.full((4, 48), 20 * index, dtype=np.uint8),
            grids=((2, 2),),
        )
        for index in range(count)
    ]


def ranks_step(engine: TrainEngine, step: int, *, images: bool) -> float:
    """The loss of a step in which ranks have their images in different micro batches."""
    batches = [packed_batch(10 * step + 2 * dist.rank() + i, image=images and dist.rank() == i) for i in range(2)]
    return engine.step(batches, packed_loss, 4.0 * 7).loss


def ranks_answers(engine: TrainEngine) -> list[list[Completion]]:
    """What the model draws, of other lengths on each rank."""
    engine.module.eval()
    with engine.unsharded() as module, torch.no_grad():
        generator = Generator(module.vlm, stop_token_ids=(EOS,), pad_token_id=PAD)
        drawn = generator.generate(prompts(1 + dist.rank()), Sampling(max_new_tokens=2 + 5 * dist.rank(), n=2))
    engine.module.train()
    return drawn
