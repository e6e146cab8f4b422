"""Passes of a CPU beside one another: their vectors are those of passes by themselves."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import DeviceThread, EmbeddingModel, devices, placed_model
from pgqueue_embed.embedding.batch_runner import BatchRunner
from pgqueue_embed.embedding.light_network import LightNetwork
from pgqueue_embed.embedding.pass_threads import PassThreads
from pgqueue_embed.embedding.precision import BF16, BF16_WEIGHTS, FP32, FP32_PACKED, Variant
from pgqueue_embed.embedding.rows import lowest_cosine
from tests.support.conditions import wait_until
from tests.support.corpus import texts
from tests.support.models import make_tiny_model
from tests.support.opened_models import by_library, chunks_of, load
from tests.support.variants import found_fastest

COUNT = 3
SAME = 0.99999


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny") / "model", dimensions=64)


@pytest.fixture(autouse=True)
def three_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a CPU have COUNT cores."""

    def start(_count: int, session: Any) -> PassThreads:
        return PassThreads(COUNT, session)

    monkeypatch.setattr(placed_model, "PassThreads", start)


@pytest.fixture
def documents(folder: Path) -> list[Chunk]:
    return chunks_of(
        load(folder), *(f"{text} {'again ' * (n % 50)}" for n, text in enumerate(texts(300)))
    )


