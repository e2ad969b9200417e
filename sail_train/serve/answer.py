"""Token ids, as they are drawn -> text -> what of it is thought and what is answer, and where it stops.

`Decoder` holds back half a character, `Thought` the blank around tags and a tag of which only a part is there, `Stop`
what may become a stop string. So what is shown is never taken back, and all pieces together are
`template.split_thought` of the whole text: a direct answer's empty block shows as nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from sail_train.processor.style import THINK_END, THINK_START

HELD_TOKENS = 8
"""Tokens waited for to complete a character, which has four bytes at most; then it is none."""

CONTEXT_TOKENS = 8
"""Tokens before the new ones that are decoded with them, for decoders that treat the beginning of a text apart."""


class Decodes(Protocol):
    """What of a processor is needed."""

    def decode(self, ids: list[int], /) -> str: ...


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What is new of an answer."""

    thought: str = ""
    answer: str = ""

    def __bool__(self) -> bool:
        return bool(self.thought or self.answer)


class Answer:
    """One completion as it is read: token ids in, pieces out."""

    def __init__(self, processor: Decodes, *, stop: Sequence[str] = (), opening: str = "") -> None:
        """`stop` are strings that end the answer (not the thought); `opening` is what the prompt wrote of the turn."""
        self._decoder = Decoder(processor)
        self._thought = Thought()
        self._stop = Stop(stop)
        self.thought = ""
        """The thought so far."""
        self.answer = ""
        """The answer so far, without the thought."""
        self._block_tokens = 0
        self._thought.feed(opening)

    @property
    def thought_tokens(self) -> int:
        """How many tokens the thought took, its opening tag included; 0 of an empty block."""
        return self._block_tokens if self.thought else 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met: nothing comes any more."""
        return self._stop.met

    def feed(self, token_ids: Iterable[int]) -> Piece:
        """What these tokens add."""
        thought = answer = ""
        for token in token_ids:
            new_thought, new_answer = self._thought.feed(self._decoder.feed(token))
            self._block_tokens += self._thought.state == "thought" or bool(new_thought)
            thought, answer = thought + new_thought, answer + self._stop.feed(new_answer)
        return self._piece(thought, answer)

    def end(self) -> Piece:
        """What was held back: no more tokens come."""
        thought, answer = self._thought.feed(self._decoder.end())
        last = self._thought.end()
        answer = self._stop.feed(answer + last.answer) + self._stop.end()
        return self._piece(thought + last.thought, answer)

    def _piece(self, thought: str, answer: str) -> Piece:
        self.thought += thought
        self.answer += answer
        return Piece(thought=thought, answer=answer)


class Decoder:
    """Token ids to text, in linear time: only the last tokens are decoded again."""

    def __init__(self, processor: Decodes) -> None:
        self._processor = processor
        self._before: list[int] = []
        self._held: list[int] = []

    def feed(self, token: int) -> str:
        self._held.append(token)
        text = self._new()
        if text.endswith("\ufffd") and len(self._held) < HELD_TOKENS:  # half a character of several tokens
            return ""
        return self._release(text)

    def end(self) -> str:
        return self._release(self._new())

    def _new(self) -> str:
        known = self._processor.decode(self._before)
        return self._processor.decode(self._before + self._held)[len(known) :]

    def _release(self, text: str) -> str:
        self._before = (self._before + self._held)[-CONTEXT_TOKENS:]
        self._held = []
        return text


class Thought:
    """Text to thought and answer, as `template.split_thought` cuts it: a thought opens the turn or there is none."""

    def __init__(self) -> None:
        self.state = "opening"
        """"opening" (nothing but a part of the tag yet), "thought" or "answer"."""
        self._held = ""
        self._blank = True
        """Whether nothing but blank has come since the state began."""

    def feed(self, text: str) -> tuple[str, str]:
        """(thought, answer) that are new and sure."""
        self._held += text
        if self.state == "opening":
            self._open()
        thought = self._think() if self.state == "thought" else ""
        return thought, self._release(0) if self.state == "answer" else ""

    def end(self) -> Piece:
        """What was held back: of a thought cut short, a part of its end tag too."""
        if self.state == "opening":
            self.state = "answer"
        rest, self._held = self._held.strip() if self._blank else self._held.rstrip(), ""
        return Piece(thought=rest) if self.state == "thought" else Piece(answer=rest)

    def _open(self) -> None:
        self._held = self._held.lstrip()
        if self._held.startswith(THINK_START):
            self._enter("thought", self._held.removeprefix(THINK_START))
        elif not THINK_START.startswith(self._held):
            self._enter("answer", self._held)

    def _think(self) -> str:
        inside, end, rest = self._held.partition(THINK_END)
        if not end:
            return self._release(overlap(self._held, (THINK_END,)))
        thought = inside.strip() if self._blank else inside.rstrip()
        self._enter("answer", rest)
        return thought

    def _enter(self, state: str, text: str) -> None:
        self.state, self._held, self._blank = state, text, True

    def _release(self, kept: int) -> str:
        """What is held but for its last `kept` characters and the blank before them, which may be the end's."""
        if self._blank:
            self._held = self._held.lstrip()
        sure = self._held[: len(self._held) - kept].rstrip()
        self._blank = self._blank and not sure
        self._held = self._held[len(sure) :]
        return sure


class Stop:
    """Text up to the first of some strings, which is left out."""

    def __init__(self, strings: Sequence[str]) -> None:
        self.strings = tuple(strings)
        self.met = False
        self._held = ""

    def feed(self, text: str) -> str:
        if self.met:
            return ""
        self._held += text
        found = [place for string in self.strings if (place := self._held.find(string)) >= 0]
        if found:
            self.met = True
            return self._held[: min(found)]
        kept = overlap(self._held, self.strings)
        sure, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        return sure

    def end(self) -> str:
        return "" if self.met else self._held


def overlap(text: str, strings: Iterable[str]) -> int:
    """Length of the longest end of `text` that is the beginning of one of `strings`."""
    sizes = (size for string in strings for size in range(1, len(string) + 1) if text.endswith(string[:size]))
    return max(sizes, default=0)
