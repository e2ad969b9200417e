"""The vision-language model as a transformers model.

patches -> vision encoder -> adapter -> put in place of the image tokens' embeddings -> language model. Its forward
takes what `SailVLProcessor` returns and works with `generate`; training goes through `model.packed.PackedLM`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from sail_train.model.adapter import Adapter
from sail_train.model.attention import PACKED_ATTENTION, register
from sail_train.model.hf_config import SailVLConfig, check_attention
from sail_train.model.language import build_language, decoder_layers
from sail_train.model.vision import Grids, build_encoder

register()


class SailVLForConditionalGeneration(PreTrainedModel, GenerationMixin):
    config: SailVLConfig
    config_class = SailVLConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_attention_backend = True

    def __init__(self, config: SailVLConfig) -> None:
        check_attention(config._attn_implementation)
        config._attn_implementation = None  # a caller's; transformers would load a kernel for it
        super().__init__(config)
        vision, text = config.vision_config, config.text_config
        text._attn_implementation = PACKED_ATTENTION
        self.vision: Any = build_encoder(vision, config.merge_size, attention=config.attention)
        self.adapter = Adapter(
            vision.hidden_size,
            config.merge_size,
            config.adapter_hidden_size or text.hidden_size,
            text.hidden_size,
            reduction=config.reduction,
        )
        self.language_model = build_language(text, never=config.image_token_id)
        self._no_split_modules = [*self._no_split_modules, *decoder_layers(self.language_model)]
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.language_model.get_output_embeddings()

    def embed(self, input_ids: Tensor, patches: Tensor | None = None, grids: Tensor | None = None) -> Tensor:
        """(..., H) embeddings of (...) ids, image tokens replaced by the features of the images, in order.

        `patches` (P, patch_dim) uint8 and `grids` (num_images, 2); ValueError if features and image tokens differ
        in number.
        """
        embeddings = self.get_input_embeddings()(input_ids)
        where = (input_ids == self.config.image_token_id).flatten().nonzero()[:, 0]  # (image tokens,)
        sizes = [] if grids is None else grids.tolist()
        self._check_counts(sizes, 0 if patches is None else len(patches), len(where))
        if not sizes:
            return embeddings
        assert patches is not None
        features = self.image_features(patches, tuple((rows, cols) for rows, cols in sizes))
        flat = embeddings.flatten(0, -2).index_copy(0, where, features.to(embeddings.dtype))
        return flat.view_as(embeddings)

    def image_features(self, patches: Tensor, grids: Grids) -> Tensor:
        """(image tokens, H) of all images."""
        return self.adapter(self.vision(patches, grids))

    def dummy_features(self, device: torch.device) -> Tensor:
        """Features of one blank picture, the smallest: what a batch without images passes through, times zero."""
        rows, cols = self.vision.blank_grid
        patches = torch.zeros(
            rows * cols, 3 * self.config.vision_config.patch_size**2, dtype=torch.uint8, device=device
        )  # fmt: skip
        return self.image_features(patches, ((rows, cols),))

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: Tensor | None = None,
        patches: Tensor | None = None,
        grids: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits of a padded batch (B, T); `labels` as in transformers (unshifted), for a mean loss."""
        if inputs_embeds is None:
            if input_ids is None:
                raise ValueError("input_ids and inputs_embeds are both missing; give one")
            inputs_embeds = self.embed(input_ids, patches, grids)
        if position_ids is None and past_key_values is None and attention_mask is not None and attention_mask.ndim == 2:
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)  # left padding shifts no position
        return self.language_model(
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """With a cache, images enter with the prompt alone: afterwards their keys and values are in it."""
        if kwargs.get("use_cache", True) and not kwargs.get("is_first_iteration", False):
            kwargs["patches"] = kwargs["grids"] = None
        return super().prepare_inputs_for_generation(input_ids, **kwargs)  # type: ignore[arg-type,misc]

    def _expand_inputs_for_generation(  # type: ignore[override]
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        patches: Tensor | None = None,
        grids: Tensor | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Repeats each row, and with it the images of the row."""
        if expand_size > 1 and grids is not None and len(grids) and input_ids is not None:
            assert patches is not None
            patches, grids = self._repeat_images(input_ids, patches, grids, expand_size)
        input_ids, kwargs = super()._expand_inputs_for_generation(  # type: ignore[misc]
            expand_size,
            is_encoder_decoder,
            input_ids,  # type: ignore[arg-type]
            **kwargs,
        )
        return input_ids, {**kwargs, "patches": patches, "grids": grids}

    def _repeat_images(self, input_ids: Tensor, patches: Tensor, grids: Tensor, times: int) -> tuple[Tensor, Tensor]:
        tokens = (input_ids == self.config.image_token_id).sum(-1).cumsum(0)  # (B,) up to the end of each row
        ends = grids.prod(-1).cumsum(0) // self.config.merge_size**2  # (num_images,) up to the end of each image
        row = torch.searchsorted(tokens, ends)  # (num_images,) row that holds each image
        images = [(row == i).nonzero()[:, 0] for i in range(len(input_ids)) for _ in range(times)]
        order = torch.cat(images)
        pieces = patches.split(grids.prod(-1).tolist())
        return torch.cat([pieces[i] for i in order.tolist()]), grids[order]

    def _check_counts(self, sizes: list[list[int]], patches: int, tokens: int) -> None:
        merge = self.config.merge_size
        if any(rows % merge or cols % merge for rows, cols in sizes):
            raise ValueError(f"grids {sizes} are not whole multiples of merge_size={merge}")
        if (expected := sum(rows * cols for rows, cols in sizes)) != patches:
            raise ValueError(f"{patches} patches were given for grids {sizes}, which have {expected}")
        if (features := expected // merge**2) != tokens:
            raise ValueError(
                f"input_ids have {tokens} image tokens, but the images (grids {sizes}) give {features} features; "
                "processor and model must agree on patch_size and merge_size"
            )