class Passes:
    """Counts the passes of a model that are under way; ``hold`` lets them go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: EmbeddingModel) -> None:
        self.hold = threading.Event()
        self.under_way = self.most = 0
        self._condition = threading.Condition()
        self._compute = model._compute
        monkeypatch.setattr(model, "_compute", self)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self._count(1)
        assert self.hold.wait(30)
        try:
            return self._compute(*arguments, **options)
        finally:
            self._count(-1)

    def wait_for(self, count: int) -> None:
        with self._condition:
            assert self._condition.wait_for(lambda: self.under_way == count, 30)

    def _count(self, step: int) -> None:
        with self._condition:
            self.under_way += step
            self.most = max(self.most, self.under_way)
            self._condition.notify_all()


def test_as_many_passes_as_cores_are_computed_at_once(
    monkeypatch: pytest.MonkeyPatch, folder: Path, documents: list[Chunk]
) -> None:
    model = load(folder)
    passes = Passes(monkeypatch, model)
    with closing(DeviceThread(lambda: model)) as device, ThreadPoolExecutor() as callers:
        found = callers.submit(device.embed, documents)
        passes.wait_for(COUNT)
        passes.hold.set()
        assert found.result(60).vectors.shape == (len(documents), 64)
    assert passes.most == COUNT


def test_a_call_that_comes_while_a_pass_is_under_way_begins_beside_it(
    monkeypatch: pytest.MonkeyPatch, folder: Path, documents: list[Chunk]
) -> None:
    model = load(folder)
    passes = Passes(monkeypatch, model)
    with closing(DeviceThread(lambda: model)) as device, ThreadPoolExecutor() as callers:
        found = []
        try:
            for number in range(COUNT):
                found.append(callers.submit(device.embed, [documents[number]]))
                passes.wait_for(number + 1)
        finally:
            passes.hold.set()
        assert all(each.result(60).vectors.shape == (1, 64) for each in found)


@pytest.mark.parametrize("variant", [FP32, FP32_PACKED, BF16, BF16_WEIGHTS], ids=str)
def test_vectors_are_those_of_one_pass_after_the_other(
    monkeypatch: pytest.MonkeyPatch, folder: Path, documents: list[Chunk], variant: Variant
) -> None:
    found_fastest(monkeypatch, variant)
    model = load(folder, precision="auto")
    assert model.choice.variant == variant
    alone = np.concatenate([model.forward([chunk]) for chunk in documents])
    with closing(DeviceThread(lambda: model)) as device:
        found = device.embed(documents).vectors
    assert model.passes_at_once == COUNT
    assert lowest_cosine(found, alone) >= (SAME if variant.precision == "fp32" else 0.999)


def test_weights_are_changed_when_no_pass_is_under_way(
    monkeypatch: pytest.MonkeyPatch, folder: Path, documents: list[Chunk]
) -> None:
    """They are changed where they lie: a pass would go on with some of each."""
    model = load(folder)
    exact = np.concatenate([model.forward([chunk]) for chunk in documents])
    passes, found, pack = Passes(monkeypatch, model), [], LightNetwork.pack

    def packing(network: LightNetwork) -> None:
        found.append(passes.under_way)
        pack(network)

    monkeypatch.setattr(LightNetwork, "pack", packing)
    reads = [model.launch(documents[number::7]) for number in range(7)]
    passes.wait_for(COUNT)
    threading.Timer(0.2, passes.hold.set).start()
    model.place_in("cpu", FP32_PACKED)
    assert found == [0]
    for number, read in enumerate(reads):
        assert lowest_cosine(read(), exact[number::7]) >= SAME


def test_a_small_call_is_parted_among_the_cores(folder: Path) -> None:
    runner = BatchRunner(load(folder))
    limits = runner.limits
    assert runner.planned_for(COUNT * 100).max_tokens_per_batch == 100
    assert runner.planned_for(200, beside=COUNT - 2).max_tokens_per_batch == 100
    assert runner.planned_for(200, beside=COUNT - 1).max_tokens_per_batch == 512
    assert runner.planned_for(200, beside=9).max_tokens_per_batch == 512
    assert runner.planned_for(1).max_tokens_per_batch == limits.batch_tokens
    assert runner.planned_for(10**6).max_tokens_per_batch == limits.max_tokens_per_batch
    assert runner.batches_ahead == COUNT + 1


def test_what_one_pass_raises_is_its_callers_alone(
    monkeypatch: pytest.MonkeyPatch, folder: Path, documents: list[Chunk]
) -> None:
    model = load(folder)
    compute = model._compute

    def failing(reader: Any, chunks: Sequence[Chunk], *rest: Any, **options: Any) -> Any:
        if any("BREAKING" in chunk.text for chunk in chunks):
            raise RuntimeError("no such operator")
        return compute(reader, chunks, *rest, **options)

    monkeypatch.setattr(model, "_compute", failing)
    breaking = chunks_of(model, "BREAKING the pump")
    with closing(DeviceThread(lambda: model)) as device:
        with pytest.raises(RuntimeError, match="no such operator"):
            device.embed([*documents[:40], *breaking])
        assert device.embed(documents).vectors.shape == (len(documents), 64)


@pytest.fixture
def opened_by_library(folder: Path) -> Iterator[EmbeddingModel]:
    with by_library():
        yield load(folder)


def test_networks_of_the_library_compute_one_batch_after_the_other(
    opened_by_library: EmbeddingModel,
) -> None:
    assert opened_by_library.passes_at_once == 1


@pytest.mark.parametrize(
    ("cores", "passes", "threads"), [(1, 1, 1), (8, 8, 1), (20, 10, 2), (64, 16, 4)]
)
def test_cores_are_shared_by_so_many_passes_at_most(cores: int, passes: int, threads: int) -> None:
    import torch

    found = PassThreads(cores, nullcontext)
    assert found.count == passes
    assert found.start(torch.get_num_threads)() == threads
    found.close()


@pytest.fixture
def usual_threads() -> Iterator[int]:
    """Give new threads as many cores as before, whatever a test has given others."""
    import torch

    usual = torch.get_num_threads()
    yield usual
    torch.set_num_threads(usual)


def test_what_other_threads_are_given_is_not_what_passes_compute_by(usual_threads: int) -> None:
    import torch

    begun = threading.Event()

    @contextmanager
    def session() -> Iterator[None]:
        begun.set()
        yield

    found = PassThreads(1, session)
    assert begun.wait(30)
    torch.set_num_threads(usual_threads + 3)
    assert found.start(torch.get_num_threads)() == 1
    found.close()


def test_the_next_model_has_all_cores_for_what_no_other_pass_is_beside(
    monkeypatch: pytest.MonkeyPatch, folder: Path, usual_threads: int
) -> None:
    import torch

    found = PassThreads(1, nullcontext)
    assert found.start(torch.get_num_threads)() == 1
    monkeypatch.setattr(devices, "cores", lambda: usual_threads + 3)

    def load_model() -> int:
        load(folder)
        return torch.get_num_threads()

    with ThreadPoolExecutor() as threads:
        assert threads.submit(load_model).result(60) == usual_threads + 3
    found.close()


def test_what_a_pass_had_made_goes_when_it_fails() -> None:
    """Else a smaller batch, after one that was too large, would have no more memory than it."""
    made: list[weakref.ref[Any]] = []

    def compute() -> None:
        activations = np.zeros(8)
        made.append(weakref.ref(activations))
        raise MemoryError

    threads = PassThreads(1, nullcontext)
    read = threads.start(compute)
    with pytest.raises(MemoryError):
        read()
    assert made[0]() is None
    threads.close()


def test_another_model_has_all_cores_as_well(
    monkeypatch: pytest.MonkeyPatch, folder: Path, documents: list[Chunk]
) -> None:
    asked: list[int] = []

    def start(cores: int, session: Any) -> PassThreads:
        asked.append(cores)
        return PassThreads(cores, session)

    monkeypatch.setattr(placed_model, "PassThreads", start)
    for _ in range(2):
        with closing(DeviceThread(lambda: load(folder))) as device:
            device.embed(documents)
    assert len(asked) == 2
    assert asked[0] == asked[1]


def test_threads_go_with_the_model(folder: Path) -> None:
    model = load(folder)
    assert model.passes_at_once == COUNT
    assert model._pass_threads is not None
    threads = model._pass_threads._threads
    assert [thread.is_alive() for thread in threads] == [True] * COUNT
    del model
    gc.collect()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), "threads have ended")


def test_a_long_sequence_has_all_cores(
    monkeypatch: pytest.MonkeyPatch, folder: Path, documents: list[Chunk]
) -> None:
    model = load(folder)
    monkeypatch.setattr(PassThreads, "start", lambda *_: pytest.fail("on one core"))
    assert model.passes_at_once == COUNT
    monkeypatch.setattr(placed_model, "_LONGEST_BESIDE_OTHERS", 16)
    assert model.launch(documents[:1], length=17)().shape == (1, 64)
    with pytest.raises(pytest.fail.Exception):
        model.launch(documents[:1], length=16)


PROGRAM = """
import sys
from pathlib import Path
from tests.support.opened_models import load
model = load(Path(sys.argv[1]))
assert model.passes_at_once > 1
chunk = model.whole_chunk("pump " * 200)
reads = [model.launch([chunk] * 64, length=210) for _ in range(9)]
if sys.argv[2] == "dropped":
    del model
"""


@pytest.mark.parametrize("model", ["kept", "dropped"])
def test_program_may_end_while_passes_are_under_way(folder: Path, model: str) -> None:
    """torch ends a process at once whose threads end together with the interpreter."""
    command = [sys.executable, "-c", PROGRAM, str(folder), model]
    environment = {**os.environ, "OMP_NUM_THREADS": "3"}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
