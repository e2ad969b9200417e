"""Shapes and origins of the three parts of a model; plain values only, no torch.

A part comes from `path`, if that is set (a model folder or a run directory), else from a seeded random
initialisation. Its shapes are written here in either case, so that `plan` can cost a stage without weights;
a folder whose shapes differ is refused.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from sail_train.config import choice
from sail_train.model import ATTENTION, ENCODERS
from sail_train.visual import ImageSpec, VideoSpec

NORMS = {"rms": "RMSNorm", "layer": "LayerNorm"}
MIXTURE = {"qwen3": False, "qwen3_moe": True}
"""Whether the language models of the presets are mixtures of experts."""
REDUCTIONS = {"pixel_shuffle": "the patches of a square side by side", "avg_pool": "their mean"}


@dataclass(kw_only=True)
class VisionConfig:
    """The vision encoder."""

    type: str = "native"
    """A name in `sail_train.model.ENCODERS`: "native" (two-dimensional rotary positions, any size), "aimv2" (learned
    positions, interpolated to any size), or "transformers" (any vision model that transformers has)."""
    path: str | None = None
    """A model folder or run directory whose vision encoder is taken, or, with type "transformers", a folder of
    transformers' that has such a model in it; null: random initialisation."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    patch_size: int = 14
    """Side of a patch in pixels."""
    norm: str = "rms"
    """A name in `NORMS`. This field and those down to `final_norm` are of "native" and "aimv2"; a model of
    transformers has its own in `model`."""
    norm_eps: float = 1e-5
    gated_mlp: bool = True
    """Whether the MLP has a gate (three matrices, SwiGLU) or is plain (two); FLOPs of "transformers" go by it too."""
    hidden_act: str = "silu"
    """Activation of the MLP, by transformers' name."""
    bias: bool = False
    """Whether the layers' matrices have biases; the patch embedding always has one."""
    final_norm: bool = True
    """Whether the last layer's output is normalised."""
    select_layer: int = -1
    """Whose output the features are: -1 is the last layer's, normalised; other layers' are taken as they are, and
    "native" and "aimv2" have no layers behind them."""
    rope_theta: float = 10_000.0
    """native: base of the rotary embedding. aimv2: of the sinusoids as which a random table of positions starts."""
    position_grid: int = 32
    """aimv2: side, in patches, of the table of learned positions; other sizes resample it."""
    image_mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    """Of each channel, on a scale of 0 to 1; subtracted in the model, since patches travel as bytes."""
    image_std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    initializer_range: float = 0.02
    """Standard deviation of random weights; small models learn sooner with more, about 1 / sqrt(hidden_size)."""
    model: dict[str, Any] = field(default_factory=dict)
    """transformers: `model_type` and what else its config needs beside the sizes above."""

    def __post_init__(self) -> None:
        choice("type", self.type, ENCODERS)
        choice("norm", self.norm, NORMS)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        if self.type == "native" and self.head_dim % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of 4 x num_attention_heads="
                f"{4 * self.num_attention_heads}: rotary embedding turns pairs for rows and pairs for columns"
            )
        if (self.type == "transformers") != bool(self.model.get("model_type")):
            raise ValueError(
                f"type={self.type!r}, model={self.model}: model.model_type is set for 'transformers' alone"
            )
        if self.position_grid < 1:
            raise ValueError(f"position_grid={self.position_grid} must be at least 1 patch")
        for name in ("image_mean", "image_std"):
            if len(values := getattr(self, name)) != 3:
                raise ValueError(f"{name}={values} must have three values, one per channel")
        if not -self.num_hidden_layers <= self.select_layer <= -1:
            raise ValueError(
                f"select_layer={self.select_layer} must count from the last layer's -1 down to the first's "
                f"{-self.num_hidden_layers}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def depth(self) -> int:
        """Layers whose output reaches the features."""
        return self.num_hidden_layers + 1 + self.select_layer


@dataclass(kw_only=True)
class AdapterConfig:
    """Reduction of neighbouring patches and a two-layer MLP between vision encoder and language model."""

    path: str | None = None
    """A model folder or run directory whose adapter is taken; null: random initialisation."""
    merge_size: int = 2
    """Side, in patches, of the square that becomes one token."""
    reduction: str = "pixel_shuffle"
    """A name in `REDUCTIONS`: SAIL-VL2 shuffles, Seed1.5-VL pools."""
    hidden_size: int | None = None
    """Width between the two layers; null: the language model's."""
    initializer_range: float = 0.02
    """Standard deviation of random weights."""

    def __post_init__(self) -> None:
        choice("reduction", self.reduction, REDUCTIONS)


@dataclass(kw_only=True)
class LanguageConfig:
    """The language model: Qwen3, dense or mixture of experts, or any causal one of transformers."""

    model_type: str = "qwen3"
    """transformers' name of the architecture: "qwen3", "qwen3_moe" or any decoder whose attention can be replaced. One
    that no test compares is probed when it is built, and refused if packing would train another model."""
    path: str | None = None
    """A Hugging Face folder, a sail_vl model folder or a run directory; null: random initialisation."""
    tokenizer: str | None = None
    """Folder of the tokenizer; null: that of `path`."""
    hidden_size: int
    intermediate_size: int
    """Of a dense layer's MLP."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    vocab_size: int | None = None
    """Rows of the embedding, if more than the tokenizer has tokens; Qwen3's are 151,936."""
    rope_theta: float = 1_000_000.0
    rope_scaling: dict[str, Any] | None = None
    """For contexts longer than those of pre-training, in transformers' terms, e.g. {rope_type: yarn, factor: 4.0,
    original_max_position_embeddings: 32768}. Not "dynamic" or "longrope": their angles depend on a row's length, and
    samples share rows."""
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    max_position_embeddings: int = 32_768
    """Longest sequence that the model is meant for; nothing is allocated for it."""
    num_experts: int | None = None
    """Of each layer of a mixture of experts; null: dense."""
    num_experts_per_tok: int | None = None
    moe_intermediate_size: int | None = None
    """Width of one expert."""
    router_aux_loss_coef: float = 0.001
    """Weight of the loss that balances the experts' load (`loops.balance`); 0: none, the load is only reported."""
    initializer_range: float = 0.02
    """Standard deviation of random weights."""
    model: dict[str, Any] = field(default_factory=dict)
    """What else the architecture's transformers config needs."""

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads={self.num_attention_heads} must be a multiple of "
                f"num_key_value_heads={self.num_key_value_heads}"
            )
        experts = (self.num_experts, self.num_experts_per_tok, self.moe_intermediate_size)
        if any(experts) and not all(experts):
            raise ValueError(
                f"num_experts={experts[0]}, num_experts_per_tok={experts[1]}, moe_intermediate_size={experts[2]}: "
                "a mixture of experts needs all three, a dense model none"
            )
        if self.model_type in MIXTURE and bool(self.num_experts) != MIXTURE[self.model_type]:
            wanted = "needs" if MIXTURE[self.model_type] else "has no"
            raise ValueError(
                f"model_type={self.model_type!r} {wanted} num_experts, which is {self.num_experts}; set "
                "model_type=qwen3_moe with num_experts, num_experts_per_tok and moe_intermediate_size, or none of them"
            )
        if self.num_experts and self.num_experts_per_tok and self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok={self.num_experts_per_tok} exceeds num_experts={self.num_experts}")
        if self.router_aux_loss_coef < 0:
            raise ValueError(f"router_aux_loss_coef={self.router_aux_loss_coef} must be 0 (no balancing) or more")

    @property
    def tokenizer_path(self) -> str:
        """Folder of the tokenizer; ValueError if neither `tokenizer` nor `path` is set."""
        folder = self.tokenizer or self.path
        if not folder:
            raise ValueError("language.tokenizer and language.path are both null; set one: a tokenizer is needed")
        return folder


