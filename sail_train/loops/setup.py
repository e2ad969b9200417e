"""From a `RunConfig` to what every loop needs: processor, model, engine; and the model folder at the end."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path

import torch

from sail_train import dist
from sail_train.config import to_mapping
from sail_train.cost import ModelShape
from sail_train.engine import memory
from sail_train.engine.deepspeed import TrainEngine
from sail_train.engine.partition import Partitioned
from sail_train.engine.rundir import RunDir
from sail_train.loops.config import RunConfig
from sail_train.model import flops
from sail_train.model.attention import describe
from sail_train.model.build import build_model, save_model
from sail_train.model.counts import build_meta, count_parameters
from sail_train.model.folder import resolve
from sail_train.model.language import describe_experts
from sail_train.model.names import PARTS, part_of
from sail_train.model.packed import PackedLM
from sail_train.model.placement import HOST
from sail_train.model.router import expert_blocks
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor

log = logging.getLogger(__name__)


def make_processor(config: RunConfig) -> SailVLProcessor:
    """The processor of the run: its tokenizer from the language parent, where there is one, else from the config."""
    parent = config.parents.get("model") or config.parents.get("language")
    return build_processor(
        ProcessorConfig(
            tokenizer=str(resolve(parent)) if parent else config.model.language.tokenizer_path,
            image=to_mapping(config.model.image_spec),
            video=to_mapping(config.model.video_spec),
            template=config.model.template,
            system=config.system,
        )
    )


def make_model(
    config: RunConfig, processor: SailVLProcessor, *, trained: bool = True
) -> SailVLForConditionalGeneration:
    """The model that the stage starts from, on this rank's device, in fp32 (the engine casts).

    Under ZeRO 3 each rank builds its share alone, in the engine's precision; to read it whole, enter
    `engine.gather.gathered`. A model that is not `trained` (for sampling, a reference) is whole on every rank.
    ValueError if a GPU has no room for it.
    """
    shared = trained and config.engine.zero_stage == 3
    if not shared and (free := memory.free_bytes(dist.device())) is not None:
        check_whole(config, processor.vocab_size, free, trained=trained)
    torch.manual_seed(config.seed)
    vlm = build_model(
        config.model,
        parents=config.parents,
        seed=config.seed,
        token_ids=processor.token_ids,
        vocab_size=processor.vocab_size,
        placement=Partitioned(config.engine) if shared else HOST,
    )
    torch.nn.Module.to(vlm, dist.device())  # transformers' own wrapper of `to` hides its signature from type checkers
    dtype = torch.bfloat16 if config.engine.precision == "bf16" else torch.float32
    log.info("%s", describe(config.model.attention, dist.device(), dtype))
    if experts := describe_experts(vlm.language_model):
        log.info("%s", experts)
    return vlm


def check_whole(config: RunConfig, vocab_size: int, free: int, *, trained: bool) -> None:
    """ValueError on all ranks if the whole model in fp32, as it is built, needs more than the `free` bytes of one."""
    language = config.model.language
    rows = max(vocab_size, language.vocab_size or 0)
    shapes = build_meta(replace(config.model, language=replace(language, vocab_size=rows)))
    parameters = count_parameters(shapes)["total"]
    memory.check_fits(
        4 * parameters,
        free,
        what=f"{parameters:,} parameters in fp32",
        remedy=(
            f"set engine.zero_stage=3 instead of {config.engine.zero_stage}: each rank then builds its share alone"
            if trained
            else "sampling and a reference policy (rl.kl_coef above 0) need them whole; take devices with more memory "
            "or a smaller model"
        ),
    )


def make_engine(config: RunConfig, vlm: SailVLForConditionalGeneration, *, accumulation: int) -> TrainEngine:
    """The engine around the packed model, parameters grouped by part."""
    module = PackedLM(vlm).train()
    parts: dict[str, list[tuple[str, torch.nn.Parameter]]] = {part: [] for part in PARTS}
    for name, parameter in module.named_parameters():
        parts[part_of(name)].append((name, parameter))
    return TrainEngine(
        module,
        parts=parts,
        optim=config.optim,
        schedule=config.schedule,
        engine=config.engine,
        max_steps=config.train.max_steps,
        accumulation=accumulation,
        leaves=expert_blocks(vlm.language_model),
    )


def model_shape(config: RunConfig, vlm: SailVLForConditionalGeneration) -> ModelShape:
    """Plain shapes of the run's model, for FLOPs and MFU."""
    return flops.model_shape(config.model, vocab_size=vlm.config.text_config.vocab_size)


def write_model(
    engine: TrainEngine, vlm: SailVLForConditionalGeneration, processor: SailVLProcessor, run: RunDir
) -> Path:
    """The run's model folder, whole or not at all. All ranks call it; rank 0 writes."""
    weights = engine.full_state_dict()
    if dist.is_main():
        aside = run.model.with_name("model.partial")
        shutil.rmtree(aside, ignore_errors=True)
        save_model(vlm, aside, weights)
        processor.save_pretrained(aside)
        shutil.rmtree(run.model, ignore_errors=True)
        os.rename(aside, run.model)
    dist.barrier()
    return run.model
