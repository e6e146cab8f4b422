"""The vectors of known texts in fp32 on the CPU, kept for some days in the user's cache folder.

To compute them is a tenth of a worker's start with a small model, and seconds with a large one.
"""

from __future__ import annotations

import hashlib
import time
from contextlib import suppress
from pathlib import Path

import numpy as np

from pgqueue_embed.embedding.rows import Vectors
from pgqueue_embed.whole_file import replacing


class References:
    """The file of one model on one machine; ``key`` names what its vectors depend on.

    It may hold anything, and be of another version of a library: who recalls it compares. What is
    older than ``kept_seconds`` is not recalled, and what cannot be written is computed at each
    start.
    """

    def __init__(self, folder: Path, key: str, kept_seconds: float) -> None:
        name = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:32]
        self._file = folder / f"canaries-{name}.f32"
        self._kept_seconds = kept_seconds

    def recall(self, shape: tuple[int, int]) -> Vectors | None:
        """Return what was kept, float32 of this shape (n, dimensions), or None."""
        size = 4 * shape[0] * shape[1]
        try:
            if self._is_old(self._file):
                return None
            with self._file.open("rb") as file:
                content = file.read(size + 1)
        except OSError:
            return None
        return np.frombuffer(content, "<f4").reshape(shape) if len(content) == size else None

    def keep(self, vectors: Vectors) -> None:
        """Keep what was computed, shape (n, dimensions), and remove what is old, of any model."""
        with suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._file) as new:
                new.write(vectors.astype("<f4").tobytes())
            for each in self._file.parent.glob("canaries-*.f32"):
                if self._is_old(each):
                    each.unlink(missing_ok=True)

    def _is_old(self, file: Path) -> bool:
        return not 0 <= time.time() - file.stat().st_mtime <= self._kept_seconds
