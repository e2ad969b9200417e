"""Parts out of folders -> a whole model folder, one tensor at a time.

The model stands on the meta device, where it says which weights it has and checks what comes (`model.weights`); each
tensor goes from its folder to the new one as it passes, cast if asked for, so that memory holds a shard, not a model.
What no folder brings is drawn from the seed, as `model.build.build_model` draws it.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GenerationConfig
from transformers.initialization import no_init_weights

from sail_train.config import choice, to_mapping
from sail_train.export.shards import SHARD_SIZE, ShardWriter, aside, parse_size
from sail_train.model.build import DTYPES, generation_config, hf_config, read_part
from sail_train.model.config import ModelConfig
from sail_train.model.hf_config import SailVLConfig
from sail_train.model.initialise import grow, initialise, part_generator
from sail_train.model.names import PARTS
from sail_train.model.released_config import part_config
from sail_train.model.shapes import check_shapes, language_values
from sail_train.model.vlm import SailVLForConditionalGeneration
from sail_train.model.weights import load_part
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.processor import SailVLProcessor, build_processor

log = logging.getLogger(__name__)

Add = Callable[[str, Tensor], None]
"""Takes the next (name within the part, tensor)."""

_EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")
"""Weights with a row for each token."""


def write_parts(
    config: ModelConfig,
    folders: Mapping[str, Path],
    out: Path,
    *,
    processor: SailVLProcessor,
    dtype: str = "bfloat16",
    seed: int = 0,
    shard_size: str = SHARD_SIZE,
    generation: GenerationConfig | None = None,
) -> Path:
    """A model folder `out` with the parts in `folders` ("vision", "adapter", "language") and the others drawn.

    ValueError if a folder lacks the part, or it is not of the config's shapes, or a weight is not finite.
    """
    width, limit = choice("dtype", dtype, DTYPES).itemsize, parse_size(shard_size)
    vlm = _on_meta(config, folders, processor)
    for part in folders:
        check_shapes(config, folders[part], part)
    need = sum(parameter.numel() for parameter in vlm.parameters()) * width
    stds = {part: getattr(config, part).initializer_range for part in PARTS}
    with aside(out, need) as writing:
        writer = ShardWriter(writing, limit)
        for part in PARTS:
            add = adder(writer.add, PARTS[part], DTYPES[dtype])
            module = vlm.get_submodule(PARTS[part].removesuffix("."))
            if part in folders:
                _copy(module, folders[part], part, add, part_generator(seed, f"{part}/rows"))
            else:
                _draw(module, stds[part], add, part_generator(seed, part))
        writer.close()
        vlm.config.architectures, vlm.config.dtype = [type(vlm).__name__], DTYPES[dtype]
        vlm.config.save_pretrained(writing)
        (generation or generation_config(processor.token_ids)).save_pretrained(writing)
        processor.save_pretrained(writing)
    log.info("wrote %s: %.2f GB in %s; %s", out, need / 1e9, dtype,
             ", ".join(f"{part} from {folders.get(part, f'seed {seed}')}" for part in PARTS))  # fmt: skip
    return out


def make_processor(config: ModelConfig, tokenizer: Path, system: str | None = None) -> SailVLProcessor:
    """The processor of a model of this config, with the tokenizer of a folder; ValueError if there is none."""
    return build_processor(
        ProcessorConfig(
            tokenizer=str(tokenizer),
            image=to_mapping(config.image_spec),
            video=to_mapping(config.video_spec),
            template=config.template,
            system=system,
        )
    )


def _on_meta(
    config: ModelConfig, folders: Mapping[str, Path], processor: SailVLProcessor
) -> SailVLForConditionalGeneration:
    rows = max(processor.vocab_size, config.language.vocab_size or 0)
    if "language" in folders:
        rows = max(rows, language_values(part_config(folders["language"])).get("vocab_size") or 0)
    return on_meta(hf_config(config, token_ids=processor.token_ids, vocab_size=rows))


def on_meta(config: SailVLConfig) -> SailVLForConditionalGeneration:
    """A model without weights, which says what they are called and of which shape."""
    with torch.device("meta"), no_init_weights():
        vlm = SailVLForConditionalGeneration(config)
    vlm.language_model.tie_weights()
    return vlm


def adder(write: Add, prefix: str, dtype: torch.dtype) -> Add:
    """Writes what comes under a prefix and in a dtype; ValueError for a weight that is not finite there."""

    def add(name: str, tensor: Tensor) -> None:
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        if not tensor.isfinite().all():
            raise ValueError(f"{prefix}{name} holds values that are not finite in {str(dtype).removeprefix('torch.')}")
        write(prefix + name, tensor)

    return add


def _draw(module: nn.Module, std: float, add: Add, generator: torch.Generator) -> None:
    """A part's weights from the seed."""
    drawn = copy.deepcopy(module).to_empty(device="cpu")
    initialise(drawn, std=std, generator=generator)
    for name, parameter in drawn.named_parameters():
        add(name, parameter.data)


def _copy(module: nn.Module, folder: Path, part: str, add: Add, generator: torch.Generator) -> None:
    """A part's weights from a folder, while `load_part` checks them against the module on the meta device."""

    def passed() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in _grown(read_part(module, folder, part), module, generator):
            add(name, tensor)
            yield name, tensor

    load_part(module, passed(), part=part, folder=folder, generator=generator)


def _grown(
    weights: Iterable[tuple[str, Tensor]], module: nn.Module, generator: torch.Generator
) -> Iterator[tuple[str, Tensor]]:
    """The weights; embeddings with too few rows at the end, in the module's order, as `load_part` grows them."""
    rows = {name: len(p) for name, p in module.named_parameters() if name in _EMBEDDINGS}
    short = {}
    for name, tensor in weights:
        if name in rows and len(tensor) < rows[name]:
            short[name] = tensor
        else:
            yield name, tensor
    for name in rows:
        if name in short:
            yield name, grow(short[name], rows[name], generator)
