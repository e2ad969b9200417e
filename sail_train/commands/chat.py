"""`sail-train chat`: a question about images and videos, the thought and the answer shown as they are written.

Model folder -> processor's prompt (the same path as in training) -> a session of the generator, a token at a time ->
thought and answer on the terminal. Without a question it asks for one after the other and keeps the conversation.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from sail_train.job.lineage import model_folder
from sail_train.types import THINK_MODES, Conversation, Message, Part, Sampling

if TYPE_CHECKING:
    from sail_train.generate.session import Session
    from sail_train.processor.processor import SailVLProcessor
    from sail_train.serve.answer import Piece

THOUGHT_STYLE = "dim italic"
DTYPES = ("auto", "float32", "bfloat16", "float16")

EPILOG = """\
examples:
  sail-train chat runs/tiny/mixed_rl --image x.png "How many sevens are there?" --think on
  sail-train chat runs/tiny/mixed_rl --image x.png            (asks for questions; an empty one ends)
  sail-train chat out/model --image a.png --image b.png "What differs?"
  sail-train chat out/model --video clip.mp4 "What happens?"
"""


def run(arguments: list[str]) -> int:
    """The command; returns its exit code."""
    options = _parse(arguments)
    folder = model_folder(str(options.model), role="model")
    images = [_read(path, "--image") for path in options.image]
    videos = [_read(path, "--video") for path in options.video]
    console = Console(highlight=False)
    chat = Chat.load(folder, options)
    for question in _questions(options.question, console):
        chat.ask(question, console, images=images, videos=videos)
        images, videos = [], []  # they stand in the first turn
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
    parser.add_argument("--video", action="append", default=[], type=Path, help="a video file; may be given again")
    parser.add_argument("--think", choices=THINK_MODES, default="auto", help="ask it to think, not to, or leave it")
    parser.add_argument("--force", action="store_true", help="write the opening of the answer for it, not only ask")
    parser.add_argument("--temperature", type=float, default=0.0, help="0, the default, is greedy")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 on a GPU, else float32")
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn at a temperature above 0")
    options = parser.parse_intermixed_args(arguments)
    if options.temperature < 0:
        parser.error(f"--temperature {options.temperature} must be 0 (greedy) or more")
    if options.max_new_tokens < 1:
        parser.error(f"--max-new-tokens {options.max_new_tokens} must be at least 1")
    return options


def _read(path: Path, option: str) -> bytes:
    if not path.is_file():
        raise ValueError(f"{option} {path}: no such file")
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

    def __init__(self, session: Session, processor: SailVLProcessor, options: argparse.Namespace) -> None:
        self.session = session
        self.processor = processor
        self.options = options
        self.messages: tuple[Message, ...] = ()
        self.images: tuple[bytes, ...] = ()
        self.videos: tuple[bytes, ...] = ()

    @classmethod
    def load(cls, folder: Path, options: argparse.Namespace) -> Chat:
        """The model of a folder, on the GPU if there is one."""
        from sail_train import dist
        from sail_train.generate.generator import Generator
        from sail_train.generate.session import Session
        from sail_train.model.build import load_model
        from sail_train.processor.processor import load_processor
        from sail_train.serve.service import chosen_dtype

        processor = load_processor(folder)
        generator = Generator(
            load_model(folder, dtype=chosen_dtype(options.dtype, dist.device())).to(dist.device()),  # type: ignore[arg-type]
            stop_token_ids=processor.stop_token_ids,
            pad_token_id=processor.tokenizer.pad_token_id,
            max_batch=1,
            banned_token_ids=(processor.image_token_id,),
        )
        return cls(Session(generator), processor, options)

    def ask(
        self, question: str, console: Console, *, images: Sequence[bytes] = (), videos: Sequence[bytes] = ()
    ) -> str:
        """Streams thought and answer to the console; returns the answer, which the conversation keeps.

        Not the thought: the template leaves those of earlier turns out, and one that was cut short has no end.
        """
        from sail_train.serve.answer import Answer  # imports transformers

        kinds = ["image"] * len(images) + ["video"] * len(videos)
        parts = (*(Part(type=kind) for kind in kinds), Part(type="text", text=question))
        self.messages += (Message(role="user", content=parts),)
        self.images += tuple(images)
        self.videos += tuple(videos)
        answer, shown = Answer(self.processor, opening=self._opening()), Shown(console)
        for token in self._tokens():
            shown.add(answer.feed([token]))
        shown.add(answer.end())
        console.print()
        self.messages += (Message(role="assistant", content=(Part(type="text", text=answer.answer),)),)
        return answer.answer

    def _opening(self) -> str:
        return self.processor.opening(self.options.think) if self.options.force else ""

    def _tokens(self) -> Iterator[int]:
        """The answer to the conversation so far; each turn draws numbers of its own."""
        asked = Conversation(key="chat", source="chat", messages=self.messages, images=self.images, videos=self.videos)
        options, uid = self.options, f"turn {len(self.messages)}"
        prompt = self.processor.prompt(asked, uid=uid, think=options.think, force=options.force)
        context = self.session.model.config.text_config.max_position_embeddings
        if (room := context - len(prompt.input_ids)) < 1:
            raise ValueError(
                f"the conversation has {len(prompt.input_ids)} tokens, the model's context {context}: ask less, show "
                "fewer or smaller images, or begin a new conversation"
            )
        most = min(options.max_new_tokens, room)
        sampling = Sampling(max_new_tokens=most, temperature=options.temperature, seed=options.seed)
        return self.session.stream(prompt, sampling)


class Shown:
    """What stands on the console of one turn: a dimmed thought, a blank line, the answer."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._thought = self._answer = False

    def add(self, piece: Piece) -> None:
        if piece.thought:
            self._thought = True
            self._print(piece.thought, THOUGHT_STYLE)
        if piece.answer:
            if self._thought and not self._answer:
                self._print("\n\n", "")
            self._answer = True
            self._print(piece.answer, "")

    def _print(self, text: str, style: str) -> None:
        self.console.print(Text(text, style=style), end="", soft_wrap=True)
