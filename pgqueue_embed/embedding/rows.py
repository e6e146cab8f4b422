"""The last check of vectors before anybody sees them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.errors import ModelError, RecordFault

Vectors = NDArray[np.float32]


class NonFiniteVectors(RecordFault):
    """The model gave no usable vector for some rows: NaN, infinity or zero length.

    ``rows`` are their positions, ascending, in the sequence that was to be embedded.
    """

    def __init__(self, rows: tuple[int, ...]) -> None:
        self.rows = rows
        super().__init__(f"the model gave no usable vector (NaN, infinite or zero) for row {rows}")


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


def lowest_cosine(left: Vectors, right: Vectors) -> float:
    """Return the smallest cosine between matching rows of two sets of unit vectors."""
    return float(np.einsum("ij,ij->i", left, right).min())
