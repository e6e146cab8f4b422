"""A stack of BERT or a relative of it for one text, in numpy and fp32.

Operations follow those of transformers in their order, so that what differs is rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pgqueue_embed.embedding.light_files import Dense, Stack
from pgqueue_embed.embedding.network_plan import (
    DISTANCE_BUCKETS,
    DISTANCES,
    EMBEDDED_NORM,
    FARTHEST,
    POSITIONS,
    TYPES,
    WORDS,
)

Array = NDArray[np.float32]
Ids = NDArray[np.int64]


class NumpyNetwork:
    """All that makes a vector of the ids of a text."""

    def __init__(self, stack: Stack) -> None:
        self.plan = stack.plan
        self._weights = stack.weights
        self._pool = _POOLINGS[stack.pooling]
        self._after = stack.after

    def vector(self, ids: Ids) -> Array:
        """Return the vector of the ids of one text, shape (dimensions,)."""
        vector = self._pool(self.tokens(ids))
        for step in self._after:
            vector = _dense(step, vector) if isinstance(step, Dense) else _scaled(vector)
        return vector

    def tokens(self, ids: Ids) -> Array:
        """Return the vector of each token, shape (tokens, width), of the ids of one text."""
        vectors = self._normed(EMBEDDED_NORM, self._embedded(ids))
        bias = self._of_distances(len(ids)) if self.plan.distances else None
        for number in range(self.plan.layers):
            vectors = self._through(self.plan.names.layer.format(number), vectors, bias)
        return vectors

    def _embedded(self, ids: Ids) -> Array:
        vectors = self._rows(WORDS, ids)
        if self.plan.types:
            vectors = vectors + self._rows(TYPES, np.zeros(1, np.int64))
        return vectors + self._rows(POSITIONS, self._positions(ids))

    def _positions(self, ids: Ids) -> Ids:
        if self.plan.padding_id is None:
            return np.arange(len(ids))
        is_text = ids != self.plan.padding_id
        positions: Ids = np.cumsum(is_text) * is_text + self.plan.padding_id
        return positions

    def _through(self, layer: str, vectors: Array, bias: Array | None) -> Array:
        """Return the vectors behind one layer."""
        names = self.plan.names
        attended = self._linear(layer + names.attended, self._attended(layer, vectors, bias))
        vectors = self._normed(layer + names.attended_norm, attended + vectors)
        inner = gelu(self._linear(layer + names.inner, vectors))
        outer = self._linear(layer + names.outer, inner)
        return self._normed(layer + names.outer_norm, outer + vectors)

    def _attended(self, layer: str, vectors: Array, bias: Array | None) -> Array:
        names, heads = self.plan.names, self.plan.heads
        query, key, value = (
            self._linear(layer + part, vectors).reshape(len(vectors), heads, -1).swapaxes(0, 1)
            for part in (names.query, names.key, names.value)
        )
        scores = query @ key.swapaxes(1, 2) / np.float32(math.sqrt(query.shape[-1]))
        weights = softmax(scores if bias is None else scores + bias)
        attended: Array = (weights @ value).swapaxes(0, 1).reshape(vectors.shape)
        return attended

    def _of_distances(self, tokens: int) -> Array:
        """Return what is added to the attention of each head, shape (heads, tokens, tokens)."""
        place = np.arange(tokens)
        buckets = distance_buckets(place[:, None] - place)
        bias: Array = self._rows(DISTANCES, buckets).transpose(2, 0, 1)
        return bias

    def _linear(self, name: str, vectors: Array) -> Array:
        product: Array = vectors @ self._whole(f"{name}.weight").T
        return product + self._whole(f"{name}.bias")

    def _normed(self, name: str, vectors: Array) -> Array:
        centred = vectors - vectors.mean(-1, keepdims=True)
        variance = np.square(centred).mean(-1, keepdims=True)
        scaled = centred / np.sqrt(variance + np.float32(self.plan.epsilon))
        weighted: Array = scaled * self._whole(f"{name}.weight")
        return weighted + self._whole(f"{name}.bias")

    def _whole(self, name: str) -> Array:
        return self._weights[name].astype(np.float32, copy=False)

    def _rows(self, table: str, rows: Ids) -> Array:
        return self._weights[f"{table}.weight"][rows].astype(np.float32, copy=False)


def _mean(tokens: Array) -> Array:
    mean: Array = tokens.sum(0) / np.float32(len(tokens))
    return mean


def _first(tokens: Array) -> Array:
    first: Array = tokens[0]
    return first


_POOLINGS: dict[str, Callable[[Array], Array]] = {"mean": _mean, "cls": _first}
_ACTIVATIONS: dict[str, Callable[[Array], Array]] = {"Tanh": np.tanh, "Identity": np.asarray}


def _scaled(vector: Array) -> Array:
    scaled: Array = vector / np.maximum(np.linalg.norm(vector), np.float32(1e-12))
    return scaled


def _dense(layer: Dense, vector: Array) -> Array:
    product = layer.weight.astype(np.float32, copy=False) @ vector
    if layer.bias is not None:
        product = product + layer.bias.astype(np.float32, copy=False)
    return _ACTIVATIONS[layer.activation](product)


def softmax(scores: Array) -> Array:
    """Return the softmax over the last axis."""
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    weights: Array = powers / powers.sum(-1, keepdims=True)
    return weights


def distance_buckets(distances: Ids) -> Ids:
    """Return the bucket of each distance, as MPNet has it from T5: exact near by, by logarithm
    farther away, and with a half of the buckets for each direction."""
    half = DISTANCE_BUCKETS // 2
    exact = half // 2
    far = np.maximum(np.abs(distances), 1).astype(np.float32) / exact
    by_log = np.log(far) / np.float32(math.log(FARTHEST / exact)) * np.float32(half - exact)
    large = np.minimum(exact + by_log.astype(np.int64), half - 1)
    near = np.abs(distances)
    return np.where(distances < 0, half, 0) + np.where(near < exact, near, large)


def gelu(values: Array) -> Array:
    """Return x times the normal distribution function of x."""
    wide = values.astype(np.float64)
    share = 0.5 * (1.0 + _ERF(wide * math.sqrt(0.5)))
    return (wide * share).astype(np.float32)


class _ErrorFunction:
    """The error function of arrays, which numpy lacks: a Taylor series from the nearest of many
    known values. Beyond the last, it is 1 within a double's precision; here within 1e-11."""

    _PER_UNIT = 256
    _END = 6

    @cached_property
    def _known(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values and slopes at multiples of a step."""
        places = np.arange(self._END * self._PER_UNIT + 1) / self._PER_UNIT
        values = np.array([math.erf(place) for place in places.tolist()])
        return values, 2 / math.sqrt(math.pi) * np.exp(-np.square(places))

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        size = np.minimum(np.abs(values), self._END)
        nearest = np.rint(np.nan_to_num(size) * self._PER_UNIT).astype(np.intp)
        place = nearest / self._PER_UNIT
        off = size - place
        known, slope = self._known
        series = off * (1 - off * (place - off * (2 * np.square(place) - 1) / 3))
        found: NDArray[np.float64] = np.copysign(known[nearest] + slope[nearest] * series, values)
        return found


_ERF = _ErrorFunction()
