"""Tokenise documents once, as arrays: where tokens start and how good a cut there is."""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any
from unicodedata import category

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import Unigram

from pgqueue_embed.chunking import boundaries
from pgqueue_embed.chunking.characters import text_classes
from pgqueue_embed.chunking.reading import Reader

# Pieces of this many characters keep tokenising linear in the length of a document (one long
# text takes five times as long as its pieces) and busy on all cores.
PIECE_CHARACTERS = 1 << 15
# A text that is to stay whole is parted only where the tokenizer would take a gigabyte for it: it
# needs up to 300 bytes a character.
WHOLE_CHARACTERS = 1 << 18
# Pieces are tokenised and read so many characters at a time as take so long: a claim is to be
# renewed on a slow machine too. At most so many, for the 200 bytes and more that a token takes.
_GROUP_SECONDS = 0.5
_FIRST_GROUP_CHARACTERS = 1 << 16
_MOST_GROUP_CHARACTERS = 1 << 18
_NO_TOKENS = -1  # the limit of a piece that is cut in any case
_CONTEXT = 16  # characters before a piece that decide how good a cut its start is
_SEAM = re.compile(r"[\s\u3041-\u3096\u30a1-\u30fa\u3400-\u9fff,.;:!?，。；：！？、]")
# What stays with the character in front of it: marks, joiners, variants and colours of emoji.
_TIED = {"Mn", "Mc", "Me", "Cf", "Sk"}
_JOINER = "\u200d"
_LONGEST_TIE = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """Where each of the n tokens of a document starts, and how good a cut in front of it is.

    ``starts`` are character offsets. One byte per token says in ``fresh`` whether a word of the
    tokenizer begins there, and in ``classes`` what `boundaries` knows. ``seams`` are the tokens,
    ascending, in front of which the document was parted to be tokenised.
    """

    starts: NDArray[np.int64]
    fresh: bytes
    classes: bytes
    seams: list[int]


@dataclass(frozen=True, slots=True)
class Tokens:
    """The n tokens of one document, and its ``cuts`` where it is too long to stay whole."""

    ids: NDArray[np.int32]
    cuts: Cuts | None


def private_copy(tokenizer: Tokenizer, *, control_tokens: bool = False) -> Tokenizer:
    """Copy a tokenizer, without truncation or padding and blind to control tokens in text.

    One that is such a copy is returned itself: nothing changes it. All ids stay, those of control
    tokens too: only their names are out of the reach of a text. With ``control_tokens`` a text may
    spell them, for models that were trained so.
    """
    if not control_tokens and _is_private(tokenizer):
        return tokenizer
    return private_tokenizer(json.loads(tokenizer.to_str()), control_tokens=control_tokens)


def private_tokenizer(state: dict[str, Any], *, control_tokens: bool = False) -> Tokenizer:
    """Make a tokenizer as `private_copy` does, of the JSON of one, which is changed."""
    if not control_tokens:
        _hide_control_tokens(state)
    copy = Tokenizer.from_str(json.dumps(state, ensure_ascii=False))
    copy.encode_special_tokens = not control_tokens
    copy.no_truncation()
    copy.no_padding()
    return copy


# No text in PostgreSQL holds this character.
_HIDDEN = "\0"


def _is_private(tokenizer: Tokenizer) -> bool:
    """Tell whether a tokenizer with control tokens is a private copy, blind to them."""
    special = [each for each in tokenizer.get_added_tokens_decoder().values() if each.special]
    return (
        bool(special)
        and all(each.content.startswith(_HIDDEN) for each in special)
        and bool(tokenizer.encode_special_tokens)
        and tokenizer.truncation is None
        and tokenizer.padding is None
    )


