"""Messages -> pieces of text, control tokens, images and videos, in ChatML, each trained on or not.

    <|im_start|>user\\n<img>..</img>question /think<|im_end|>\\n
    <|im_start|>assistant\\n<think>\\nthought\\n</think>\\n\\nanswer<|im_end|>\\n

A `ChatStyle` says in which words (`processor.style`; above is Qwen3's). Trained on is each assistant's turn from its
first word to its <|im_end|>; not the turn whose thought was dropped, because a user's turn follows it: it would teach
to answer at once where the data thought. `processor.jinja` writes the same for tools that know transformers alone; a
test holds the two together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sail_train.processor.style import THINK_END, THINK_START, TURN_END, TURN_START, ChatStyle
from sail_train.types import THINK_MODES, BadSample, Message

MODE_THINK = {"think": "on", "direct": "off", None: "auto"}
"""`Conversation.mode` -> the think mode that fits it."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What becomes consecutive tokens."""

    kind: str
    """"text", "control" (one token), "image" or "video" (the next one), "context" (placeholders of a picture)."""
    text: str = ""
    trained: bool = False
    count: int = 1
    """context: how many."""


def render(
    messages: Sequence[Message], style: ChatStyle, *, system: str | None = None, think: str = "auto"
) -> list[Piece]:
    """Pieces of a conversation, each turn closed; BadSample for a role or content that the template lacks.

    `system` stands in for a system message of the conversation's own; None: the style's; empty: none.
    """
    last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=-1)
    images = _ImageLabels(messages, style)
    pieces = _system_turn(messages, images, style, style.system if system is None else system, think)
    for i, message in enumerate(messages):
        if message.role == "assistant":
            pieces += _assistant_turn(message, style, history=i < last_user)
        elif message.role not in ("system", "user"):
            raise BadSample("bad_role", f"{message.role!r} is none of system, user, assistant")
        elif i > 0 or message.role != "system":
            body = images.body(message)
            if i == last_user and (flag := style.flags.get(think, "")):
                body.append(Piece("text", flag))
            pieces += _turn(message.role, body, style)
    return pieces


def generation_prompt(style: ChatStyle, think: str, *, force: bool) -> list[Piece]:
    """What follows the last turn for the model to go on: the assistant's header and, if forced, its opening."""
    pieces = [Piece("control", TURN_START), Piece("text", "assistant\n")]
    if force and (opening := style.opening(think)):
        pieces.append(Piece("text", opening))
    return pieces


def check_think(think: str) -> None:
    if think not in THINK_MODES:
        raise ValueError(f"think={think!r} must be one of {', '.join(THINK_MODES)}")


def split_thought(text: str) -> tuple[str, str]:
    """(thought, answer) of an assistant's text, both stripped; BadSample if its thought does not end."""
    text = text.strip()
    if not text.startswith(THINK_START):
        return "", text
    thought, end, answer = text.removeprefix(THINK_START).partition(THINK_END)
    if not end:
        raise BadSample("open_thought", f"{THINK_START} without {THINK_END}")
    return thought.strip(), answer.strip()


class _ImageLabels:
    """Messages' parts as pieces, images numbered through where the conversation has several."""

    def __init__(self, messages: Sequence[Message], style: ChatStyle) -> None:
        self._style = style
        self._several = sum(part.type == "image" for message in messages for part in message.content) > 1
        self._number = 0

    def body(self, message: Message) -> list[Piece]:
        pieces = []
        for part in message.content:
            if part.type != "image":
                pieces.append(Piece(part.type, part.text))
                continue
            self._number += 1
            label = self._style.label_image(self._number) if self._several else ""
            around = (Piece("text", label), Piece("image"), Piece("text", self._style.after_image))
            pieces += [piece for piece in around if piece.kind == "image" or piece.text]
        return pieces


def _system_turn(
    messages: Sequence[Message], images: _ImageLabels, style: ChatStyle, system: str | None, think: str
) -> list[Piece]:
    """What asks for the think mode, then the conversation's own system message, or else `system`."""
    asked = style.think_systems.get(think, "")
    own = bool(messages) and messages[0].role == "system"
    if not (own or system or asked):
        return []
    body = images.body(messages[0]) if own else [Piece("text", system)] if system else []
    if asked:
        body.insert(0, Piece("text", f"{asked}\n\n" if body else asked))
    return _turn("system", body, style)


def _turn(role: str, body: list[Piece], style: ChatStyle, *, trained: bool = False) -> list[Piece]:
    pieces = [Piece("control", TURN_START), Piece("text", f"{role}\n"), *body, Piece("control", TURN_END, trained)]
    return [*pieces, Piece("text", style.turn_end)] if style.turn_end else pieces


def _assistant_turn(message: Message, style: ChatStyle, *, history: bool) -> list[Piece]:
    if any(part.type != "text" for part in message.content):
        raise BadSample("assistant_image", "an assistant's turn holds text alone")
    thought, answer = split_thought(message.text)
    dropped = history and bool(thought)
    before, after = style.thought
    body = f"{before}{thought}{after}{answer}" if thought and not dropped else f"{style.direct}{answer}"
    return _turn("assistant", [Piece("text", body, trained=not dropped)], style, trained=not dropped)
