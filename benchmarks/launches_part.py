"""The cost of launching a pass beside threads that cut texts: by operations, and as one call.

The batch is so small that its operations cost next to nothing, as for a thread that only gives them
to a GPU. All of it is on one core each, of the CPU where there is no GPU.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.figures import Figure, Measured, interleaved
from pgqueue_embed.chunking import Chunker
from pgqueue_embed.embedding import EmbeddingModel, resolve_model
from pgqueue_embed.embedding.devices import choose_device, describe_device
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY
from pgqueue_embed.embedding.one_call import USUAL_RUNS
from pgqueue_embed.embedding.torch_network import TorchNetwork
from pgqueue_embed.embedding.understood import understand
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

PART = "launches"
CUTTERS = (0, 1, 2)
PASSES = 50
ROWS, LENGTH = 1, 2


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the seconds of a launch of the default model's pass."""
    import torch

    device = choose_device("auto")
    torch.set_num_threads(1)
    ways = _ways(device)
    chunker = Chunker(
        EmbeddingModel(resolve_model(DEFAULT_MODEL)).tokenizer, max_tokens=128, overlap_tokens=20
    )
    documents = maude().sample(100).documents
    variants = {
        f"{way}, {cutters} threads that cut": _seconds(launch, cutters, chunker, documents)
        for cutters in CUTTERS
        for way, launch in ways.items()
    }
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    figures = [
        Figure(part=PART, name=name, corpus="reports", unit="ms a pass", values=values)
        for name, values in outcomes.items()
    ]
    yield Measured(figures=figures, notes=[f"launches: on {describe_device(device)}"])


def _ways(device: str) -> dict[str, Callable[[], Any]]:
    import torch

    network = TorchNetwork(understand(resolve_model(DEFAULT_MODEL).path, AS_ITS_FILES_SAY).stack)
    network.to(device=device)
    ids = torch.randint(1_000, 20_000, (ROWS, LENGTH), device=device)
    with torch.no_grad():
        for _ in range(USUAL_RUNS):
            network.in_one_call(ids, None)
    return {
        "by operations": partial(network.by_operations, ids, None),
        "as one call": partial(network.in_one_call, ids, None),
    }


def _seconds(
    launch: Callable[[], Any], cutters: int, chunker: Chunker, documents: Any
) -> Callable[[], float]:
    import torch

    def measure_once() -> float:
        with _cutting(cutters, chunker, documents), torch.no_grad():
            started = time.perf_counter()
            for _ in range(PASSES):
                launch()
            return 1_000 * (time.perf_counter() - started) / PASSES

    return measure_once


@contextmanager
def _cutting(cutters: int, chunker: Chunker, documents: Any) -> Iterator[None]:
    """Let so many threads cut documents meanwhile, over and over."""
    is_over = threading.Event()

    def cut() -> None:
        while not is_over.is_set():
            chunker.chunk(documents)

    threads = [threading.Thread(target=cut, daemon=True) for _ in range(cutters)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
