"""Tells where the tokens of texts lie from their ids alone, for tokenizers of BERT's kind.

A word, as such a tokenizer parts texts, has one token that is no further piece, its first one, and
the pieces of a word stand for all of its characters as the normalizer leaves them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.chunking.encoding import unknown_id
from pgqueue_embed.chunking.reading import TOKEN

FURTHER_PIECE = "##"

# Kinds of characters. One of ODD becomes several words, or may change places with its neighbour.
_NOT_LOOKED_AT, _LETTER, _SPACE, _APART, _ODD = range(5)


class TokenPlaces:
    """What is known of the pieces of one tokenizer and of the characters that it was given.

    ``_kinds`` and ``_sizes`` are, for each character, its kind and how many the normalizer makes
    of it; ``_lengths`` and ``_is_first`` are, for each id, the characters that it stands for and
    whether a word begins with it.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._kinds = np.zeros(0x110000, np.uint8)
        self._sizes = np.zeros(0x110000, np.uint8)
        pieces = tokenizer.get_vocab(with_added_tokens=True)
        self._lengths = np.zeros(max(pieces.values()) + 1, np.int64)
        self._is_first = np.ones(len(self._lengths), np.bool_)
        for piece, number in pieces.items():
            is_further = piece.startswith(FURTHER_PIECE) and piece != FURTHER_PIECE
            self._lengths[number] = len(piece) - len(FURTHER_PIECE) * is_further
            self._is_first[number] = not is_further
        self._unknown = unknown_id(tokenizer)

    def find(
        self, texts: Sequence[str], ids: NDArray[np.int32], counts: NDArray[np.int64]
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Return the tokens of texts as TOKEN, and for each text whether they are sure.

        ``ids`` are those of all texts, one behind the other, ``counts`` the number of each one's.
        """
        joined = "\n".join(["", *texts, ""])
        kinds, sizes = self._looked_at(joined)
        bases = np.cumsum([1, *(len(text) + 1 for text in texts)])
        # The characters that the normalizer leaves, each by the one that it is made of.
        origins = np.repeat(np.arange(len(joined)), sizes)
        word_begins = _word_begins(kinds, origins)
        words_before = np.searchsorted(origins[word_begins], bases)
        is_first = self._is_first[ids]
        firsts_before = _sums(is_first)[_sums(counts)]
        is_sure = np.diff(words_before) == np.diff(firsts_before)
        is_sure &= np.diff(_sums(kinds == _ODD)[bases]) == 0
        tokens = np.zeros(len(ids), TOKEN)
        if not (len(ids) and len(word_begins)):
            return tokens, is_sure
        words = np.cumsum(is_first) - 1 + np.repeat((words_before - firsts_before)[:-1], counts)
        places, fits = self._in_words(ids, is_first, words, np.append(word_begins, len(origins)))
        is_sure[np.repeat(np.arange(len(texts)), counts)[~fits]] = False
        places = np.clip(places, 0, len(origins) - 1)
        tokens["id"] = ids
        tokens["start"] = origins[places] - np.repeat(bases[:-1], counts)
        tokens["fresh"] = is_first
        tokens["tied"] = ~is_first & (origins[places] == origins[places - 1])
        return tokens, is_sure

    def _in_words(
        self,
        ids: NDArray[np.int32],
        is_first: NDArray[np.bool_],
        words: NDArray[np.int64],
        word_begins: NDArray[np.int64],
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return the first character of each token, and whether its word is used up by its last."""
        words = np.clip(words, 0, len(word_begins) - 2)
        lengths = self._lengths[ids]
        before = np.cumsum(lengths) - lengths
        first_tokens = np.maximum.accumulate(np.where(is_first, np.arange(len(ids)), 0))
        places = word_begins[words] + before - before[first_tokens]
        is_last = np.append(is_first[1:], True)
        is_alone = is_first & is_last
        is_used_up = places + lengths == word_begins[words + 1]
        return places, np.where(ids == self._unknown, is_alone, ~is_last | is_used_up)

    def _looked_at(self, text: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        for code in np.unique(codes[self._kinds[codes] == _NOT_LOOKED_AT]).tolist():
            self._kinds[code], self._sizes[code] = self._look_at(chr(code))
        return self._kinds[codes], self._sizes[codes]

    def _look_at(self, character: str) -> tuple[int, int]:
        normal = self._tokenizer.normalizer.normalize_str(f"a{character}a")
        words = [word for word, _ in self._tokenizer.pre_tokenizer.pre_tokenize_str(normal)]
        size = sum(map(len, words)) - len("aa")
        if size and _may_move(character):
            return _ODD, size
        kinds = {(1, 0): _LETTER, (1, size): _LETTER, (2, 0): _SPACE, (3, 1): _APART}
        return kinds.get((len(words), size), _ODD), size


def _may_move(character: str) -> bool:
    """Tell whether a normal form may have a character behind its neighbour, as a mark."""
    return bool(unicodedata.combining(character)) or unicodedata.category(character) == "Cn"


def _word_begins(kinds: NDArray[np.uint8], origins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return which of the characters at ``origins`` are the first ones of words."""
    is_apart = kinds == _APART
    parts = is_apart | (kinds == _SPACE)
    parts[1:] |= is_apart[:-1]
    words = np.cumsum(parts, dtype=np.int32)[origins]
    return np.flatnonzero(np.diff(words, prepend=-1))


def _sums(values: NDArray[Any]) -> NDArray[np.int64]:
    """Return the sums of what is in front of each value, and behind the last one that of all."""
    return np.append(0, np.cumsum(values, dtype=np.int64))
