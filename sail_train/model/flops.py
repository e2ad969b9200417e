"""A model's config -> its plain shapes, for FLOPs, dealing and MFU."""

from __future__ import annotations

from sail_train.cost import ModelShape, Tower
from sail_train.model.config import LanguageConfig, ModelConfig, VisionConfig


def model_shape(config: ModelConfig, *, vocab_size: int) -> ModelShape:
    """Shapes of the three parts; `vocab_size` are the embedding's rows.

    A transformers vision encoder is taken for what its sizes say: a plain or gated MLP as `gated_mlp` tells.
    """
    return ModelShape(
        vision=_vision(config.vision),
        patch_dim=config.image_spec.patch_dim,
        merge=config.adapter.merge_size**2,
        adapter_hidden=config.adapter.hidden_size or config.language.hidden_size,
        pools=config.adapter.reduction == "avg_pool",
        language=_language(config.language),
        vocab=vocab_size,
        tied=config.language.tie_word_embeddings,
    )


def _vision(config: VisionConfig) -> Tower:
    return Tower(
        layers=config.depth,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        head_dim=config.head_dim,
        causal=False,
        gated=config.gated_mlp,
    )


def _language(config: LanguageConfig) -> Tower:
    return Tower(
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.moe_intermediate_size or config.intermediate_size,
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        head_dim=config.head_dim,
        causal=True,
        experts=config.num_experts or 1,
        active_experts=config.num_experts_per_tok or 1,
    )
