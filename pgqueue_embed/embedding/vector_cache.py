"""Vectors of chunks this process has embedded already, as many as fit."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray

_ENTRY_BYTES = 250  # key, array header and links, beside the numbers


class VectorCache:
    """The least recently used vectors of one model, by SHA-256 of the chunk's text.

    Safe to use from many threads. ``hits`` counts look-ups that were answered.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self._bytes = 0
        self._lock = threading.Lock()
        self._vectors: OrderedDict[bytes, NDArray[np.float32]] = OrderedDict()

    @staticmethod
    def key(text: str) -> bytes:
        """Return the key of a chunk's text."""
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()

    def get(self, key: bytes) -> NDArray[np.float32] | None:
        """Return the vector, shape (dimensions,), or None. Do not write to it."""
        with self._lock:
            vector = self._vectors.get(key)
            if vector is not None:
                self.hits += 1
                self._vectors.move_to_end(key)
            return vector

    def put(self, key: bytes, vector: NDArray[np.float32]) -> None:
        """Remember a copy of a vector, shape (dimensions,); forget the oldest beyond the limit."""
        entry = vector.copy()
        with self._lock:
            if self._vectors.pop(key, None) is None:
                self._bytes += entry.nbytes + _ENTRY_BYTES
            self._vectors[key] = entry
            while self._bytes > self.max_bytes and self._vectors:
                _, oldest = self._vectors.popitem(last=False)
                self._bytes -= oldest.nbytes + _ENTRY_BYTES

    def __len__(self) -> int:
        return len(self._vectors)
