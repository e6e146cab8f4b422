"""Reads each word once: for tokenizers that read what lies between spaces each by itself.

Those are the ones of BERT. They make a space of each tab and line end, put one on both sides of
each Chinese character, and look for the pieces of what is between spaces in their vocabulary. What
they do to a text before that, they do within a word: no space is dropped, and no mark moves over
one. So the tokens of a text are those of its words, one behind the other, and a word that was read
before is looked up, which takes a seventh of the time of having it read again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.chunking.characters import is_wide
from pgqueue_embed.chunking.reading import TOKEN, TextReader

# Each takes some 200 bytes, and 700 at most; with the older ones, 50 MB. Texts in one language have
# fewer, those of an encyclopedia in several more of them in use.
MOST_WORDS = 1 << 17
# Longer ones, such as addresses of pages and base64, hardly come again.
LONGEST_WORD = 32
# New words are read so many characters at a time: of a longer text, each takes longer.
_TEXT_CHARACTERS = 1 << 13

# Kinds of characters; of ODD_SPACE are those at which only Python parts a text.
_NOT_LOOKED_AT, _LETTER, _SPACE, _APART, _ODD_SPACE = range(5)
_SPACES = " \t\n\r"


class WordReader:
    """Looks words up, and has the tokenizer read those that are new; for many threads at once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._reader = TextReader(tokenizer)
        self._known: dict[str, bytes] = {}
        # What was known before those were too many: of use are words that occur again and again.
        self._older: dict[str, bytes] = {}
        self._kinds = np.zeros(0x110000, np.uint8)

    def read(self, texts: Sequence[str]) -> WordReading:
        """Return the tokens of all texts."""
        joined = "\n".join(["", *texts, ""])
        words, places = _words(joined, self._kinds_of(joined))
        bases = np.cumsum([1, *(len(text) + 1 for text in texts)])
        firsts = np.searchsorted(places, bases)
        begins = places - np.repeat(bases[:-1], np.diff(firsts))
        return WordReading(self._tokens(words), begins.astype(np.int32), firsts)

    def _kinds_of(self, text: str) -> NDArray[np.uint8]:
        if text.isascii():
            codes: NDArray[Any] = np.frombuffer(text.encode("ascii"), np.uint8)
        else:
            codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        kinds = np.take(self._kinds, codes)
        if not kinds.all():
            for code in np.unique(codes[kinds == _NOT_LOOKED_AT]).tolist():
                self._kinds[code] = self._kind(chr(code))
            kinds = np.take(self._kinds, codes)
        return kinds

    def _kind(self, character: str) -> int:
        if character in _SPACES:
            return _SPACE
        if character.isspace():
            return _ODD_SPACE
        return _APART if is_wide(character) and self._stands_alone(character) else _LETTER

    def _stands_alone(self, character: str) -> bool:
        normal = self._tokenizer.normalizer.normalize_str(f"a{character}a")
        return len(self._tokenizer.pre_tokenizer.pre_tokenize_str(normal)) == 3

    def _tokens(self, words: Sequence[str]) -> list[bytes]:
        """Return the tokens of each word, as the bytes of TOKEN."""
        # Another thread may put another dictionary in the place of the older one.
        older = self._older
        found = list(map(self._known.get, words))
        places = [place for place, tokens in enumerate(found) if tokens is None]
        missing = {words[place] for place in places}
        read = {word: older[word] for word in missing if word in older}
        read |= self._read([word for word in missing if word not in read])
        self._keep(read)
        for place in places:
            found[place] = read[words[place]]
        return cast("list[bytes]", found)

    def _read(self, words: Sequence[str]) -> dict[str, bytes]:
        """Have the tokenizer read words, each once: in texts, with a space between them."""
        parts = list(_parts(words))
        reading = self._reader.read([" ".join(part) for part in parts])
        read: dict[str, bytes] = {}
        for number, part in enumerate(parts):
            tokens = reading.tokens([number])
            begins = np.cumsum([0, *(len(word) + 1 for word in part)])
            firsts = np.searchsorted(tokens["start"], begins)
            tokens["start"] -= np.repeat(begins[:-1], np.diff(firsts)).astype(np.int32)
            content, ends = tokens.tobytes(), (firsts * TOKEN.itemsize).tolist()
            read.update(
                (word, content[first:end])
                for word, (first, end) in zip(part, pairwise(ends), strict=True)
            )
        return read

    def _keep(self, read: dict[str, bytes]) -> None:
        short = [(word, tokens) for word, tokens in read.items() if len(word) <= LONGEST_WORD]
        if len(self._known) + len(short) > MOST_WORDS:
            self._known, self._older = {}, self._known
        self._known.update(short[:MOST_WORDS])


class WordReading:
    """The tokens of texts whose words are put one behind the other: see `reading.Reading`.

    Of each word ``begins`` says where in its text it does; ``firsts`` are the words in front of
    each text, and behind the last one those of all.
    """

    def __init__(
        self, words: Sequence[bytes], begins: NDArray[np.int32], firsts: NDArray[np.int64]
    ) -> None:
        self._counts = np.fromiter(map(len, words), np.int64, len(words)) // TOKEN.itemsize
        self._tokens = np.frombuffer(b"".join(words), TOKEN)
        self._begins, self._firsts = begins, firsts
        self.sums: list[int] = np.append(0, np.cumsum(self._counts))[firsts].tolist()
        self.ids = np.ascontiguousarray(self._tokens["id"])

    def tokens(self, numbers: Sequence[int]) -> NDArray[Any]:
        """Return the tokens of the texts ``numbers``, ascending, as TOKEN; shape (tokens,)."""
        is_wanted = np.zeros(len(self._firsts) - 1, np.bool_)
        is_wanted[list(numbers)] = True
        words = np.repeat(is_wanted, np.diff(self._firsts))
        tokens: NDArray[Any] = self._tokens[np.repeat(words, self._counts)]
        tokens["start"] += np.repeat(self._begins[words], self._counts[words])
        return tokens


def _words(text: str, kinds: NDArray[np.uint8]) -> tuple[list[str], NDArray[np.int64]]:
    """Return the words of a text that begins and ends with a space, and where each begins."""
    is_space, is_apart = kinds == _SPACE, kinds == _APART
    parts_at = is_space | is_apart
    is_word = ~is_space[1:-1]
    begins = 1 + np.flatnonzero(is_word & (parts_at[:-2] | is_apart[1:-1]))
    if kinds.max() <= _SPACE:
        return text.split(), begins
    ends = 2 + np.flatnonzero(is_word & (parts_at[2:] | is_apart[1:-1]))
    spans = zip(begins.tolist(), ends.tolist(), strict=True)
    return [text[first:end] for first, end in spans], begins


def _parts(words: Iterable[str]) -> Iterator[list[str]]:
    """Part words into lists of some _TEXT_CHARACTERS."""
    part: list[str] = []
    characters = 0
    for word in words:
        part.append(word)
        characters += len(word)
        if characters > _TEXT_CHARACTERS:
            yield part
            part, characters = [], 0
    if part:
        yield part
