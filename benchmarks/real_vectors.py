"""Vectors of very many texts by the default model, kept in files for the next run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.ceiling import load_model
from benchmarks.packages import cache_folder
from pgqueue_embed.embedding import DeviceThread, EmbeddingModel, fingerprint, resolve_model
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

# What is lost where a run is cut short; a quick run takes the first of these alone.
PART_TEXTS = 10_000

# As a worker has claims: one is tokenised while another is computed.
PARTS_AT_ONCE = 2


def real_vectors(texts: Sequence[str], say: Callable[[str], None]) -> NDArray[np.float32]:
    """Return the unit vectors of texts, shape (texts, dimensions), in the precision of a worker.

    Those that an earlier run has computed are read, as whole parts of the same texts in order.
    """
    parts = [texts[first : first + PART_TEXTS] for first in range(0, len(texts), PART_TEXTS)]
    files = [_file(part) for part in parts]
    absent = [(file, part) for file, part in zip(files, parts, strict=True) if not file.exists()]
    if absent:
        _embed(absent, say)
    return np.concatenate([np.load(file) for file in files])


def _file(part: Sequence[str]) -> Path:
    """Return where the vectors of these texts, by this model, are kept."""
    folder = cache_folder() / "vectors"
    folder.mkdir(exist_ok=True)
    digest = hashlib.sha256(fingerprint(resolve_model(DEFAULT_MODEL).path).digest.encode())
    for text in part:
        digest.update(b"\0" + text.encode())
    return folder / f"{digest.hexdigest()[:32]}.npy"


def _embed(parts: Sequence[tuple[Path, Sequence[str]]], say: Callable[[str], None]) -> None:
    """Compute parts as a worker does, its passes beside one another, and keep each."""
    device: DeviceThread[EmbeddingModel] = DeviceThread(load_model, cache_bytes=0)

    def vectors(part: Sequence[str]) -> NDArray[np.float32]:
        chunks = [device.model.whole_chunk(text) for text in part]
        return device.embed(chunks).vectors

    with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
        try:
            say(f"embedding in {device.model.precision}")
            computed = pool.map(vectors, [part for _, part in parts])
            for number, ((file, part), found) in enumerate(zip(parts, computed, strict=True)):
                _keep(file, found)
                say(f"{len(part):,} texts embedded, {number + 1} of {len(parts)} times")
        finally:
            device.close()  # so that the pool has nothing left to do


def _keep(file: Path, vectors: NDArray[np.float32]) -> None:
    """Write a file that is whole or not there."""
    written = file.with_suffix(".part.npy")
    np.save(written, vectors)
    written.rename(file)
