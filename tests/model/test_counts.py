from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from sail_train.job.compose import Configs
from sail_train.job.model import compose_model
from sail_train.job.overrides import parse_tokens
from sail_train.model.config import ModelConfig
from sail_train.model.counts import build_meta, count_parameters
from sail_train.model.names import part_of
from sail_train.model.vlm import SailVLForConditionalGeneration


@pytest.mark.parametrize(
    ("preset", "total", "active"),
    [
        # SAIL-VL2's report names 2.6B, 8.8B and 31.1B with 3B active (arXiv 2509.14033, table 1); to 0.1 million these
        # are AIMv2-Huge's 682.0, Qwen3's 1,720.6, 8,190.7 and 30,532.1, and the adapter of its code
        ("sail_vl2_2b", 2419.4, 2419.4),
        ("sail_vl2_8b", 8914.7, 8914.7),
        ("sail_vl2_30b_a3b", 31230.9, 4051.9),
    ],
)
def test_the_presets_have_the_parameters_of_the_models_that_they_are_named_for(
    preset: str, total: float, active: float
) -> None:
    counts = count_parameters(build_meta(compose_model(Configs(), parse_tokens([f"model={preset}"]))))
    assert round(counts["total"] / 1e6, 1) == total and round(counts["active"] / 1e6, 1) == active
    assert counts["vision"] == 682_031_616
    assert counts["vision"] + counts["adapter"] + counts["language"] == counts["total"]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("experts", [None, 4])
def test_counting_without_weights_counts_what_a_model_with_weights_has(
    make_config: Callable[..., ModelConfig],
    make_model: Callable[..., SailVLForConditionalGeneration],
    tied: bool,
    experts: int | None,
) -> None:
    mixture = {"model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
    config = make_config(tie_word_embeddings=tied, vocab_size=64, **(mixture if experts else {}))
    meta, real = build_meta(config), make_model(config)
    assert {p.device.type for p in meta.parameters()} == {"meta"}
    assert [(n, p.shape) for n, p in meta.named_parameters()] == [(n, p.shape) for n, p in real.named_parameters()]
    counts = count_parameters(meta)
    assert counts == count_parameters(real)
    for part in ("vision", "adapter", "language"):
        assert counts[part] == sum(p.numel() for n, p in real.named_parameters() if part_of(n) == part)
    # two layers, two of four experts idle, each with three matrices of 24 x 12
    assert counts["total"] - counts["active"] == (2 * 2 * 3 * 24 * 12 if experts else 0)


def test_counting_needs_the_vocabulary_and_moves_no_generator(make_config: Callable[..., ModelConfig]) -> None:
    with pytest.raises(ValueError, match="language.vocab_size is null"):
        build_meta(make_config())
    config = make_config(vocab_size=64)
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    build_meta(replace(config, language=replace(config.language, path="/nowhere")))  # no folder is read
    assert torch.equal(torch.random.get_rng_state(), before)
