"""The tokens of texts as a tokenizer reads them: the ids of all, and the places of some."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, chain
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

# `start` is the token's first character in its text; `fresh` says that a word of the tokenizer
# begins with it, `tied` that it begins within a character of the token before.
TOKEN = np.dtype(
    [("id", np.int32), ("start", np.int32), ("fresh", np.bool_), ("tied", np.bool_)], align=True
)


class Reading(Protocol):
    """The n tokens of some texts: their ``ids``, shape (n,), one text behind the other.

    ``sums`` are the tokens in front of each text, and behind the last one those of all.
    """

    ids: NDArray[np.int32]
    sums: list[int]

    def tokens(self, numbers: Sequence[int]) -> NDArray[Any]:
        """Return the tokens of the texts ``numbers``, ascending, as TOKEN; shape (tokens,)."""


class Reader(Protocol):
    """Reads texts as one tokenizer does, without special tokens."""

    def read(self, texts: Sequence[str]) -> Reading:
        """Tokenise all texts."""


class TextReader:
    """Has the tokenizer read each text as a whole, on all cores."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    def read(self, texts: Sequence[str]) -> TextReading:
        """Tokenise all texts."""
        encodings = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return TextReading(encodings, texts)


class TextReading:
    """The encodings of whole texts. Where a token lies is looked at when it is asked for."""

    def __init__(self, encodings: Sequence[Encoding], texts: Sequence[str]) -> None:
        self._encodings, self._texts = encodings, texts
        self.sums = _sums(encodings)
        self.ids = np.fromiter(_all(each.ids for each in encodings), np.int32, self.sums[-1])

    def tokens(self, numbers: Sequence[int]) -> NDArray[Any]:
        """Return the tokens of the texts ``numbers``, ascending, as TOKEN; shape (tokens,)."""
        encodings = [self._encodings[number] for number in numbers]
        sums = np.array(_sums(encodings))
        counts, total = np.diff(sums), int(sums[-1])
        spans = np.fromiter(_all(each.offsets for each in encodings), _SPAN, total)
        lengths = np.array([len(self._texts[number]) for number in numbers], np.int64)
        bases = np.repeat(np.cumsum(lengths) - lengths, counts)
        tokens = np.zeros(total, TOKEN)
        tokens["id"] = np.fromiter(_all(each.ids for each in encodings), np.int32, total)
        tokens["start"] = np.minimum(spans["start"], np.repeat(lengths - 1, counts))
        tokens["fresh"] = _word_starts(encodings, sums)
        behind = np.maximum.accumulate(spans["end"] + bases)
        tokens["tied"][1:] = (tokens["start"] + bases)[1:] < behind[:-1]
        return tokens


_all = chain.from_iterable
_SPAN = np.dtype([("start", np.int64), ("end", np.int64)])


def _sums(encodings: Sequence[Encoding]) -> list[int]:
    """Return the tokens in front of each encoding, and behind the last one those of all."""
    return list(accumulate(map(len, encodings), initial=0))


def _word_starts(encodings: Sequence[Encoding], sums: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return for each token whether a word of the tokenizer begins with it."""
    # A token that is no part of a word has None here, which becomes NaN: unequal to all.
    words = np.array(list(_all(each.word_ids for each in encodings)), np.float64)
    fresh = np.ones(len(words), np.bool_)
    fresh[1:] = words[1:] != words[:-1]
    firsts = sums[:-1]
    fresh[firsts[firsts < len(words)]] = True
    return fresh
