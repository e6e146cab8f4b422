"""Reads texts by nanotoken, of the extra of that name, if it reads as the model's tokenizer does.

It takes a fraction of the time, and gives ids without offsets: where the tokens lie that are asked
for follows from them (`token_places`), or else the tokenizer itself is asked.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from pgqueue_embed.chunking.reading import Reader, Reading, TextReader
from pgqueue_embed.chunking.token_places import FURTHER_PIECE, TokenPlaces
from pgqueue_embed.errors import RecordFault
from pgqueue_embed.log import get_logger

LIBRARY = "nanotoken"
# It is loaded after so much text: by then the tokenizer itself has read for about as long.
WORTH_CHARACTERS = 1 << 18
# Words and parts of them that it keeps, of each thread: some 30 MB, where 130 are usual.
_KEPT_WORDS = 1 << 18

# What it has to read alike first: one in so many characters and pieces of the vocabulary.
_CHARACTERS, _PIECES = 251, 13
_LAST_CHARACTER = 0x2FFFF
_SURROGATES = range(0xD800, 0xE000)


class NanotokenReader:
    """Fulfils `reading.Reader` for many threads; ``exact`` reads what nanotoken is not to."""

    def __init__(self, tokenizer: Tokenizer, exact: Reader) -> None:
        self._tokenizer = tokenizer
        self._exact = exact
        self._agreed: Agreed | None = None
        self._characters_left = WORTH_CHARACTERS

    def read(self, texts: Sequence[str]) -> Reading:
        """Return the tokens of all texts."""
        if self._agreed is not None:
            return self._agreed.read(texts)
        if self._characters_left > 0:
            self._characters_left -= sum(map(len, texts))
            if self._characters_left <= 0:
                self._try()
        return self._exact.read(texts)

    def _try(self) -> None:
        try:
            self._agreed = Agreed(self._tokenizer, self._exact)
        except Disagreement as error:
            get_logger().warning("nanotoken is not used", reason=str(error))


class Disagreement(Exception):
    """nanotoken does not read as a tokenizer does, or not at all."""


class Agreed:
    """A tokenizer as nanotoken has it, which has been compared."""

    def __init__(self, tokenizer: Tokenizer, exact: Reader) -> None:
        """Raise Disagreement if known texts are not read alike."""
        self._exact = exact
        try:
            self._library = _loaded(_bare(tokenizer))
            self._places = TokenPlaces(tokenizer)
            texts = _known_texts(tokenizer)
            ours, theirs = self.read(texts), TextReader(tokenizer).read(texts)
            numbers = range(len(texts))
            is_equal = ours.sums == theirs.sums and np.array_equal(
                ours.tokens(numbers), theirs.tokens(numbers)
            )
        except Exception as error:  # of a library of version 0.1
            raise Disagreement(f"{type(error).__name__}: {error}") from error
        if not is_equal:
            raise Disagreement("it reads known texts otherwise than the model's tokenizer")

    def read(self, texts: Sequence[str]) -> NanotokenReading:
        """Return the tokens of all texts."""
        found = self._library.encode_batch(texts, add_special_tokens=False, parallel=False)
        return NanotokenReading(texts, found.ids, found.offsets, self._places, self._exact)


class NanotokenReading:
    """The tokens of texts by nanotoken: see `reading.Reading`."""

    def __init__(
        self,
        texts: Sequence[str],
        ids: NDArray[np.uint32],
        sums: NDArray[np.int64],
        places: TokenPlaces,
        exact: Reader,
    ) -> None:
        self._texts, self._places, self._exact = texts, places, exact
        self.ids = ids.astype(np.int32)
        self.sums: list[int] = sums.tolist()

    def tokens(self, numbers: Sequence[int]) -> NDArray[Any]:
        """Return the tokens of the texts ``numbers``, ascending, as TOKEN; shape (tokens,).

        Raises RecordFault for texts that are not read as the tokenizer reads them.
        """
        texts, counts = [self._texts[number] for number in numbers], np.diff(self.sums)
        is_wanted = np.zeros(len(counts), np.bool_)
        is_wanted[list(numbers)] = True
        ids, counts = self.ids[np.repeat(is_wanted, counts)], counts[is_wanted]
        tokens, is_sure = self._places.find(texts, ids, counts)
        if not is_sure.all():
            unsure = np.flatnonzero(~is_sure)
            exact = self._exact.read([texts[number] for number in unsure.tolist()])
            if exact.ids.tolist() != ids[np.repeat(~is_sure, counts)].tolist():
                raise RecordFault(
                    "nanotoken reads this text otherwise than the model's tokenizer:"
                    " pip uninstall nanotoken, then pgembed retry"
                )
            tokens[np.repeat(~is_sure, counts)] = exact.tokens(range(len(unsure)))
        return tokens


def is_installed() -> bool:
    """Tell whether the extra is there."""
    return find_spec(LIBRARY) is not None


def _bare(tokenizer: Tokenizer) -> str:
    """Return a tokenizer as JSON, without the tokens that are no text's; raises Disagreement."""
    state = json.loads(tokenizer.to_str())
    if state["model"]["continuing_subword_prefix"] != FURTHER_PIECE:
        raise Disagreement("the further pieces of a word are not marked as usual")
    return json.dumps({**state, "added_tokens": [], "post_processor": None})


@lru_cache(maxsize=4)
def _loaded(state: str) -> Any:
    """Return nanotoken's tokenizer of this JSON, one for all pipelines of a model."""
    import nanotoken

    nanotoken.nanotoken_rs.set_cache_entries(_KEPT_WORDS)
    return nanotoken.Tokenizer.from_json(state)


def _known_texts(tokenizer: Tokenizer) -> list[str]:
    """Return texts of many characters, each in several places, and of many pieces."""
    codes = range(1, _LAST_CHARACTER + 1, _CHARACTERS)
    characters = [chr(code) for code in codes if code not in _SURROGATES]
    pieces = sorted(tokenizer.get_vocab())[::_PIECES]
    return [
        *(f"a{each}b {each}\u0301 中{each}," for each in characters),
        " ".join(pieces),
        "-".join(pieces),
        "".join(each.removeprefix(FURTHER_PIECE) for each in pieces),
    ]
