"""Vectors of known texts are computed once for some starts, and again where they are not theirs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding.canary_check import CanaryCheck
from pgqueue_embed.embedding.learnt import KEPT_SECONDS, Memory
from pgqueue_embed.embedding.references import References
from pgqueue_embed.embedding.rows import Vectors, unit_rows

TEXTS = ("pump", "valve failed", "the alarm was silenced")
RIGHT = unit_rows(np.random.default_rng(7).normal(size=(len(TEXTS), 8)))
KEY = "a machine | a model"


class Network:
    """Gives each text its vector, and counts how many it was asked for."""

    def __init__(self) -> None:
        self.computed = 0

    def embed(self, chunks: Sequence[Chunk], _length: int | None) -> Vectors:
        self.computed += len(chunks)
        return np.stack([RIGHT[TEXTS.index(chunk.text)] for chunk in chunks])


def chunk(text: str) -> Chunk:
    ids = np.arange(len(text), dtype=np.int32)
    return Chunk(index=0, text=text, start=0, end=len(text), token_ids=ids)


def start(folder: Path) -> int:
    """Start with a model whose first canary is known; returns how many were computed in fp32."""
    network = Network()
    check = CanaryCheck([chunk(text) for text in TEXTS], lambda chunk: len(chunk.token_ids))
    check.kept = Memory(folder).references(KEY)
    check.remember({0: RIGHT[0]})
    check.complete(network.embed)
    computed = network.computed
    assert check.agreement(network.embed, None) == pytest.approx(1)
    return computed


def file_of(folder: Path) -> Path:
    (file,) = folder.glob("canaries-*.f32")
    return file


def test_the_next_start_computes_none_of_them(tmp_path: Path) -> None:
    folder = tmp_path / "new folder"
    assert start(folder) == len(TEXTS)
    assert start(folder) == 0
    assert [file.name for file in folder.iterdir()] == [file_of(folder).name]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no vectors",
        RIGHT.tobytes()[:-1],
        RIGHT.tobytes() + b"\0",
        RIGHT.astype(np.float64).tobytes(),
        RIGHT[:2].tobytes(),
        RIGHT[::-1].tobytes(),
        (2 * RIGHT).tobytes(),
        np.concatenate([RIGHT[:1], np.full((2, 8), np.nan, np.float32)]).tobytes(),
    ],
    ids=lambda content: f"{len(content)} {content[-4:]!r}",
)
def test_a_file_with_anything_else_is_computed_again_and_replaced(
    tmp_path: Path, content: bytes
) -> None:
    start(tmp_path)
    file_of(tmp_path).write_bytes(content)
    assert start(tmp_path) == len(TEXTS)
    assert start(tmp_path) == 0


@pytest.mark.parametrize("age", [KEPT_SECONDS + 60, -60.0])
def test_what_is_old_is_computed_anew_and_that_of_others_goes(tmp_path: Path, age: float) -> None:
    References(tmp_path, "another model", KEPT_SECONDS).keep(RIGHT)
    other = file_of(tmp_path)
    start(tmp_path)
    for file in tmp_path.iterdir():
        os.utime(file, (time.time() - age,) * 2)
    assert start(tmp_path) == len(TEXTS)
    assert not other.exists()
    assert start(tmp_path) == 0


def test_others_of_the_same_days_stay(tmp_path: Path) -> None:
    References(tmp_path, "another model", KEPT_SECONDS).keep(RIGHT)
    start(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made_keeps_nothing_and_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert start(tmp_path / "file" / "cache") == len(TEXTS)


def test_a_memory_that_is_to_learn_anew_recalls_none(tmp_path: Path) -> None:
    start(tmp_path)
    assert Memory(tmp_path, anew=True).references(KEY) is None
