"""Faults on a device: memory, batches of one caller, vectors; nobody else is hurt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import NonFiniteVectors
from pgqueue_embed.embedding import batch_runner as runner_module
from pgqueue_embed.embedding.rows import Vectors
from pgqueue_embed.errors import ModelError
from tests.support.fake_device import (
    WAIT_SECONDS,
    FakeModel,
    assert_right,
    chunks,
    running,
)


def test_out_of_memory_halves_the_batch_and_is_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    released: list[str] = []
    monkeypatch.setattr(runner_module, "release_memory", released.append)

    def limited(chunks: Sequence[Chunk], _length: int) -> None:
        if len(chunks) > 20:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 5 GB)")

    model = FakeModel(limited, device="mps")
    model.limits = model.limits.resized(128 * 12)  # 128 rows of these chunks
    with running(model) as thread:
        assert_right(thread.embed(chunks("a", 200)).vectors, chunks("a", 200))
        failures = len(released)
        assert failures == 3  # 128, 64, 32, and 16 fits
        assert_right(thread.embed(chunks("b", 200)).vectors, chunks("b", 200))
        assert len(released) == failures
    assert {len(texts) for texts, _ in model.batches} == {16}


def test_out_of_memory_with_a_single_row_is_the_machines_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "release_memory", lambda _: None)

    def never(_chunks: Sequence[Chunk], _length: int) -> None:
        raise RuntimeError("MPS backend out of memory")

    refused = pytest.raises(ModelError, match="does not hold one sequence")
    with running(FakeModel(never)) as thread, refused:
        thread.embed(chunks("a", 30))


def test_an_error_reaches_only_the_caller_whose_batch_failed() -> None:
    def fail(chunks: Sequence[Chunk], _length: int) -> None:
        if chunks[0].text.startswith("poison"):
            raise ValueError("boom")

    with running(FakeModel(fail)) as thread, ThreadPoolExecutor(2) as pool:
        good = pool.submit(thread.embed, chunks("good", 500))
        poison = pool.submit(thread.embed, chunks("poison", 500))
        assert_right(good.result(WAIT_SECONDS).vectors, chunks("good", 500))
        with pytest.raises(ValueError, match="boom"):
            poison.result(WAIT_SECONDS)


def test_out_of_memory_that_shows_at_the_read_halves_the_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runner_module, "release_memory", lambda _: None)
    model = FakeModel(device="mps")
    read = model._read

    def limited(raw: np.ndarray) -> Vectors:
        if len(raw) > 40:
            raise RuntimeError("MPS backend out of memory")
        return read(raw)

    monkeypatch.setattr(model, "_read", limited)
    with running(model) as thread:
        wanted = chunks("m", 700, tokens=126)
        assert_right(thread.embed(wanted).vectors, wanted)


class Rough(FakeModel):
    """Fails for poison, at the launch or at the read, and has memory for so many rows."""

    def __init__(self, device: str, most_rows: int) -> None:
        super().__init__(self._refuse, device=device)
        self.most_rows = most_rows

    def _refuse(self, chunks: Sequence[Chunk], _length: int, *, prefix: str = "poison") -> None:
        if any(chunk.text.startswith(prefix) for chunk in chunks):
            raise ValueError("boom")
        self._need_memory(len(chunks))

    def launch(
        self, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], Vectors]:
        read = super().launch(chunks, length=length)

        def read_all() -> Vectors:
            self._refuse(chunks, 0, prefix="rotten")
            self._need_memory(2 * len(chunks))
            return read()

        return read_all

    def _need_memory(self, rows: int) -> None:
        if rows > self.most_rows:
            raise RuntimeError("out of memory")


@settings(max_examples=40, deadline=None)
@given(
    device=st.sampled_from(["cpu", "mps", "cuda"]),
    most_rows=st.sampled_from([40, 300, 100_000]),
    calls=st.lists(
        st.tuples(st.sampled_from(["good", "poison", "rotten", "bad"]), st.integers(0, 900)),
        min_size=1,
        max_size=5,
    ),
)
def test_each_caller_gets_its_vectors_or_its_own_error(
    device: str, most_rows: int, calls: list[tuple[str, int]]
) -> None:
    with mock.patch.object(runner_module, "release_memory"):
        model = Rough(device, most_rows)
        with running(model) as thread, ThreadPoolExecutor(len(calls)) as pool:
            wanted = [chunks(f"{kind}{n} ", count) for n, (kind, count) in enumerate(calls)]
            futures = [pool.submit(thread.embed, each) for each in wanted]
            for (kind, count), each, future in zip(calls, wanted, futures, strict=True):
                error = future.exception(WAIT_SECONDS)
                if not count:
                    assert error is None
                elif kind == "good":
                    assert_right(future.result().vectors, each)
                else:
                    assert isinstance(error, NonFiniteVectors if kind == "bad" else ValueError)
            again = chunks("again", 50)
            assert_right(thread.embed(again).vectors, again)
            assert thread.stalled_seconds() == 0