def _hide_control_tokens(state: dict[str, Any]) -> None:
    """Rename control tokens where they stand, because an added token is numbered by its place.

    They are renamed in the vocabulary too: Unigram models find ``</s>`` in it like any other piece.
    """
    control = {token["content"] for token in state["added_tokens"] if token["special"]}
    for token in state["added_tokens"]:
        if token["special"]:
            token["content"] = _HIDDEN + token["content"]
    model = state["model"]
    if model.get("unk_token") in control:
        model["unk_token"] = _HIDDEN + model["unk_token"]
    if isinstance(model["vocab"], dict):
        renamed = {
            _HIDDEN + name if name in control else name: n for name, n in model["vocab"].items()
        }
        model["vocab"] = renamed
    else:
        for entry in model["vocab"]:
            entry[0] = _HIDDEN + entry[0] if entry[0] in control else entry[0]
    if "merges" in model:
        model["merges"] = [each for each in model["merges"] if not _makes(each, control)]


def _makes(merge: str | list[str], control: set[str]) -> bool:
    """Tell whether a merge of two pieces makes or takes a control token."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return not control.isdisjoint((left, right, left + right))


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that stands for unreadable text, or None where there is none."""
    if isinstance(tokenizer.model, Unigram):
        number = json.loads(tokenizer.to_str())["model"].get("unk_id")
        return None if number is None else int(number)
    token = getattr(tokenizer.model, "unk_token", None)
    return None if token is None else tokenizer.token_to_id(token)


