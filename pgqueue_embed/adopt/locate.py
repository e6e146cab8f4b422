"""Finds the texts of stored chunks in their document, verbatim or as a tokenizer spells them.

Tokenizers that decode their tokens give lower case, no accents, and spaces around punctuation. So
both sides are compared squeezed: small letters without accents and without white space.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from unicodedata import category, normalize

# Marks, control characters and spaces of all kinds.
_NO_LETTERS = {"Mn", "Cc", "Cf", "Zs", "Zl", "Zp"}

# What decoding with special tokens leaves at the ends of a chunk, for BERT and for RoBERTa.
BEGINNINGS = ("[CLS]", "<s>")
ENDINGS = ("[SEP]", "</s>")


@dataclass(frozen=True, kw_only=True)
class Span:
    """A stored text's place, ``document[start:end]``; `row` is its position among the texts."""

    row: int
    start: int
    end: int


def locate(document: str, texts: Sequence[str]) -> list[Span] | None:
    """Return the places of `texts` in the order of the document.

    None unless each has one, and together they cover every character but white space. A text is
    looked for in the order given, then in the order in which the document has them; of a document
    that repeats itself, not every cut is found.
    """
    whole = _squeeze(document)
    needles = [_squeeze(without_marks(text)).letters for text in texts]
    firsts = [whole.letters.find(needle) for needle in needles]
    if min(firsts, default=-1) < 0 or not all(needles):
        return None
    given = list(range(len(texts)))
    for order in (given, sorted(given, key=firsts.__getitem__)):
        starts = _cover(whole.letters, [needles[row] for row in order])
        if starts is not None:
            return [
                _place(document, whole, texts[row], row, start, len(needles[row]))
                for row, start in zip(order, starts, strict=True)
            ]
    return None


def without_marks(text: str) -> str:
    """Return a decoded text without the special tokens at its ends."""
    for mark in BEGINNINGS:
        if text.startswith(mark):
            text = text.removeprefix(mark).lstrip()
            break
    for mark in ENDINGS:
        if text.endswith(mark):
            return text.removesuffix(mark).rstrip()
    return text


def _cover(letters: str, needles: Sequence[str]) -> list[int] | None:
    """Return where each needle starts, each after the one before, with no gap between them.

    The latest start that leaves no gap covers most.
    """
    starts: list[int] = []
    covered = 0
    for needle in needles:
        after = starts[-1] + 1 if starts else 0
        start = letters.rfind(needle, after, covered + len(needle))
        if start < 0:
            return None
        starts.append(start)
        covered = max(covered, start + len(needle))
    return starts if covered == len(letters) else None


@dataclass(frozen=True)
class _Squeezed:
    """The letters of a text, and the position in it that each comes from."""

    letters: str
    positions: array[int]


def _squeeze(text: str) -> _Squeezed:
    letters: list[str] = []
    positions = array("q")
    for position, character in enumerate(text):
        for letter in _letters_of(character):
            letters.append(letter)
            positions.append(position)
    return _Squeezed("".join(letters), positions)


@lru_cache(maxsize=1 << 16)
def _letters_of(character: str) -> str:
    plain = normalize("NFD", character.lower())
    return "".join(letter for letter in plain if category(letter) not in _NO_LETTERS)


def _place(document: str, whole: _Squeezed, text: str, row: int, first: int, letters: int) -> Span:
    start = whole.positions[first]
    end = whole.positions[first + letters - 1] + 1
    # An accent that is a character of its own belongs to its letter.
    while end < len(document) and not _letters_of(document[end]) and not document[end].isspace():
        end += 1
    # A verbatim text keeps the white space that it has at its ends.
    wider = Span(
        row=row,
        start=start - (len(text) - len(text.lstrip())),
        end=end + len(text) - len(text.rstrip()),
    )
    if wider.start >= 0 and document[wider.start : wider.end] == text:
        return wider
    return Span(row=row, start=start, end=end)
