"""Chooses the cuts: pure policy over one byte per token, numbers in and numbers out.

Byte ``i`` of ``classes`` rates the cut in front of token ``i``. The best class wins, and within
a class the latest cut. So that chunks do not become tiny, a class counts only in the later part
of the budget: a paragraph or sentence beyond one half of it, a clause beyond three quarters. A
word counts anywhere, because cutting inside the next one would be worse. What lies below a word
is used only where no word begins in the whole budget.
"""

from __future__ import annotations

from collections.abc import Iterator

NOWHERE = 0  # between two tokens of one character
INSIDE = 1  # inside a word of the tokenizer
JOINT = 2  # between two such words with no space: well-|known
WORD = 3
CLAUSE = 4
SENTENCE = 5
PARAGRAPH = 6

# The smallest share of the budget, as a fraction, that a cut of a class must fill.
_SMALLEST_FILL = {PARAGRAPH: (1, 2), SENTENCE: (1, 2), CLAUSE: (3, 4), WORD: (0, 1)}
_LAST_RESORTS = (JOINT, INSIDE)
_WORD_OR_BETTER = bytes(value >= WORD for value in range(256))


def plan_chunks(
    classes: bytes, *, max_tokens: int, overlap_tokens: int
) -> Iterator[tuple[int, int]]:
    """Yield the token ranges ``(first, end)`` of the chunks of one document, in order.

    Every token is in a range. A range holds at most ``max_tokens``, unless one character alone
    has more tokens than that. A range starts where the one before ended, or up to
    ``overlap_tokens`` earlier at a word start, and always ends later than it.
    """
    word_starts = classes.translate(_WORD_OR_BETTER)
    first, covered, total = 0, 0, len(classes)
    while covered < total:
        end = best_cut(classes, first, covered, max_tokens)
        if first < covered and _cuts_a_word(classes, end):
            # The overlap leaves no room for the next word; without it the word may fit.
            first, end = covered, best_cut(classes, covered, covered, max_tokens)
        yield first, end
        first = overlap_start(word_starts, end, overlap_tokens)
        covered = end


def best_cut(classes: bytes, first: int, covered: int, max_tokens: int) -> int:
    """Return the end, beyond ``covered``, of the chunk that starts at token ``first``."""
    limit = first + max_tokens
    if limit >= len(classes):
        return len(classes)
    for value, (numerator, denominator) in _SMALLEST_FILL.items():
        lowest = max(covered, first + max_tokens * numerator // denominator) + 1
        position = classes.rfind(value, lowest, limit + 1)
        if position >= 0:
            return position
    return _last_resort(classes, covered, limit)


def _last_resort(classes: bytes, covered: int, limit: int) -> int:
    # A clause in the earlier part of the budget still is the end of a word.
    window = classes[covered + 1 : limit + 1]
    position = window.translate(_WORD_OR_BETTER).rfind(1)
    for value in _LAST_RESORTS:
        position = position if position >= 0 else window.rfind(value)
    if position >= 0:
        return covered + 1 + position
    beyond = limit + 1
    while beyond < len(classes) and classes[beyond] == NOWHERE:
        beyond += 1
    return beyond


def _cuts_a_word(classes: bytes, end: int) -> bool:
    return end < len(classes) and classes[end] < WORD


def overlap_start(word_starts: bytes, end: int, overlap_tokens: int) -> int:
    """Return the earliest word start within ``overlap_tokens`` before ``end``, or ``end``."""
    position = word_starts.find(1, max(1, end - overlap_tokens), end)
    return position if position >= 0 else end
