"""Compares a model with the library on a few known texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding.library_network import LibraryNetwork
from pgqueue_embed.embedding.reader import TaskReader
from pgqueue_embed.embedding.rows import agreement, lowest_cosine, unit_rows
from pgqueue_embed.embedding.transfers import Raw
from pgqueue_embed.errors import ModelError

# Feeding ids must give the vectors of feeding texts; what differs is rounding.
_SAME_VECTORS = 0.9999
_SAME_PADDED = 0.99999
_UNIT = 1e-3
# One at a time, and twice: the library's way and this.
_SHORT_TEXTS = 6
_PADDING_TOKENS = 32

# The vectors of a reader's chunks as the network gives them, shape (n, dimensions): of one batch,
# whose sequences are padded to so many tokens, or to the longest.
Compute = Callable[[TaskReader, Sequence[Chunk], int | None], Raw]


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """What a model gave for known texts: the lowest cosine to the library's own vectors.

    None where these were not asked for. ``padding_changes_vectors``: a text has another vector in a
    batch with longer ones.
    """

    lowest_cosine: float | None
    dimensions: int
    is_unit_length: bool
    padding_changes_vectors: bool

    @classmethod
    def of(
        cls,
        vectors: Raw,
        lowest_cosine: float | None = None,
        *,
        padding_changes_vectors: bool = False,
    ) -> SelfTest:
        """Judge the vectors of some texts, shape (n, dimensions)."""
        lengths = np.linalg.norm(vectors.astype(np.float64), axis=1)
        return cls(
            lowest_cosine=lowest_cosine,
            dimensions=vectors.shape[1],
            is_unit_length=bool((np.abs(lengths - 1) < _UNIT).all()),
            padding_changes_vectors=padding_changes_vectors,
        )


def shortest(chunks: Sequence[Chunk]) -> list[int]:
    """Return the numbers of the few chunks that take least to compute."""
    order = sorted(range(len(chunks)), key=lambda number: len(chunks[number].text))
    return order[:_SHORT_TEXTS]


def compare_with_library(
    reader: TaskReader, canaries: Sequence[Chunk], library: LibraryNetwork, compute: Compute
) -> SelfTest:
    """Compare with the vectors of the library; let it read the texts where ids give others.

    Raises ModelError where neither gives its vectors.
    """
    wanted = _of_library(reader, canaries, library)
    cosine = _agreement(reader, wanted, compute)
    if cosine < _SAME_VECTORS:
        reader.ask_for_texts()
        cosine = _agreement(reader, wanted, compute)
    if cosine < _SAME_VECTORS:
        raise ModelError(
            f"model {reader.name} gives other vectors here than by sentence-transformers"
            f" (lowest cosine {cosine:.4f})"
        )
    return SelfTest.of(
        np.stack(list(wanted.values())),
        cosine,
        padding_changes_vectors=_is_changed_by_padding(reader, wanted, compute),
    )


def _of_library(
    reader: TaskReader, canaries: Sequence[Chunk], library: LibraryNetwork
) -> dict[str, Raw]:
    """Return the library's own vectors of a few canaries without control tokens, by text."""
    texts = reader.readable([chunk.text for chunk in canaries])
    fitting = sorted(filter(reader.fits, texts), key=len)
    fitting = [*fitting[:_SHORT_TEXTS], *fitting[_SHORT_TEXTS:][-1:]]
    vectors = library.encode(reader.task, fitting, reader.prompt)
    return dict(zip(fitting, vectors, strict=True))


def _agreement(reader: TaskReader, wanted: dict[str, Raw], compute: Compute) -> float:
    found = np.concatenate([compute(reader, [reader.whole(text)], None) for text in wanted])
    return lowest_cosine(unit_rows(found), unit_rows(np.stack(list(wanted.values()))))


def _is_changed_by_padding(reader: TaskReader, wanted: dict[str, Raw], compute: Compute) -> bool:
    """Tell whether short texts have other vectors in a batch; a convolution reads what pads it."""
    if not reader.is_transformer:
        return False
    chunks = [reader.whole(text) for text in wanted][:_SHORT_TEXTS]
    longest = max(reader.sequence_tokens(len(chunk.token_ids)) for chunk in chunks)
    length = min(longest + _PADDING_TOKENS, reader.max_tokens)
    alone = unit_rows(np.stack(list(wanted.values())[: len(chunks)]))
    return agreement(lambda: unit_rows(compute(reader, chunks, length)), alone) < _SAME_PADDED
