"""Conversations with images and videos -> token ids, labels, patches and grids: training, evaluation, RL, inference.

`measure` and `encode` make a training sample from headers alone, and `pixels` decodes one of its images or videos;
`prompt` does all of it for a request. Calling the processor does what transformers' processors do
(`processor.inputs`), for `generate(**processor(...))`.
There is no transformers image processor inside: the combined ones need torchvision.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from transformers import BatchFeature, PreTrainedTokenizerBase
from transformers.processing_utils import ProcessorMixin

from sail_train.config import choice, to_dataclass, to_mapping
from sail_train.processor import STYLES, inputs, visuals
from sail_train.processor.config import ProcessorConfig
from sail_train.processor.jinja import chat_template as jinja_template
from sail_train.processor.pieces import PieceEncoder, place
from sail_train.processor.style import END_OF_TEXT, IMAGE_TOKEN, TURN_END
from sail_train.processor.template import MODE_THINK, Piece, check_think, generation_prompt, render
from sail_train.processor.tokenizer import fit_tokenizer, load_tokenizer
from sail_train.types import IGNORE_INDEX, BadSample, Conversation, Encoded, Prompt, Visual
from sail_train.visual import ImageSpec, VideoSpec

_SAVED = ("image", "video", "template", "system")
"""What processor_config.json says beside the tokenizer."""
_FORMER = ("patch_size", "merge_size", "min_pixels", "max_pixels")
"""What it said before there were tiles and videos."""


class SailVLProcessor(ProcessorMixin):
    """Tokenizer, chat style, images and videos in one; saved and loaded like any transformers processor."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image: dict[str, Any] | None = None,
        video: dict[str, Any] | None = None,
        template: str = "qwen3",
        system: str | None = None,
        chat_template: str | None = None,
    ) -> None:
        """`image` and `video` are fields of `ImageSpec` and `VideoSpec`, `template` is a name in `STYLES`.

        `chat_template` is ignored: a folder's template could differ from what the model was trained on.
        """
        self.style = choice("template", template, STYLES)
        jinja = jinja_template(self.style, system)
        super().__init__(fit_tokenizer(tokenizer, self.style), chat_template=jinja)
        self.tokenizer.chat_template = jinja
        self.image_spec: ImageSpec = to_dataclass(ImageSpec, image or {}, path="image")
        self.video_spec: VideoSpec = to_dataclass(VideoSpec, video or {}, path="video")
        self.template, self.system = template, system
        self._ids = {token: self.tokenizer.convert_tokens_to_ids(token) for token in self.style.control_tokens}
        self._pieces = PieceEncoder(self.tokenizer.backend_tokenizer, self._ids)

    @property
    def patch_size(self) -> int:
        return self.image_spec.patch_size

    @property
    def merge_size(self) -> int:
        return self.image_spec.merge_size

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
        specs = {"image": to_mapping(self.image_spec), "video": to_mapping(self.video_spec)}
        return {"processor_class": type(self).__name__, **specs, "template": self.template, "system": self.system}

    @classmethod
    def from_args_and_dict(cls, args: Any, processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As transformers' own, which would leave out fields that it does not know."""
        _check_fields(processor_dict)
        return super().from_args_and_dict(args, processor_dict, **kwargs)

    def measure(self, conversation: Conversation) -> tuple[Visual, ...]:
        """The conversation's images and videos in order, from their headers; raises as `visuals.measure`."""
        return visuals.measure(conversation, self.image_spec, self.video_spec)

    def pixels(self, visual: Visual) -> np.ndarray:
        """(P, patch_dim) uint8 patches of a measured image or video; BadSample if it does not decode as promised."""
        return visuals.pixels(visual, self.image_spec)

    def encode(self, conversation: Conversation, *, flag: bool = False) -> Encoded:
        """A training sample; its images and videos stay undecoded.

        `flag` asks for the think mode that the conversation's `mode` is of, as a prompt would. BadSample: what
        `measure` refuses, "no_trained_token", "bad_mode", or what the template refuses.
        """
        if conversation.mode not in MODE_THINK:
            raise BadSample("bad_mode", f"{conversation.mode!r} is none of think, direct, null")
        think = MODE_THINK[conversation.mode] if flag else "auto"
        pieces = render(conversation.messages, self.style, system=self.system, think=think)
        measured = self.measure(conversation)
        ids, trained = self._tokenize(pieces, measured)
        if not trained.any():
            raise BadSample("no_trained_token", "no assistant's turn to train on")
        labels = np.full(len(ids), IGNORE_INDEX, dtype=np.int32)
        labels[:-1][trained[1:]] = ids[1:][trained[1:]]
        return Encoded(key=conversation.key, source=conversation.source, input_ids=ids, labels=labels, visuals=measured)

    def encode_prompt(
        self,
        conversation: Conversation,
        *,
        think: str = "auto",
        force: bool = False,
        measured: Sequence[Visual] | None = None,
    ) -> np.ndarray:
        """(T,) int32 ids of a request for the last answer, the assistant's header included.

        Args:
            think: "on" asks for a thought, "off" for none, in the style's way; "auto" does not ask.
            force: whether the answer's opening that fits is written too (`opening`).
            measured: what `measure` gave, where it is known already.
        """
        check_think(think)
        pieces = render(conversation.prompt, self.style, system=self.system, think=think)
        pieces += generation_prompt(self.style, think, force=force)
        return self._tokenize(pieces, self.measure(conversation) if measured is None else measured)[0]

    def prompt(self, conversation: Conversation, *, uid: str, think: str = "auto", force: bool = False) -> Prompt:
        """A request for the conversation's last answer, images and videos decoded; BadSample if one cannot be."""
        measured = self.measure(conversation)
        return Prompt(
            uid=uid,
            input_ids=self.encode_prompt(conversation, think=think, force=force, measured=measured),
            patches=visuals.join([self.pixels(visual) for visual in measured], self.image_spec),
            grids=tuple(grid for visual in measured for grid in visual.grids),
        )

    def opening(self, think: str) -> str:
        """What a forced prompt already holds of the answer; it belongs to the answer's text."""
        check_think(think)
        return self.style.opening(think)

    def decode(self, ids: Any, skip_special_tokens: bool = True, **kwargs: Any) -> str:
        """Text of token ids: control tokens left out, thought tags kept."""
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        audio: None = None,
        *,
        return_tensors: str | None = "pt",
        **options: Any,
    ) -> BatchFeature:
        """Left-padded model inputs of rendered texts, each with one "<image>" per image and "<video>" per video.

        Args:
            text: one text or several, as `apply_chat_template` renders them.
            images: PIL images, bytes or file paths in the order of their placeholders, flat or one list per text.
            videos: bytes or file paths, likewise.
            return_tensors: "pt", "np" or None.
            options: `padding` (default True), `truncation`, `max_length`, `max_tiles`, `fps`; see `inputs.prepare`.

        ValueError where placeholders and files differ in number, or where truncation would cut an image.
        """
        if audio is not None:
            raise ValueError("audio is not read; leave it out")
        if text is None:
            raise ValueError("text is missing; render messages with apply_chat_template")
        texts = [text] if isinstance(text, str) else list(text)
        data = inputs.prepare(self, texts, images=images, videos=videos, **options)
        return BatchFeature(data, tensor_type=return_tensors)

    def _tokenize(self, pieces: Sequence[Piece], measured: Sequence[Visual]) -> tuple[np.ndarray, np.ndarray]:
        """((T,) int32 ids, (T,) bool trained)."""
        return self._pieces.encode(place(pieces, measured, self.style, merge_size=self.image_spec.merge_size))


