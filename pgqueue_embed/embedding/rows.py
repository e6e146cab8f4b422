"""The last check of vectors before they are used."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.errors import ModelError, RecordFault

Vectors = NDArray[np.float32]

# How far from 1 rounding takes a squared length.
_UNIT = 1e-4


class NonFiniteVectors(RecordFault):
    """The model gave no usable vector for some rows: NaN, infinity or zero length.

    ``rows`` are their positions, ascending, in the sequence that was to be embedded; ``precision``
    is that of the device, beyond which fp32 was tried. ``device_seconds`` and ``fp32_chunks`` are
    what the call took all the same, as in `Embedded`.
    """

    def __init__(
        self,
        rows: tuple[int, ...],
        precision: str = "fp32",
        *,
        device_seconds: float = 0.0,
        fp32_chunks: int = 0,
    ) -> None:
        self.rows = rows
        self.device_seconds = device_seconds
        self.fp32_chunks = fp32_chunks
        tried = precision if precision == "fp32" else f"{precision}, nor again in fp32,"
        super().__init__(
            f"the model gave no usable vector (NaN, infinite or zero) in {tried} for row {rows}"
        )


class TooLong(RecordFault):
    """A text has more tokens than the model reads: nothing is cut off silently.

    ``tokens`` says how many, or that they are too many for the library to have read them all.
    """

    def __init__(self, name: str, tokens: int | None, limit: int) -> None:
        self.tokens, self.limit = f"{tokens or f'more than {limit}'} tokens", limit
        super().__init__(
            f"a chunk of {self.tokens} does not fit {name}, which reads {limit}: nothing is cut off"
            " silently"
        )


class WrongVectors(ModelError):
    """The device computes known texts wrong: nothing it gave lately can be trusted."""


def unit_rows(raw: NDArray[np.floating]) -> Vectors:
    """Scale each row of ``raw``, shape (n, dimensions), to length 1 in float32.

    Raises NonFiniteVectors naming the rows that have no direction.
    """
    vectors = np.ascontiguousarray(raw, dtype=np.float32)
    lengths = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))
    unusable = ~np.isfinite(lengths) | (lengths < np.finfo(np.float32).tiny)
    if unusable.any():
        raise NonFiniteVectors(tuple(int(row) for row in np.flatnonzero(unusable)))
    scaled: Vectors = vectors / lengths[:, None].astype(np.float32)
    return scaled


def is_unit(vectors: Vectors) -> bool:
    """Tell whether each row has length 1, as far as float32 tells."""
    lengths = np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64)
    return bool((np.abs(lengths - 1) < _UNIT).all())


# Of a vector of length 1 in half precision: of a shorter rest, rounding would choose the direction.
SHORTEST_REST = 1e-3


def first_dimensions(vectors: Vectors, dimensions: int) -> Vectors:
    """Return the first ``dimensions`` of unit ``vectors``, shape (n, more), of length 1 again.

    Raises RecordFault where next to nothing of a vector lies in them.
    """
    rest = vectors[:, :dimensions]
    shortest = float(np.sqrt(np.einsum("ij,ij->i", rest, rest).min(initial=1.0)))
    if not shortest >= SHORTEST_REST:
        raise RecordFault(
            f"a vector has nothing in its first {dimensions} dimensions (length {shortest:.1g});"
            " the model is not made for --truncate-dim"
        )
    return unit_rows(rest)


def lowest_cosine(left: Vectors, right: Vectors) -> float:
    """Return the smallest cosine between matching rows of two sets of unit vectors."""
    return float(np.einsum("ij,ij->i", left, right).min())


def agreement(embed: Callable[[], Vectors], references: Vectors) -> float:
    """Return the lowest cosine of what is computed now to what it should be; 0 for no vector."""
    try:
        return lowest_cosine(embed(), references)
    except NonFiniteVectors:
        return 0.0
