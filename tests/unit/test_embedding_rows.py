"""Vectors are unit or refused; the cache keeps to its size."""

from __future__ import annotations

import numpy as np
import pytest

from pgqueue_embed.embedding.rows import NonFiniteVectors, lowest_cosine, unit_rows
from pgqueue_embed.embedding.vector_cache import VectorCache
from pgqueue_embed.errors import RecordFault


def test_rows_are_scaled_to_length_one_in_float32() -> None:
    raw = np.random.default_rng(0).normal(size=(50, 384)).astype(np.float16) * 100
    vectors = unit_rows(raw)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert lowest_cosine(vectors, unit_rows(raw * 2)) > 0.99999


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
def test_a_row_without_a_direction_is_named(value: float) -> None:
    raw = np.ones((4, 3), np.float32)
    raw[1] = raw[3] = value
    with pytest.raises(NonFiniteVectors) as caught:
        unit_rows(raw)
    assert caught.value.rows == (1, 3)
    assert isinstance(caught.value, RecordFault)


def test_the_cache_forgets_what_was_used_longest_ago() -> None:
    cache = VectorCache(3 * (16 + 250))
    keys = [VectorCache.key(text) for text in "abcd"]
    for key in keys[:3]:
        cache.put(key, np.ones(4, np.float32))
    assert cache.get(keys[0]) is not None
    cache.put(keys[3], np.ones(4, np.float32))
    assert [cache.get(key) is not None for key in keys] == [True, False, True, True]
    assert len(cache) == 3
    assert cache.hits == 4


def test_a_cached_vector_is_a_copy() -> None:
    cache = VectorCache(10_000)
    vector = np.ones(4, np.float32)
    cache.put(b"k", vector)
    vector[:] = 0
    kept = cache.get(b"k")
    assert kept is not None
    assert kept.tolist() == [1, 1, 1, 1]
