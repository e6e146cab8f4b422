"""The `Chunk`, a slice of a document with its token ids, and the `Chunks` of one document."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


# A frozen one takes more than twice as long to make, and a worker makes thousands a second.
@dataclass(slots=True, kw_only=True)
class Chunk:
    """A verbatim slice of a document: ``document[start:end] == text`` always.

    ``index`` counts from 0 within the document; ``start`` and ``end`` are character offsets.
    ``token_ids``, shape (tokens,), are the content tokens of ``text`` itself, without special
    tokens: tokenising the text again gives the same ids, wherever the cut fell. The chunks of a
    document share one array where they can, since a long document has millions of tokens.
    """

    index: int
    start: int
    end: int
    text: str
    token_ids: NDArray[np.int32] = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChunkedDocument:
    """The chunks of one document, in order, and what its text is made of.

    ``inputs`` are what the model reads for the chunks, one for each: the chunks themselves, or
    with their context around them. ``tokens`` counts the tokens of the whole document, overlaps
    once; ``unknown_tokens`` says how many of them the tokenizer could not read.
    """

    chunks: tuple[Chunk, ...]
    inputs: tuple[Chunk, ...]
    tokens: int
    unknown_tokens: int
