"""Tokenise documents once, as arrays: where tokens start and how good a cut there is."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

from pgqueue_embed.chunking import boundaries
from pgqueue_embed.chunking.characters import text_classes

# Pieces of this many characters keep tokenising linear in the length of a document (one long
# text takes five times as long as its pieces) and busy on all cores.
PIECE_CHARACTERS = 1 << 15
# Encodings take some 200 bytes a token until they are read; a group of them is read at a time.
_GROUP_PIECES = 32
_CONTEXT = 16  # characters before a piece that decide how good a cut its start is
_SEAM = re.compile(r"[\s\u3041-\u3096\u30a1-\u30fa\u3400-\u9fff,.;:!?，。；：！？、]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The n tokens of one document.

    ``starts`` are character offsets; ``fresh`` says that a word of the tokenizer begins there;
    ``classes`` is one byte per token as in `boundaries`; ``seams`` are the tokens, ascending, in
    front of which the document was parted to be tokenised.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    fresh: NDArray[np.bool_]
    classes: bytes
    seams: list[int]


def private_copy(tokenizer: Tokenizer) -> Tokenizer:
    """Copy a tokenizer, without truncation or padding and blind to control tokens in text."""
    state = json.loads(tokenizer.to_str())
    control = {token["content"] for token in state["added_tokens"] if token["special"]}
    state["added_tokens"] = [token for token in state["added_tokens"] if not token["special"]]
    _hide(state["model"], control)
    copy = Tokenizer.from_str(json.dumps(state))
    copy.no_truncation()
    copy.no_padding()
    return copy


def _hide(model: dict[str, Any], control: set[str]) -> None:
    """Put control tokens out of reach of a text that spells them, keeping their ids.

    Unigram models find ``</s>`` in their vocabulary like any other piece.
    """
    control = control - {model.get("unk_token")}
    vocabulary = model["vocab"]
    if isinstance(vocabulary, dict):
        for name in control & vocabulary.keys():
            vocabulary[f"\0{name}"] = vocabulary.pop(name)
    else:
        for entry in vocabulary:
            entry[0] = f"\0{entry[0]}" if entry[0] in control else entry[0]


def unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the id that stands for unreadable text, or None where there is none."""
    model = json.loads(tokenizer.to_str())["model"]
    if model.get("unk_id") is not None:
        return int(model["unk_id"])
    token = model.get("unk_token")
    return None if token is None else tokenizer.token_to_id(token)


def tokenise(
    tokenizer: Tokenizer, documents: Sequence[str], *, whole: bool = False
) -> Iterator[Tokens]:
    """Yield the tokens of each document, in order; ``whole`` parts none into pieces."""
    pieces = _encoded_pieces(tokenizer, documents, whole=whole)
    for document in documents:
        parts: list[Tokens] = []
        done = 0
        while done < len(document):
            offset, length, encoding = next(pieces)
            parts.append(_read(document, offset, length, encoding))
            done = offset + length
        yield _join(parts)


def _encoded_pieces(
    tokenizer: Tokenizer, documents: Iterable[str], *, whole: bool
) -> Iterator[tuple[int, int, Encoding]]:
    group: list[tuple[int, str]] = []
    for document in documents:
        for offset, end in _pieces(document, len(document) if whole else PIECE_CHARACTERS):
            group.append((offset, document[offset:end]))
            if len(group) == _GROUP_PIECES:
                yield from _encode(tokenizer, group)
                group = []
    yield from _encode(tokenizer, group)


def _encode(
    tokenizer: Tokenizer, group: list[tuple[int, str]]
) -> Iterator[tuple[int, int, Encoding]]:
    texts = [text for _, text in group]
    encodings = tokenizer.encode_batch(texts, add_special_tokens=False)
    for (offset, text), encoding in zip(group, encodings, strict=True):
        yield offset, len(text), encoding


def _pieces(document: str, size: int) -> Iterator[tuple[int, int]]:
    start = 0
    while start < len(document):
        end = _seam(document, start + size)
        yield start, end
        start = end


def _seam(document: str, target: int) -> int:
    """Return a place at or before ``target`` to part the document, or the next one behind."""
    if target >= len(document):
        return len(document)
    for separator in ("\n\n", "\n", " "):
        position = document.rfind(separator, target - PIECE_CHARACTERS // 2, target)
        if position >= 0:
            return position
    match = _SEAM.search(document, target)
    return match.start() if match else len(document)


def _read(document: str, offset: int, length: int, encoding: Encoding) -> Tokens:
    count = len(encoding)
    spans = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * count)
    starts, ends = np.minimum(spans[::2], length - 1), spans[1::2]
    # A token that is no part of a word has None here, which becomes NaN: unequal to all.
    words = np.array(encoding.word_ids, np.float64)
    fresh = np.ones(count, np.bool_)
    fresh[1:] = words[1:] != words[:-1]
    context = min(offset, _CONTEXT)
    rated = text_classes(document[offset - context : offset + length], starts + context)
    classes = np.maximum(rated, np.where(fresh, boundaries.JOINT, boundaries.INSIDE))
    # Several tokens of one character share its offsets: no slice ends between them.
    classes[1:][starts[1:] < np.maximum.accumulate(ends)[:-1]] = boundaries.NOWHERE
    ids = np.array(encoding.ids, np.int32)
    data = classes.astype(np.uint8).tobytes()
    return Tokens(ids=ids, starts=starts + offset, fresh=fresh, classes=data, seams=[])


def _join(parts: list[Tokens]) -> Tokens:
    if len(parts) == 1:
        return parts[0]
    lengths = [0, *(len(part.ids) for part in parts)]
    return Tokens(
        ids=np.concatenate([np.zeros(0, np.int32), *(part.ids for part in parts)]),
        starts=np.concatenate([np.zeros(0, np.int64), *(part.starts for part in parts)]),
        fresh=np.concatenate([np.zeros(0, np.bool_), *(part.fresh for part in parts)]),
        classes=b"".join(part.classes for part in parts),
        seams=[int(n) for n in np.cumsum(lengths)[1:-1]],
    )
