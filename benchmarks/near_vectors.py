"""Many vectors that lie as real ones do, without a model's time for each."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Each is a mean of so many real ones that lie together; the weights of a few of them prevail.
NEIGHBOURS = 8
CONCENTRATION = 0.3
SLICE = 10_000


def near(real: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Return `count` unit vectors, shape (count, dimensions), each among some of `real`.

    `real` are unit vectors, of shape (at least 8, dimensions). The weights are Dirichlet's, the
    real vectors taken in turn.
    """
    random = np.random.default_rng(0)
    nearest = np.argsort(-(real @ real.T), axis=1)[:, :NEIGHBOURS]
    made = np.empty((count, real.shape[1]), np.float32)
    for first in range(0, count, SLICE):
        numbers = np.arange(first, min(first + SLICE, count))
        weights = random.dirichlet([CONCENTRATION] * NEIGHBOURS, len(numbers)).astype(np.float32)
        parts = real[nearest[numbers % len(real)]]
        means = np.einsum("ik,ikd->id", weights, parts)
        made[numbers] = means / np.linalg.norm(means, axis=1, keepdims=True)
    return made
