"""Settings of the processor; plain values only, so that a typo is answered before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sail_train.config import choice, to_dataclass
from sail_train.processor.style import STYLES
from sail_train.visual import ImageSpec, VideoSpec


@dataclass(kw_only=True)
class ProcessorConfig:
    """From which tokenizer a processor is built, how it cuts images and videos, and how it writes a chat."""

    tokenizer: str
    """Folder with a fast tokenizer; the image and thought tokens that it lacks are added."""
    image: dict[str, Any] = field(default_factory=dict)
    """Fields of `visual.ImageSpec`; what is left out has its default."""
    video: dict[str, Any] = field(default_factory=dict)
    """Fields of `visual.VideoSpec`."""
    template: str = "qwen3"
    """Chat style, a name in `sail_train.processor.STYLES`."""
    system: str | None = None
    """System message for conversations that bring none; null: the style's; empty: none at all."""

    def __post_init__(self) -> None:
        if not self.tokenizer:
            raise ValueError("tokenizer='' names no folder; set model.language.tokenizer or model.language.path")
        choice("template", self.template, STYLES)
        _ = self.image_spec, self.video_spec

    @property
    def image_spec(self) -> ImageSpec:
        return to_dataclass(ImageSpec, self.image, path="image")

    @property
    def video_spec(self) -> VideoSpec:
        return to_dataclass(VideoSpec, self.video, path="video")
