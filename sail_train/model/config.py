"""Shapes and origins of the three parts of a model; plain values only, no torch.

A part comes from `path`, if that is set (a model folder or a run directory), else from a seeded random
initialisation. Its shapes are written here in either case, so that `plan` can cost a stage without weights;
a folder whose shapes differ is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from sail_train.types import ImageSpec


@dataclass(kw_only=True)
class VisionConfig:
    """The native-resolution vision transformer."""

    path: str | None = None
    """A sail_vl model folder or run directory whose vision encoder is taken; null: random initialisation."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int = 14
    """Side of a patch in pixels."""
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    """Base of the two-dimensional rotary embedding."""
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Of each channel, on a scale of 0 to 1; subtracted in the model, since patches travel as bytes."""
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    initializer_range: float = 0.02
    """Standard deviation of random weights; small models learn sooner with more, about 1 / sqrt(hidden_size)."""

    def __post_init__(self) -> None:
        if self.hidden_size % (4 * self.num_attention_heads):
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of 4 x num_attention_heads="
                f"{4 * self.num_attention_heads}: rotary embedding turns pairs for rows and pairs for columns"
            )
        for name in ("image_mean", "image_std"):
            if len(values := getattr(self, name)) != 3:
                raise ValueError(f"{name}={values} must have three values, one per channel")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(kw_only=True)
class AdapterConfig:
    """Pixel shuffle and a two-layer MLP between vision encoder and language model."""

    path: str | None = None
    """A sail_vl model folder or run directory whose adapter is taken; null: random initialisation."""
    merge_size: int = 2
    """Side, in patches, of the square that becomes one token."""
    hidden_size: int | None = None
    """Width between the two layers; null: the language model's."""
    initializer_range: float = 0.02
    """Standard deviation of random weights."""


@dataclass(kw_only=True)
class LanguageConfig:
    """A Qwen3 language model."""

    path: str | None = None
    """A Hugging Face Qwen3 folder, a sail_vl model folder or a run directory; null: random initialisation."""
    tokenizer: str | None = None
    """Folder of the tokenizer; null: that of `path`."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    rope_theta: float = 1_000_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 32_768
    """Longest sequence that the model is meant for; nothing is allocated for it."""
    initializer_range: float = 0.02
    """Standard deviation of random weights."""

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )

    @property
    def tokenizer_path(self) -> str:
        """Folder of the tokenizer; ValueError if neither `tokenizer` nor `path` is set."""
        folder = self.tokenizer or self.path
        if not folder:
            raise ValueError("language.tokenizer and language.path are both null; set one: a tokenizer is needed")
        return folder


@dataclass(kw_only=True)
class ImageLimits:
    """Areas between which images are resized."""

    min_pixels: int = 28 * 28
    max_pixels: int = 1792 * 1792


@dataclass(kw_only=True)
class ModelConfig:
    """The whole model."""

    vision: VisionConfig
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    language: LanguageConfig
    image: ImageLimits = field(default_factory=ImageLimits)

    def __post_init__(self) -> None:
        _ = self.image_spec

    @property
    def image_spec(self) -> ImageSpec:
        """How images become patches and tokens; the processor is built with the same values."""
        return ImageSpec(
            patch_size=self.vision.patch_size,
            merge_size=self.adapter.merge_size,
            min_pixels=self.image.min_pixels,
            max_pixels=self.image.max_pixels,
        )
