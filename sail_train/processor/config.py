"""Settings of the processor; plain values only, so that a typo is answered before torch is imported."""

from __future__ import annotations

from dataclasses import dataclass

from sail_train.visual import ImageSpec


@dataclass(kw_only=True)
class ProcessorConfig:
    """From which tokenizer a processor is built, and how it cuts images."""

    tokenizer: str
    """Folder with a fast tokenizer; the image and thought tokens that it lacks are added."""
    patch_size: int = 14
    """Side of a patch in pixels; the vision encoder's."""
    merge_size: int = 2
    """Side, in patches, of the square that becomes one token; the adapter's."""
    min_pixels: int = 28 * 28
    """Smaller images are enlarged to about this area."""
    max_pixels: int = 1792 * 1792
    """Larger images are reduced to at most this area."""
    system: str | None = None
    """System message for conversations that bring none; null: they start with the user's turn."""

    def __post_init__(self) -> None:
        if not self.tokenizer:
            raise ValueError("tokenizer='' names no folder; set model.language.tokenizer or model.language.path")
        _ = self.image_spec

    @property
    def image_spec(self) -> ImageSpec:
        return ImageSpec(
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