def tokenise(
    reader: Reader,
    documents: Sequence[str],
    *,
    limits: Sequence[int] | None = None,
    whole: bool = False,
    on_progress: Callable[[], None] = lambda: None,
) -> Iterator[Tokens]:
    """Yield the tokens of each document, in order; ``whole`` keeps all that can be in one piece.

    A document has its cuts rated only if it has more tokens than its limit, which takes longer than
    the ids of all. ``on_progress`` is called after each group of pieces. The memory that it takes
    depends on the largest piece, whatever the text.
    """
    limits = [sys.maxsize] * len(documents) if limits is None else limits
    pieces = _read_pieces(reader, documents, limits, whole, on_progress)
    for document in documents:
        parts: list[Tokens] = []
        done = 0
        while done < len(document):
            end, tokens = next(pieces)
            parts.append(tokens)
            done = end
        yield _join(parts)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Characters ``start`` to ``end`` of a document, to be cut beyond ``limit`` tokens."""

    document: str
    start: int
    end: int
    limit: int

    @property
    def text(self) -> str:
        return self.document[self.start : self.end]

    @property
    def context(self) -> int:
        """How many characters before the piece are looked at, too."""
        return min(self.start, _CONTEXT)


def _read_pieces(
    reader: Reader,
    documents: Iterable[str],
    limits: Iterable[int],
    whole: bool,
    on_progress: Callable[[], None],
) -> Iterator[tuple[int, Tokens]]:
    """Yield the end and the tokens of each piece, reading many pieces at a time."""
    size = WHOLE_CHARACTERS if whole else PIECE_CHARACTERS
    pieces = (
        piece
        for document, limit in zip(documents, limits, strict=True)
        for piece in _pieces(document, size, limit)
    )
    group: list[_Piece] = []
    characters, most = 0, _FIRST_GROUP_CHARACTERS
    for piece in pieces:
        if group and characters + piece.end - piece.start > most:
            started = time.monotonic()
            read = list(_read(reader, group))
            most = _next_group(characters, time.monotonic() - started)
            on_progress()
            yield from read
            group, characters = [], 0
        group.append(piece)
        characters += piece.end - piece.start
    yield from _read(reader, group)


def _next_group(characters: int, seconds: float) -> int:
    """Return how many characters to read next, after so many took so long."""
    in_time = characters * _GROUP_SECONDS / max(seconds, 0.001)
    return int(min(in_time, _MOST_GROUP_CHARACTERS))


def _pieces(document: str, size: int, limit: int) -> Iterator[_Piece]:
    start = 0
    while start < len(document):
        end = _seam(document, start + size)
        parted = end - start < len(document)
        yield _Piece(document, start, end, _NO_TOKENS if parted else limit)
        start = end


def _seam(document: str, target: int) -> int:
    """Return a place at or before ``target`` to part the document, or one behind.

    Where no place is a good one, in a text of emoji or of base64, any is taken: a slice with a seam
    in it or at its edge is tokenised by itself.
    """
    if target >= len(document):
        return len(document)
    for separator in ("\n\n", "\n", " "):
        position = document.rfind(separator, target - PIECE_CHARACTERS // 2, target)
        if position >= 0:
            return position
    match = _SEAM.search(document, target, target + PIECE_CHARACTERS // 2)
    if match:
        return match.start()
    # The word at the end is not parted where it is as short as that.
    is_near_the_end = len(document) - target <= PIECE_CHARACTERS // 2
    return len(document) if is_near_the_end else _untied(document, target)


def _untied(document: str, target: int) -> int:
    """Return ``target``, or the next place before it that parts no character from its marks."""
    for position in range(target, target - _LONGEST_TIE, -1):
        if not (category(document[position]) in _TIED or document[position - 1] == _JOINER):
            return position
    return target


def _read(reader: Reader, group: Sequence[_Piece]) -> Iterator[tuple[int, Tokens]]:
    """Tokenise a group of pieces, and rate the cuts of those that are too long to stay whole."""
    if not group:
        return
    reading = reader.read([piece.text for piece in group])
    counts = [end - first for first, end in pairwise(reading.sums)]
    long = [
        n for n, (piece, count) in enumerate(zip(group, counts, strict=True)) if count > piece.limit
    ]
    cuts = (
        _cuts([group[n] for n in long], reading.tokens(long), [counts[n] for n in long])
        if long
        else iter(())
    )
    for piece, count, (first, end) in zip(group, counts, pairwise(reading.sums), strict=True):
        yield piece.end, Tokens(reading.ids[first:end], next(cuts) if count > piece.limit else None)


def _cuts(pieces: Sequence[_Piece], tokens: NDArray[Any], counts: Sequence[int]) -> Iterator[Cuts]:
    """Rate the cuts of pieces by one pass over their joined text.

    One pass, because a handful of array operations a document costs more than tokenising it.
    """
    text, bases = _joined(pieces)
    starts, fresh = tokens["start"].astype(np.int64), tokens["fresh"]
    rated = text_classes(text, starts + np.repeat(bases, counts))
    classes = np.maximum(rated, np.where(fresh, boundaries.JOINT, boundaries.INSIDE))
    classes = classes.astype(np.uint8)
    # Several tokens of one character: no slice ends between them.
    classes[tokens["tied"]] = boundaries.NOWHERE
    starts += np.repeat([piece.start for piece in pieces], counts)
    for first, end in pairwise(accumulate(counts, initial=0)):
        yield Cuts(
            starts=starts[first:end],
            fresh=fresh[first:end].tobytes(),
            classes=classes[first:end].tobytes(),
            seams=[],
        )


def _joined(group: Sequence[_Piece]) -> tuple[str, NDArray[np.int64]]:
    """Return all pieces with their contexts as one text, and where in it each piece begins.

    Lines between them keep one from being the neighbour of another; the rating of a document's
    first token, the only one that would see it, is never asked for.
    """
    texts = [piece.document[piece.start - piece.context : piece.end] for piece in group]
    sizes = np.array([len(text) + 1 for text in texts])
    begins = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    return "\n".join(texts), begins + np.array([piece.context for piece in group])


def _join(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    lengths = [0, *(len(part.ids) for part in parts)]
    cuts = [part.cuts for part in parts if part.cuts is not None]
    joined = Cuts(
        starts=np.concatenate([np.zeros(0, np.int64), *(each.starts for each in cuts)]),
        fresh=b"".join(each.fresh for each in cuts),
        classes=b"".join(each.classes for each in cuts),
        seams=[int(n) for n in np.cumsum(lengths)[1:-1]],
    )
    return Tokens(np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]), joined)
