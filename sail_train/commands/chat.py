"""`sail-train chat`: a question about images, the thought and the answer shown as they are written.

Model folder -> processor's prompt (the same path as in training) -> transformers' `generate` -> text on the terminal.
Without a question it asks for one after the other and keeps the conversation.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from sail_train.job.lineage import model_folder
from sail_train.types import THINK_MODES, Conversation, Message, Part

if TYPE_CHECKING:
    from sail_train.model.vlm import SailVLForConditionalGeneration
    from sail_train.processor.processor import SailVLProcessor

TAGS = re.compile(r"(</?think>)")
THOUGHT_STYLE = "dim italic"

EPILOG = """\
examples:
  sail-train chat runs/tiny/mixed_rl --image x.png "How many sevens are there?" --think on
  sail-train chat runs/tiny/mixed_rl --image x.png            (asks for questions; an empty one ends)
"""


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    folder = model_folder(str(options.model), role="model")
    images = [_read_image(path) for path in options.image]
    console = Console(highlight=False)
    chat = Chat.load(folder, options)
    for question in _questions(options.question, console):
        chat.ask(question, images, console)
        images = []  # they stand in the first turn
    return 0


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="sail-train chat",
        description="Asks a model; its thought is shown dimmed, then its answer.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, help="a run directory or model folder")
    parser.add_argument("question", nargs="?", help="left out: questions are asked for, one after the other")
    parser.add_argument("--image", action="append", default=[], type=Path, help="an image file; may be given again")
    parser.add_argument("--think", choices=THINK_MODES, default="auto", help="ask it to think, not to, or leave it")
    parser.add_argument("--force", action="store_true", help="write the opening of the answer for it, not only ask")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at a temperature above 0")
    options = parser.parse_intermixed_args(arguments)
    if options.temperature < 0:
        parser.error(f"--temperature {options.temperature} must be 0 (greedy) or more")
    if options.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {options.max_new_tokens} must be at least 1")
    return options


def _read_image(path: Path) -> bytes:
    if not path.is_file():
        raise ValueError(f"--image {path}: no such file")
    return path.read_bytes()


def _questions(question: str | None, console: Console) -> Iterator[str]:
    """The one that was given, or those that are typed until an empty one or the end of input."""
    if question is not None:
        yield question
        return
    while True:
        try:
            typed = console.input("[bold]> [/bold]").strip()
        except EOFError:
            return
        if not typed:
            return
        yield typed


class Chat:
    """A model, and what was said so far."""

    def __init__(
        self, model: SailVLForConditionalGeneration, processor: SailVLProcessor, options: argparse.Namespace
    ) -> None:
        self.model: Any = model
        self.processor = processor
        self.options = options
        self.messages: tuple[Message, ...] = ()
        self.images: tuple[bytes, ...] = ()

    @classmethod
    def load(cls, folder: Path, options: argparse.Namespace) -> Chat:
        """The model of a folder, on the GPU if there is one."""
        import torch

        from sail_train import dist
        from sail_train.model.build import load_model
        from sail_train.processor.processor import load_processor

        torch.manual_seed(options.seed)
        model: Any = load_model(folder)
        return cls(model.to(dist.device()).eval(), load_processor(folder), options)

    def ask(self, question: str, images: Sequence[bytes], console: Console) -> str:
        """Streams the answer to the console and returns it, thought included."""
        parts = (*(Part(type="image") for _ in images), Part(type="text", text=question))
        self.messages += (Message(role="user", content=parts),)
        self.images += tuple(images)
        conversation = Conversation(key="chat", source="chat", messages=self.messages, images=self.images)
        prompt = self.processor.prompt(conversation, uid="chat", think=self.options.think, force=self.options.force)
        given = self.processor.opening(self.options.think) if self.options.force else ""
        stream = Stream(self.processor, console, given=given)
        self._generate(prompt, stream)
        self.messages += (Message(role="assistant", content=(Part(type="text", text=stream.text),)),)
        return stream.text

    def _generate(self, prompt: Any, stream: Stream) -> None:
        import numpy as np
        import torch

        device = self.model.device
        ids = torch.from_numpy(prompt.input_ids.astype(np.int64))[None].to(device)  # (1, T)
        sampled = self.options.temperature > 0
        self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            patches=torch.from_numpy(prompt.patches).to(device),
            grids=torch.tensor(prompt.grids, dtype=torch.int64, device=device).reshape(-1, 2),
            max_new_tokens=self.options.max_new_tokens,
            do_sample=sampled,
            temperature=self.options.temperature if sampled else None,
            top_p=None,
            top_k=None,
            eos_token_id=list(self.processor.stop_token_ids),
            pad_token_id=self.processor.tokenizer.pad_token_id,
            streamer=stream,
        )


class Stream:
    """A transformers streamer: shows what is new of the text, thoughts dimmed, tags left out."""

    def __init__(self, processor: SailVLProcessor, console: Console, *, given: str = "") -> None:
        self.processor = processor
        self.console = console
        self.text = given
        """What the assistant said, a forced opening included."""
        self._ids: list[int] | None = None
        self._shown = 0
        self._given = given
        self._thinking = given.count("<think>") > given.count("</think>")

    def put(self, value: Any) -> None:
        """Takes token ids; the first call brings the prompt's."""
        if self._ids is None:
            self._ids = []
            return
        self._ids += [int(token) for token in value.reshape(-1)]
        decoded = self.processor.decode(self._ids)
        if not decoded.endswith("\ufffd"):  # half of a character that takes several tokens
            self._show(decoded)

    def end(self) -> None:
        """Shows what was held back, and ends the line."""
        self._show(self.processor.decode(self._ids or []))
        self.console.print()

    def _show(self, decoded: str) -> None:
        for piece in TAGS.split(decoded[self._shown :]):
            if piece in ("<think>", "</think>"):
                self._thinking = piece == "<think>"
            elif piece:
                self.console.print(Text(piece, style=THOUGHT_STYLE if self._thinking else ""), end="", soft_wrap=True)
        self._shown = len(decoded)
        self.text = self._given + decoded
