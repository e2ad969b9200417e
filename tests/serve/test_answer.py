"""From tokens to thought and answer: in any pieces the same, nothing taken back, blank around tags left out."""

from __future__ import annotations

import random

import pytest

from sail_train.processor.template import split_thought
from sail_train.serve.answer import HELD_TOKENS, Answer, Decoder


class Bytes:
    """A processor whose token ids are bytes."""

    def decode(self, ids: list[int], /) -> str:
        return bytes(ids).decode("utf-8", errors="replace")


def read(text: str, *, stop: tuple[str, ...] = (), opening: str = "", seed: int = 0) -> tuple[Answer, str, str]:
    """The answer after `text` came in random pieces, and what was shown of thought and answer."""
    chance, answer = random.Random(seed), Answer(Bytes(), stop=stop, opening=opening)
    data, thought, said = list(text.encode()), "", ""
    while data and not answer.stopped:
        size = chance.randint(1, 4)
        piece = answer.feed(data[:size])
        data = data[size:]
        thought, said = thought + piece.thought, said + piece.answer
    last = answer.end()
    return answer, thought + last.thought, said + last.answer


TEXTS = [
    "<think>\nred?\n</think>\n\nIt is red.",
    "<think>\n\n</think>\n\nred",
    "<think></think>red",
    "  \n<think> a < b, </thin> c \n\n d </think>  x  y \n\n z \n ",
    "red",
    "",
    " \n ",
    "a <think>b</think> c",
    "<think>\né中🙂\n</think>\n\nÅ 中 🙂 \\boxed{3}\n",
    "<thin",
    "<thinking> is no tag",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("seed", range(5))
def test_all_pieces_together_are_the_split_of_the_whole(text: str, seed: int) -> None:
    answer, thought, said = read(text, seed=seed)
    assert (thought, said) == split_thought(text) == (answer.thought, answer.answer)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nred and", ("red and", "")),
        ("<think>\nred </thi", ("red </thi", "")),
        ("<think>\n", ("", "")),
        ("<think>\nred\n</think>\n", ("red", "")),
    ],
)
def test_what_is_cut_short_is_what_it_was(text: str, expected: tuple[str, str]) -> None:
    assert read(text)[1:] == expected


def test_a_forced_opening_is_the_beginning_of_the_turn() -> None:
    assert read("red?\n</think>\n\nred", opening="<think>\n")[1:] == ("red?", "red")
    assert read("red", opening="<think>\n\n</think>\n\n")[1:] == ("", "red")


def test_tokens_of_a_thought_are_counted_and_those_of_an_empty_block_are_none() -> None:
    assert read("<think>\n\n</think>\n\nred")[0].thought_tokens == 0
    assert read("red")[0].thought_tokens == 0
    counted = read("<think>red</think>blue")[0].thought_tokens
    assert len("red") < counted <= len("<think>red</think>")


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    ("text", "stop", "expected", "stopped"),
    [
        ("one two three", ("two",), "one ", True),
        ("one two three", ("three", "two t"), "one ", True),
        ("one twone", ("two!",), "one twone", False),
        ("one tw", ("two",), "one tw", False),
        ("aab", ("ab",), "a", True),
        ("<think>\ntwo\n</think>\n\none two", ("two",), "one ", True),
        ("one", ("one",), "", True),
    ],
)
def test_a_stop_string_ends_the_answer(
    text: str, stop: tuple[str, ...], expected: str, stopped: bool, seed: int
) -> None:
    answer, _, said = read(text, stop=stop, seed=seed)
    assert (said, answer.stopped) == (expected, stopped)
    assert not answer.stopped or answer.feed(b"more") == answer.end()


def test_a_character_waits_for_its_last_byte() -> None:
    decoder = Decoder(Bytes())
    assert [decoder.feed(byte) for byte in "中".encode()] == ["", "", "中"]


def test_bytes_that_make_no_character_are_not_waited_for_without_end() -> None:
    decoder = Decoder(Bytes())
    shown = [decoder.feed(0xE4) for _ in range(HELD_TOKENS)]
    assert shown[:-1] == [""] * (HELD_TOKENS - 1) and shown[-1]
    assert decoder.feed(0x41).endswith("A")


def test_a_decoder_that_treats_the_beginning_apart_is_given_one() -> None:
    class Words:
        """As sentencepiece's: a text begins without the space of its first word."""

        def decode(self, ids: list[int], /) -> str:
            return " ".join(str(number) for number in ids)

    decoder = Decoder(Words())
    assert "".join(decoder.feed(token) for token in range(30)) == " ".join(map(str, range(30)))
