"""Conversations and images -> token ids, labels, patches and grids: training, evaluation, RL and inference alike.

`encode` measures and labels a training sample from image sizes alone; `prompt` decodes the images of a request;
calling the processor does what transformers' processors do, for `generate(**processor(...))`.
There is no transformers image processor inside: the combined ones need torchvision.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from transformers import BatchFeature, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.processing_utils import ProcessorMixin

from sail_train.processor.config import ProcessorConfig
from sail_train.processor.images import open_image, to_rgb
from sail_train.processor.patches import patchify
from sail_train.processor.pieces import PieceEncoder
from sail_train.processor.template import (
    IMAGE_PLACEHOLDER,
    MODE_THINK,
    Piece,
    chat_template,
    check_think,
    generation_prompt,
    render,
)
from sail_train.processor.tokenizer import (
    END_OF_TEXT,
    IMAGE_END,
    IMAGE_START,
    IMAGE_TOKEN,
    SPECIAL_TOKENS,
    TURN_END,
    fit_tokenizer,
)
from sail_train.types import IGNORE_INDEX, BadSample, Conversation, Encoded, ImageSpec, Message, Prompt

Size = tuple[int, int]
"""(height, width) in pixels of an upright image."""


class SailVLProcessor(ProcessorMixin):
    """Tokenizer, chat template and image patches in one; saved and loaded like any transformers processor."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        patch_size: int = 14,
        merge_size: int = 2,
        min_pixels: int = 28 * 28,
        max_pixels: int = 1792 * 1792,
        system: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        """`chat_template` is ignored: a folder's template could differ from what the model was trained on."""
        template = _chat_template(system)
        super().__init__(fit_tokenizer(tokenizer), chat_template=template)
        self.tokenizer.chat_template = template
        self.patch_size, self.merge_size = patch_size, merge_size
        self.min_pixels, self.max_pixels = min_pixels, max_pixels
        self.system = system
        self._ids = {token: self.tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
        self._pieces = PieceEncoder(self.tokenizer.backend_tokenizer, self._ids)

    @property
    def image_spec(self) -> ImageSpec:
        return ImageSpec(
            patch_size=self.patch_size,
            merge_size=self.merge_size,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )

    @property
    def image_token_id(self) -> int:
        return self._ids[IMAGE_TOKEN]

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        return self._ids[TURN_END], self._ids[END_OF_TEXT]

    @property
    def token_ids(self) -> dict[str, int]:
        """The ids that a model's config needs: image, eos and pad."""
        return {
            "image": self.image_token_id,
            "eos": self.tokenizer.eos_token_id,
            "pad": self.tokenizer.pad_token_id,
        }

    @property
    def vocab_size(self) -> int:
        """Rows that a model's embedding needs."""
        return len(self.tokenizer)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "patches", "grids"]

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds; the tokenizer and the template have files of their own."""
        names = ("patch_size", "merge_size", "min_pixels", "max_pixels", "system")
        return {"processor_class": type(self).__name__, **{name: getattr(self, name) for name in names}}

    def encode(self, conversation: Conversation, sizes: Sequence[Size], *, flag: bool = False) -> Encoded:
        """A training sample from its text and the sizes of its images, in order.

        `flag` appends the think flag of the conversation's mode. BadSample: "image_count" (images and image parts
        differ), "no_trained_token", "bad_mode", or what the template refuses.
        """
        if conversation.mode not in MODE_THINK:
            raise BadSample("bad_mode", f"{conversation.mode!r} is none of think, direct, null")
        think = MODE_THINK[conversation.mode] if flag else "auto"
        pieces = render(conversation.messages, system=self.system, think=think)
        ids, trained = self._tokenize(pieces, sizes)
        if not trained.any():
            raise BadSample("no_trained_token", "no assistant's turn to train on")
        labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int32)
        labels[:-1][trained[1:]] = ids[1:][trained[1:]]
        return Encoded(
            key=conversation.key,
            source=conversation.source,
            input_ids=ids,
            labels=labels,
            grids=tuple(self.image_spec.grid(*size) for size in sizes),
            images=conversation.images,
        )

    def encode_prompt(
        self, messages: Sequence[Message], sizes: Sequence[Size], *, think: str = "auto", force: bool = False
    ) -> np.ndarray:
        """(T,) int32 ids of a request, the assistant's header included; see `template.FLAGS` and `PREFIXES`."""
        check_think(think)
        pieces = render(messages, system=self.system, think=think) + generation_prompt(think, force=force)
        return self._tokenize(pieces, sizes)[0]

    def prompt(self, conversation: Conversation, *, uid: str, think: str = "auto", force: bool = False) -> Prompt:
        """A request for the conversation's last answer, images decoded; BadSample if one cannot be."""
        images = [open_image(data) for data in conversation.images]
        ids = self.encode_prompt(conversation.prompt, [(i.height, i.width) for i in images], think=think, force=force)
        patches, grids = self._patchify_all(images)
        return Prompt(uid=uid, input_ids=ids, patches=patches, grids=grids)

    def patchify(self, image: Image.Image) -> tuple[np.ndarray, tuple[int, int]]:
        """((P, patch_dim) uint8, (patch rows, patch columns)) of an upright image."""
        return patchify(to_rgb(image), self.image_spec)

    def decode(self, ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> str:
        """Text of token ids: control tokens left out, thought tags kept."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def __call__(
        self,
        text: str | Sequence[str] | None = None,
        images: Any = None,
        videos: None = None,
        audio: None = None,
        *,
        padding: bool = True,
        return_tensors: str | None = "pt",
        add_special_tokens: bool = False,
    ) -> BatchFeature:
        """Left-padded model inputs of rendered texts, each with one "<image>" per image.

        `images` are PIL images, bytes or file paths in the order of their placeholders, flat or one list per text.
        ValueError where placeholders and images differ in number.
        """
        if videos is not None or audio is not None:
            raise ValueError("videos and audio are not read; give a video as its frames, in `images`")
        if text is None:
            raise ValueError("text is missing; render messages with apply_chat_template")
        texts = [text] if isinstance(text, str) else list(text)
        patches, grids = self._patchify_all([_as_image(image) for image in _flat(images)])
        inputs = self.tokenizer(self._expand(texts, grids), padding=padding, add_special_tokens=add_special_tokens)
        data = {
            "input_ids": inputs["input_ids"],
            "attention_mask": inputs["attention_mask"],
            "patches": patches,
            "grids": np.asarray(grids, dtype=np.int64).reshape(-1, 2),
        }
        return BatchFeature(data, tensor_type=return_tensors)

    def _expand(self, texts: Sequence[str], grids: Sequence[tuple[int, int]]) -> list[str]:
        """Texts with each "<image>" replaced by as many image tokens as its grid has."""
        if (found := sum(text.count(IMAGE_PLACEHOLDER) for text in texts)) != len(grids):
            raise ValueError(f"the texts have {found} {IMAGE_PLACEHOLDER} placeholders for {len(grids)} images")
        tokens = iter(IMAGE_START + IMAGE_TOKEN * (r * c // self.merge_size**2) + IMAGE_END for r, c in grids)
        expanded = []
        for text in texts:
            head, *tails = text.split(IMAGE_PLACEHOLDER)
            expanded.append(head + "".join(next(tokens) + tail for tail in tails))
        return expanded

    def _patchify_all(self, images: Iterable[Image.Image]) -> tuple[np.ndarray, tuple[tuple[int, int], ...]]:
        parts = [self.patchify(image) for image in images]
        empty = np.zeros((0, self.image_spec.patch_dim), dtype=np.uint8)
        return np.concatenate([empty, *(patches for patches, _ in parts)]), tuple(grid for _, grid in parts)

    def _tokenize(self, pieces: Sequence[Piece], sizes: Sequence[Size]) -> tuple[np.ndarray, np.ndarray]:
        """((T,) int32 ids, (T,) bool trained) of pieces whose images have `sizes`."""
        return self._pieces.encode(pieces, [self.image_spec.num_tokens(*size) for size in sizes])


def build_processor(config: ProcessorConfig) -> SailVLProcessor:
    """The processor of a config; ValueError if its tokenizer folder is not there or does not fit."""
    folder = Path(config.tokenizer)
    if not folder.is_dir():
        raise ValueError(f"tokenizer={config.tokenizer!r} is not a folder")
    try:
        # Not AutoTokenizer: beside a model's config.json it warns about a model type that it does not need.
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"tokenizer={config.tokenizer!r} holds no tokenizer that loads: {error}") from error
    return SailVLProcessor(
        tokenizer,
        patch_size=config.patch_size,
        merge_size=config.merge_size,
        min_pixels=config.min_pixels,
        max_pixels=config.max_pixels,
        system=config.system,
    )


_SAVED = ("patch_size", "merge_size", "min_pixels", "max_pixels", "system")
"""What processor_config.json says beside the tokenizer."""


def load_processor(directory: str | Path) -> SailVLProcessor:
    """The processor saved in a model folder; ValueError if there is none."""
    if not (Path(directory) / "processor_config.json").is_file():
        raise ValueError(f"{directory} holds no processor (processor_config.json)")
    try:
        values = json.loads((Path(directory) / "processor_config.json").read_text())
        fields = {name: values[name] for name in _SAVED if name in values}
        return build_processor(ProcessorConfig(tokenizer=str(directory), **fields))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{directory} holds no processor that loads: {error}") from error


_chat_template = chat_template
"""The function, within `__init__`, whose argument of the same name is transformers' convention."""


def _flat(images: Any) -> list[Any]:
    if images is None:
        return []
    if not isinstance(images, (list, tuple)):
        return [images]
    return [image for entry in images for image in _flat(entry)]


def _as_image(image: Any) -> Image.Image:
    if isinstance(image, Image.Image):
        return image
    if isinstance(image, bytes):
        return open_image(image)
    if isinstance(image, (str, Path)) and Path(image).is_file():
        return open_image(Path(image).read_bytes())
    raise ValueError(f"{str(image)[:100]!r} is no image: give a PIL image, bytes, or the path of a local file")
