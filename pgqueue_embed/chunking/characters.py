"""Classifies the characters around a position for cutting there: text in, classes out."""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.chunking import boundaries

SPACE, NEWLINE, STOP, COMMA, WIDE_STOP, WIDE_COMMA, CLOSER, OPENER, WIDE = (
    1 << n for n in range(9)
)

_MEMBERS = {
    STOP: ".!?",
    COMMA: ",;:",
    WIDE_STOP: "。！？｡",
    WIDE_COMMA: "，；：、､",
    CLOSER: "\"')]}”’»」』）】〉》〕］｝々ー",
    OPENER: "([{“‘«「『（【〈《〔［｛",
}
# Scripts written without spaces, in which a cut between two tokens is a cut between words.
_WIDE_RANGES = (
    (0x3041, 0x3096),  # Hiragana
    (0x30A1, 0x30FA),  # Katakana
    (0x3400, 0x4DBF),  # Han
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x323AF),
)
_LAST_SPACE = 0x3000
_NEVER_FIRST = STOP | COMMA | WIDE_STOP | WIDE_COMMA | CLOSER


@cache
def _kinds() -> NDArray[np.uint16]:
    table = np.zeros(0x110000, np.uint16)
    for flag, members in _MEMBERS.items():
        table[[ord(character) for character in members]] |= flag
    for first, last in _WIDE_RANGES:
        table[first : last + 1] |= WIDE
    spaces = [code for code in range(_LAST_SPACE + 1) if chr(code).isspace()]
    table[spaces] |= SPACE
    table[[0x0A, 0x0B, 0x0C, 0x0D, 0x85, 0x2028, 0x2029]] |= NEWLINE
    return table


def is_wide(character: str) -> bool:
    """Tell whether a character is of a script that is written without spaces."""
    return bool(_kinds()[ord(character)] & WIDE)


def text_classes(text: str, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Rate a cut of ``text`` in front of each character position by the text alone.

    Positions lie within ``0 <= position < len(text)``. Returns WORD, CLAUSE, SENTENCE or
    PARAGRAPH, or NOWHERE where the text has no boundary.
    """
    kinds, newlines = _read(text)
    left, right = _neighbours(kinds, positions)
    before, after = kinds[left], kinds[right]
    spaced = right > left + 1
    lines = newlines[right] - newlines[left]
    ending = _behind_closers(kinds, left)
    movable = (after & _NEVER_FIRST == 0) & (before & OPENER == 0)
    result = np.zeros(len(positions), np.uint8)
    result[spaced | (((before | after) & WIDE > 0) & movable)] = boundaries.WORD
    clause = (spaced & (before & COMMA > 0)) | (movable & (before & WIDE_COMMA > 0))
    result[clause | (lines > 0)] = boundaries.CLAUSE
    sentence = (spaced & (ending & STOP > 0)) | (movable & (ending & WIDE_STOP > 0))
    result[sentence] = boundaries.SENTENCE
    result[lines > 1] = boundaries.PARAGRAPH
    return result


def _read(text: str) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """Return the kinds of all characters and the count of line ends up to each."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = np.take(_kinds(), codes)
    line_ends = kinds & NEWLINE > 0
    line_ends[:-1] &= ~((codes[:-1] == 0x0D) & (codes[1:] == 0x0A))
    counts = line_ends.astype(np.int32) + (codes == 0x2029)
    return kinds, np.cumsum(counts, dtype=np.int32)


def _neighbours(
    kinds: NDArray[np.uint16], positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the last visible character before each position and the first one from it on.

    Where there is none, the first or the last character of the text stands in for it.
    """
    is_visible = kinds & SPACE == 0
    visible = np.concatenate(([0], np.flatnonzero(is_visible), [len(kinds) - 1]))
    before = np.cumsum(is_visible, dtype=np.int32)[positions] - is_visible[positions]
    return visible[before], visible[before + 1]


def _behind_closers(kinds: NDArray[np.uint16], left: NDArray[np.int64]) -> NDArray[np.uint16]:
    """Return the kind of the character that up to two closing quotes or brackets follow."""
    for _ in range(2):
        left = np.where(kinds[left] & CLOSER > 0, np.maximum(left - 1, 0), left)
    return kinds[left]
