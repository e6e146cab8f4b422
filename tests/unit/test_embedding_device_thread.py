"""Scheduling, out-of-memory and hung-device logic of the device thread, on a fake model."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import accumulate
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import DeviceThread, NonFiniteVectors
from pgqueue_embed.embedding import batch_runner as runner_module
from pgqueue_embed.embedding.rows import WrongVectors
from pgqueue_embed.embedding.shapes import plan_batches
from pgqueue_embed.embedding.vector_cache import VectorCache
from pgqueue_embed.errors import ModelError
from tests.support.fake_device import (
    WAIT_SECONDS,
    FakeModel,
    assert_right,
    chunk,
    chunks,
    running,
    vector_of,
)


@pytest.mark.parametrize("device", ["cpu", "mps", "cuda"])
def test_vectors_come_back_in_the_order_of_the_chunks(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "release_memory", lambda _: None)
    wanted = [chunk(f"c{n}", 1 + n * 37 % 300) for n in range(500)]
    model = FakeModel(device=device)
    with running(model) as thread:
        result = thread.embed(wanted)
    assert_right(result.vectors, wanted)
    assert model.threads == {"pgembed-device"}
    assert result.cache_hits == 0


def test_no_chunks_give_no_vectors() -> None:
    with running(FakeModel()) as thread:
        assert thread.embed([]).vectors.shape == (0, 32)


def test_a_text_is_embedded_once_in_a_call_and_once_in_a_process() -> None:
    model = FakeModel()
    with running(model) as thread:
        first = thread.embed([chunk("a"), chunk("b"), chunk("a")])
        second = thread.embed([chunk("b"), chunk("c")])
    assert [texts for texts, _ in model.batches] == [["a", "b"], ["c"]]
    assert (first.cache_hits, second.cache_hits) == (1, 1)
    assert_right(first.vectors, [chunk("a"), chunk("b"), chunk("a")])
    assert_right(second.vectors, [chunk("b"), chunk("c")])


def test_what_is_embedded_anew_replaces_what_the_cache_had() -> None:
    model = FakeModel()
    with running(model) as thread:
        thread.cache.put(VectorCache.key("a"), -vector_of("a"))
        result = thread.embed([chunk("a"), chunk("b"), chunk("a")], anew=True)
        later = thread.embed([chunk("a")])
    assert [texts for texts, _ in model.batches] == [["a", "b"]]
    assert (result.cache_hits, later.cache_hits) == (1, 1)
    assert_right(result.vectors, [chunk("a"), chunk("b"), chunk("a")])
    assert_right(later.vectors, [chunk("a")])


class Gate:
    """A hook that holds the first batch until it is opened."""

    def __init__(self) -> None:
        self.opened, self.entered = threading.Event(), threading.Event()

    def __call__(self, _chunks: Sequence[Chunk], _length: int) -> None:
        self.entered.set()
        self.opened.wait(WAIT_SECONDS)


def callers_in_order(
    model: FakeModel, gate: Gate, calls: Mapping[str, Sequence[Chunk]]
) -> list[str]:
    """Embed for several callers, the first of whom comes first; return whose each batch was."""
    with running(model) as thread, ThreadPoolExecutor(len(calls)) as pool:
        jobs = []
        for number, wanted in enumerate(calls.values(), 1):
            jobs.append(pool.submit(thread.embed, wanted))
            assert gate.entered.wait(WAIT_SECONDS)
            wait_until(partial(_is_active, thread, number))
        gate.opened.set()
        for job, wanted in zip(jobs, calls.values(), strict=True):
            assert_right(job.result(WAIT_SECONDS).vectors, wanted)
    return [texts[0].rstrip("0123456789") for texts, _ in model.batches]


def test_calls_of_one_size_are_computed_one_after_the_other() -> None:
    model = FakeModel(gate := Gate())
    order = callers_in_order(model, gate, {name: chunks(name, 400) for name in "abc"})
    assert order == ["a"] * 5 + ["b"] * 5 + ["c"] * 5


def test_a_small_call_overtakes_a_large_one() -> None:
    model = FakeModel(gate := Gate())
    calls = {"large": chunks("large", 400), "small": chunks("small", 100)}
    assert callers_in_order(model, gate, calls) == ["large", "small", "small", *["large"] * 4]


def test_small_calls_without_end_do_not_hold_up_a_large_one_for_longer_than_it_computes() -> None:
    ended = threading.Event()

    def is_small(chunks: Sequence[Chunk]) -> bool:
        return chunks[0].text.startswith("small")

    def wait_for_the_next(chunks: Sequence[Chunk], _length: int) -> None:
        others = 1 if is_small(chunks) else 2
        wait_until(
            lambda: (
                sum(is_small(each.chunks) for each in list(thread._waiting)) == others
                or ended.is_set()
            )
        )

    def embed_all(prefix: str) -> None:
        for number in range(20):
            thread.embed(chunks(f"{prefix}{number}-", 85))
        ended.set()

    model = FakeModel(wait_for_the_next)
    with running(model) as thread, ThreadPoolExecutor(3) as pool:
        large = pool.submit(thread.embed, chunks("large", 850))
        wait_until(lambda: len(thread._active) == 1)
        small = [pool.submit(embed_all, name) for name in ("small-a", "small-b")]
        large.add_done_callback(lambda _: ended.set())
        large.result(WAIT_SECONDS)
        for job in small:
            job.result(WAIT_SECONDS)
    order = [texts[0][:5] for texts, _ in model.batches]
    last_large = len(order) - order[::-1].index("large")
    assert order[:last_large].count("small") in range(8, 12)


def test_every_waiting_caller_hears_of_progress_in_its_own_thread() -> None:
    model = FakeModel()
    heard: dict[str, list[bool]] = {"a": [], "b": []}
    barrier = threading.Barrier(2)

    def caller(name: str) -> None:
        me = threading.get_ident()

        def note() -> None:
            heard[name].append(threading.get_ident() == me)

        barrier.wait(WAIT_SECONDS)
        thread.embed(chunks(name, 1000), on_progress=note)

    with running(model) as thread, ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(caller, name) for name in heard]:
            job.result(WAIT_SECONDS)
    assert all(notes and all(notes) for notes in heard.values())
    assert thread.batches_completed == len(model.batches)


def test_a_hung_device_gives_no_progress() -> None:
    gate, entered = threading.Event(), threading.Event()
    calls: list[int] = []

    def hang(_chunks: Sequence[Chunk], _length: int) -> None:
        if thread.batches_completed == 2:
            entered.set()
            gate.wait(WAIT_SECONDS)

    with running(FakeModel(hang)) as thread, ThreadPoolExecutor(1) as pool:
        job = pool.submit(thread.embed, chunks("x", 64 * 5), on_progress=lambda: calls.append(1))
        assert entered.wait(WAIT_SECONDS)
        before = thread.last_progress_monotonic
        assert not job.done()
        assert len(calls) <= 2
        gate.set()
        job.result(WAIT_SECONDS)
        assert thread.last_progress_monotonic > before


def test_a_device_that_hangs_in_its_self_test_is_seen() -> None:
    gate = threading.Event()

    class Hanging(FakeModel):
        def verify(self, rows: int, length: int) -> None:
            gate.wait(WAIT_SECONDS)

    with running(Hanging()) as thread, ThreadPoolExecutor(1) as pool:
        check = pool.submit(thread.verify)
        try:
            wait_until(lambda: thread.stalled_seconds() > 0)
        finally:
            gate.set()
        check.result(WAIT_SECONDS)
        assert thread.stalled_seconds() == 0


def test_a_lost_lease_ends_the_call_and_its_remaining_batches() -> None:
    def lose() -> None:
        raise LookupError("lease lost")

    def hold(_chunks: Sequence[Chunk], _length: int) -> None:
        if thread.batches_completed == 1:
            withdrawn.wait(WAIT_SECONDS)

    withdrawn = threading.Event()
    model = FakeModel(hold)
    with running(model) as thread:
        with pytest.raises(LookupError):
            thread.embed(chunks("lost", 2000), on_progress=lose)
        assert not thread._active
        assert not thread._waiting
        withdrawn.set()
        assert_right(thread.embed(chunks("next", 3)).vectors, chunks("next", 3))
    assert [texts[0][:4] for texts, _ in model.batches] == ["lost", "lost", "next"]


@pytest.mark.parametrize(
    ("device", "most_ahead", "least_ahead"),
    [
        ("cpu", 1, 0),
        # A read waits for all that was launched.
        ("mps", runner_module.GPU_BATCHES_AHEAD, 0),
        ("cuda", runner_module.GPU_BATCHES_AHEAD, runner_module.GPU_BATCHES_AHEAD - 1),
    ],
)
def test_gpu_has_batches_ahead_of_the_one_that_is_read(
    device: str, most_ahead: int, least_ahead: int
) -> None:
    wanted = chunks("g", 2_000 if device != "cuda" else 8_000, tokens=126)
    model = FakeModel(device=device)
    with running(model) as thread:
        assert_right(thread.embed(wanted).vectors, wanted)
    _assert_ahead(model.events, most_ahead, least_ahead)
    # As `pgembed bench` measures it.
    model = FakeModel(device=device)
    runner = runner_module.BatchRunner(model)
    lengths = [model.sequence_tokens(each) for each in wanted]
    found: dict[int, Any] = {}
    for rows, vectors in runner.run(wanted, plan_batches(lengths, runner.limits)):
        assert vectors is not None
        found |= zip(rows, vectors, strict=True)
    assert_right(np.array([found[row] for row in range(len(wanted))]), wanted)
    _assert_ahead(model.events, most_ahead, least_ahead)


def _assert_ahead(events: Sequence[str], most_ahead: int, least_ahead: int) -> None:
    assert events.count("read") == events.count("launch") > 8
    ahead = list(accumulate(1 if each == "launch" else -1 for each in events))
    begun, last = events.index("read"), len(events) - events[::-1].index("launch")
    assert max(ahead) == ahead[begun - 1] == most_ahead
    assert min(ahead[begun:last]) == least_ahead


def test_rows_without_a_vector_are_named_and_the_others_kept() -> None:
    wanted = [chunk("a"), chunk("bad1"), chunk("b"), chunk("bad2", 50), chunk("bad1")]
    model = FakeModel()
    with running(model) as thread:
        with pytest.raises(NonFiniteVectors) as caught:
            thread.embed(wanted)
        assert caught.value.rows == (1, 3, 4)
        again = thread.embed([wanted[0], wanted[2]])
    assert again.cache_hits == 2
    assert_right(again.vectors, [wanted[0], wanted[2]])


def test_every_new_shape_is_verified_on_metal_only() -> None:
    gpu, cuda, cpu = FakeModel(device="mps"), FakeModel(device="cuda"), FakeModel()
    for model in (gpu, cuda, cpu):
        with running(model) as thread:
            thread.embed(chunks("a", 300))
            thread.embed(chunks("b", 300, 60))
            thread.embed(chunks("c", 300))
    assert not cpu.verified
    assert len(cuda.verified) == 1
    assert len(gpu.verified) == len(set(gpu.verified))
    assert {(len(texts), length) for texts, length in gpu.batches} == set(gpu.verified)


def test_shapes_are_verified_again_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner_module, "VERIFY_EVERY_BATCHES", 4)
    model = FakeModel(device="mps")
    model.limits = model.limits.resized(128 * 12)  # 128 rows of these chunks
    with running(model) as thread:
        thread.embed(chunks("a", 128 * 9))
    assert model.verified == [(128, 12)] * 3


def test_wrong_vectors_stop_the_device_for_all() -> None:
    model = FakeModel(device="mps")
    with running(model) as thread:
        thread.embed(chunks("a", 10))
        model.wrong = True
        for _ in range(2):
            with pytest.raises(WrongVectors):
                thread.embed(chunks("b", 10, 60))


def test_a_model_that_does_not_load_is_everybodys_error() -> None:
    def load() -> FakeModel:
        raise ModelError("no such model")

    thread = DeviceThread(load)
    for _ in range(2):
        with pytest.raises(ModelError, match="no such model"):
            thread.embed(chunks("a", 1))
    with pytest.raises(ModelError):
        _ = thread.model


def _is_active(thread: DeviceThread[FakeModel], calls: int) -> bool:
    return len(thread._active) == calls


def wait_for(gate: threading.Event) -> None:
    gate.wait(WAIT_SECONDS)


def test_closing_ends_waiting_calls() -> None:
    gate = threading.Event()
    thread = DeviceThread(lambda: FakeModel(lambda _c, _l: wait_for(gate)))
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(thread.embed, chunks("a", 500))
        wait_until(lambda: bool(thread._active))
        closing = threading.Thread(target=thread.close)
        closing.start()
        with pytest.raises(ModelError, match="closed"):
            job.result(WAIT_SECONDS)
        gate.set()
        closing.join(WAIT_SECONDS)
    with pytest.raises(ModelError, match="closed"):
        thread.embed(chunks("a", 1))


def wait_until(condition: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(int(WAIT_SECONDS * 1000)):
        if condition():
            return
        pause.wait(0.001)
    raise AssertionError("waited in vain")
