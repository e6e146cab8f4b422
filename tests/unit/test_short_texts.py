"""The texts that a benchmark searches among: pieces that follow one another, none of them twice."""

from __future__ import annotations

import pytest

from benchmarks.short_texts import FEWEST_WORDS, WORDS, pieces


@pytest.mark.parametrize("words", [3, 8, 11, 12, 13, 100, 101])
def test_pieces_follow_one_another_and_are_as_long_as_one_another(words: int) -> None:
    document = " ".join(map(str, range(words)))
    found = pieces(document)
    lengths = {len(piece.split()) for piece in found}
    assert " ".join(found) == document
    assert max(lengths) - min(lengths) <= 1
    assert max(lengths) <= 1.5 * WORDS


def test_too_few_words_are_no_piece() -> None:
    assert pieces(" ".join(["word"] * (FEWEST_WORDS - 1))) == []