def build_processor(config: ProcessorConfig) -> SailVLProcessor:
    """The processor of a config; ValueError if its tokenizer folder is not there or does not fit."""
    folder = Path(config.tokenizer)
    if not folder.is_dir():
        raise ValueError(f"tokenizer={config.tokenizer!r} is not a folder")
    tokenizer = load_tokenizer(folder)
    return SailVLProcessor(tokenizer, config.image, config.video, config.template, config.system)


def load_processor(directory: str | Path) -> SailVLProcessor:
    """The processor saved in a model folder; ValueError if there is none."""
    if not (Path(directory) / "processor_config.json").is_file():
        raise ValueError(f"{directory} holds no processor (processor_config.json)")
    try:
        values = json.loads((Path(directory) / "processor_config.json").read_text())
        _check_fields(values)
        fields = {name: values[name] for name in _SAVED if name in values}
        return build_processor(to_dataclass(ProcessorConfig, {"tokenizer": str(directory), **fields}))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory} holds no processor that loads: {error}") from error


def _check_fields(values: dict[str, Any]) -> None:
    if former := [name for name in _FORMER if name in values]:
        raise ValueError(
            f"processor_config.json has {', '.join(former)} at its top, as earlier versions wrote it; move them under "
            '"image", as in {"image": {"patch_size": 14, ...}}'
        )
