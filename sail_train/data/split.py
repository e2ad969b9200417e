"""Splitting a conversation that is longer than a row, where `data.overlong` is "split".

Only text, and only between turns: a piece is as many whole turns (a user's message and what follows it up to the next
user's) as a row holds, in order, each piece opened by the conversation's system message. No token is left out or
trained twice; what a later piece loses is the sight of the earlier turns. A conversation with images or videos, and
one with a turn that no row holds, is refused as it is without this policy.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from sail_train.types import BadSample, Conversation, Encoded, Message


def split(conversation: Conversation, encode: Callable[[Conversation], Encoded], capacity: int) -> list[Encoded]:
    """The encoded pieces of a conversation, two or more, each of at most `capacity` tokens.

    Raises:
        BadSample: "too_long": it cannot be split so, or what `encode` refuses.
    """
    system, turns = _turns(conversation.messages)
    if conversation.images or conversation.videos or len(turns) < 2:
        raise BadSample("too_long", f"more than {capacity} tokens, and not several turns of text that could be split")
    pieces: list[Encoded] = []
    first = 0
    while first < len(turns):
        piece, first = _longest(conversation, system, turns, first, encode, capacity)
        pieces.append(dataclasses.replace(piece, key=f"{conversation.key}#{len(pieces)}"))
    return pieces


def _turns(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system messages in front, and the turns."""
    system = [message for message in messages[:1] if message.role == "system"]
    turns: list[list[Message]] = []
    for message in messages[len(system) :]:
        if message.role == "user" and (not turns or turns[-1][-1].role == "assistant"):
            turns.append([])
        if not turns:
            turns.append([])
        turns[-1].append(message)
    return system, turns


def _longest(
    conversation: Conversation,
    system: list[Message],
    turns: list[list[Message]],
    first: int,
    encode: Callable[[Conversation], Encoded],
    capacity: int,
) -> tuple[Encoded, int]:
    """The longest piece from turn `first` on that fits, and the turn after it."""
    fitting: Encoded | None = None
    for end in range(first + 1, len(turns) + 1):
        messages = [*system, *(message for turn in turns[first:end] for message in turn)]
        encoded = encode(dataclasses.replace(conversation, messages=tuple(messages)))
        if encoded.num_tokens > capacity:
            if fitting is None:
                raise BadSample(
                    "too_long", f"turn {first} alone has {encoded.num_tokens} tokens, seq_length={capacity}"
                )
            return fitting, end - 1
        fitting = encoded
    assert fitting is not None
    return fitting, len(turns)