@dataclass(kw_only=True)
class ImageConfig:
    """How images become pictures and tokens; the fields of `visual.ImageSpec` that no part decides."""

    mode: str = "native"
    """"native": resized to its own shape; "tile": square tiles and a thumbnail."""
    min_pixels: int = 28 * 28
    max_pixels: int = 1792 * 1792
    max_aspect_ratio: float = 200.0
    tile_size: int = 448
    """Side of a tile in pixels."""
    min_tiles: int = 1
    max_tiles: int = 10
    """Most tiles of one image; a source may set its own."""
    max_total_tiles: int = 64
    """Most tiles of a sample's images together."""
    thumbnail: bool = True
    multi_scale: bool = False


@dataclass(kw_only=True)
class VideoConfig:
    """Which frames of a video are looked at; the fields of `visual.VideoSpec`."""

    mode: str = "dynamic"
    """"dynamic": Seed1.5-VL's frame rate and resolution within a budget; "uniform": a fixed number of frames."""
    fps: float = 1.0
    levels: list[int] = field(default_factory=lambda: [640, 512, 384, 256, 160, 128])
    max_tokens: int = 81_920
    min_frames: int = 16
    num_frames: int = 16
    frame_pixels: int = 448 * 448
    max_videos: int = 8


@dataclass(kw_only=True)
class ModelConfig:
    """The whole model."""

    vision: VisionConfig
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    language: LanguageConfig
    image: ImageConfig = field(default_factory=ImageConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    template: str = "qwen3"
    """Chat style, a name in `sail_train.processor.STYLES`."""
    attention: str = "auto"
    """Kernel of packed attention, a name in `sail_train.model.ATTENTION`; "auto": the best that runs here."""

    def __post_init__(self) -> None:
        choice("attention", self.attention, {"auto": "", **ATTENTION})
        _ = self.image_spec, self.video_spec
        side = self.image.tile_size // self.vision.patch_size
        if self.vision.type == "aimv2" and self.image.mode == "tile" and side != self.vision.position_grid:
            raise ValueError(
                f"image.tile_size={self.image.tile_size} makes tiles of {side} x {side} patches, vision.position_grid="
                f"{self.vision.position_grid}; they must agree, or image.mode be 'native' to interpolate positions"
            )

    @property
    def image_spec(self) -> ImageSpec:
        """How images become patches and tokens; the processor is built with the same values."""
        return ImageSpec(patch_size=self.vision.patch_size, merge_size=self.adapter.merge_size, **asdict(self.image))

    @property
    def video_spec(self) -> VideoSpec:
        values = asdict(self.video)
        return VideoSpec(**{**values, "levels": tuple(values["levels"])})
