"""Text for Pillow: lines that fit a width, and the ink of what was written."""

from __future__ import annotations

from PIL.ImageFont import FreeTypeFont

_NO_LINE_START = "，。、；：！？）】》”"


def words(text: str, language: str) -> list[str]:
    """What a line may be broken between: words, or Chinese characters with numbers and marks kept whole."""
    if language != "zh":
        return text.split()
    found: list[str] = []
    for letter in text:
        glued = found and (letter in _NO_LINE_START or (letter.isascii() and found[-1][-1].isascii()))
        if glued:
            found[-1] += letter
        else:
            found.append(letter)
    return found


def joined(pieces: list[str], language: str) -> str:
    return ("" if language == "zh" else " ").join(pieces)


def wrap(text: str, font: FreeTypeFont, width: float, language: str) -> list[list[str]]:
    """The words of each line that fits `width` pixels; a word that is too long has a line of its own."""
    lines: list[list[str]] = []
    for word in words(text, language):
        if lines and font.getlength(joined([*lines[-1], word], language)) <= width:
            lines[-1].append(word)
        else:
            lines.append([word])
    return lines
