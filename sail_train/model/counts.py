"""How many parameters a model has, counted on one that has shapes and no weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.initialization import no_init_weights

from sail_train.model.build import hf_config
from sail_train.model.config import ModelConfig
from sail_train.model.names import PARTS, part_of
from sail_train.model.vlm import SailVLForConditionalGeneration

_NO_TOKENS = {"image": 0, "eos": 0, "pad": 0}


def build_meta(config: ModelConfig) -> SailVLForConditionalGeneration:
    """The model on the meta device: shapes, names and ties, no weights. Reads no folder, needs no tokenizer.

    ValueError if `language.vocab_size` is not set.
    """
    if config.language.vocab_size is None:
        raise ValueError("language.vocab_size is null: without a tokenizer it says how many embeddings there are")
    with torch.device("meta"), no_init_weights():
        vlm = SailVLForConditionalGeneration(
            hf_config(config, token_ids=_NO_TOKENS, vocab_size=config.language.vocab_size)
        )
    vlm.language_model.tie_weights()
    return vlm


def count_parameters(vlm: nn.Module) -> dict[str, int]:
    """Parameters of "vision", "adapter" and "language", their "total", and those that a token meets, "active".

    Tied ones count once. A token passes all but the experts that it is not sent to; the embedding's rows all count.
    """
    counts = dict.fromkeys(PARTS, 0)
    for name, parameter in vlm.named_parameters():
        counts[part_of(name)] += parameter.numel()
    total = sum(counts.values())
    return {**counts, "total": total, "active": total - _idle(vlm)}


def _idle(vlm: Any) -> int:
    """Parameters of the experts that a token is not sent to."""
    text = vlm.config.text_config.to_dict()
    each = text.get("num_local_experts") or text.get("num_experts")
    if not each:
        return 0
    experts = sum(p.numel() for p in vlm.language_model.parameters() if p.ndim == 3 and len(p) == each)
    return experts * (each - text["num_experts_per_tok"]) // each
