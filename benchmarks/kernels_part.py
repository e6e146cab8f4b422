"""Variants of the forward pass on a GPU, of which a worker uses one: formats, kernels, a compiler.

On whole sequences of 128 tokens that lie on the device already; a worker's batches are measured by
the part `gpu`. Skipped where torch finds no GPU of NVIDIA's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Measured, interleaved
from benchmarks.random_model import large_model
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.embedding.devices import choose_device, describe_device, kind_of
from pgqueue_embed.embedding.model_use import AS_ITS_FILES_SAY
from pgqueue_embed.embedding.torch_network import TorchNetwork
from pgqueue_embed.embedding.understood import understand
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

PART = "kernels"
LENGTH = 128
WORDS = (1_000, 20_000)  # ids of usual words in the default model's vocabulary
TOKENS = 65_536
PASSES = 10

Pass = Callable[[], Any]
Rate = Callable[[], float]


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the default model and a large one."""
    if kind_of(choose_device("auto")) != "cuda":
        yield Measured(notes=["skipped: no GPU of NVIDIA's here"])
        return
    for name, path in (
        ("MiniLM, 22 M parameters", resolve_model(DEFAULT_MODEL).path),
        ("BERT-large, 335 M parameters", large_model()),
    ):
        yield _measure(bench, name, path)


def _measure(bench: Bench, name: str, path: Path) -> Measured:
    import torch

    rows = TOKENS // LENGTH
    ids = torch.randint(*WORDS, (rows, LENGTH), device="cuda")
    mask = torch.ones_like(ids)
    mask[::2, LENGTH - 8 :] = 0
    with torch.no_grad():
        variants: dict[str, Rate] = {
            what: partial(_rate, rows, forward)
            for what, forward in _variants(path, ids, mask).items()
        }
        whole = partial(_network(path, torch.float32).by_operations, ids, None)
        variants["fp32 with TF32"] = _within(_tf32, partial(_rate, rows, whole))
        variants["bf16 by autocast"] = _within(_autocast, partial(_rate, rows, whole))
        bench.say(f"{name}: a first pass of each variant, to warm up and to compile")
        for variant in variants.values():
            variant()
        outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    figures = [
        Figure(part=PART, name=what, corpus=name, unit="chunks/s", values=rates)
        for what, rates in outcomes.items()
    ]
    device = describe_device("cuda")
    note = f"{name} on {device}: {rows} sequences of {LENGTH} tokens; masked: every other is padded"
    return Measured(figures=figures, notes=[note])


def _variants(path: Path, ids: Any, mask: Any) -> dict[str, Pass]:
    import torch

    variants: dict[str, Pass] = {}
    for name, dtype in (
        ("fp32", torch.float32),
        ("bf16 weights", torch.bfloat16),
        ("fp16 weights", torch.float16),
    ):
        network = _network(path, dtype)
        variants[name] = partial(network.by_operations, ids, None)
        variants[f"{name}, masked"] = partial(network.by_operations, ids, mask)
    variants["fp16 weights, masked, in one call"] = partial(network.in_one_call, ids, mask)
    variants["fp16 weights, masked, CUDA graph"] = _graph(variants["fp16 weights, masked"])
    compiled = torch.compile(network.by_operations, dynamic=False)
    variants["fp16 weights, torch.compile"] = partial(compiled, ids, None)
    variants["fp16 weights, masked, torch.compile"] = partial(compiled, ids, mask)
    return variants


def _network(path: Path, dtype: Any) -> TorchNetwork:
    network = TorchNetwork(understand(path, AS_ITS_FILES_SAY).stack)
    network.to(device="cuda", dtype=dtype)
    return network


def _within(context: Callable[[], AbstractContextManager[Any]], rate: Rate) -> Rate:
    """Return a measurement within a context, which holds the weights that it has converted."""

    def measure_once() -> float:
        with context():
            return rate()

    return measure_once


def _autocast() -> AbstractContextManager[Any]:
    import torch

    context: AbstractContextManager[Any] = torch.autocast("cuda", dtype=torch.bfloat16)
    return context


@contextmanager
def _tf32() -> Iterator[None]:
    import torch

    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def _graph(forward: Pass) -> Pass:
    """Record a pass, so that it is launched by one call."""
    import torch

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        forward()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = forward()

    def replay() -> Any:
        graph.replay()
        return kept

    return replay


def _rate(rows: int, forward: Pass) -> float:
    """Return chunks a second, by the device's own clock."""
    import torch

    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begun.record()
    for _ in range(PASSES):
        forward()
    ended.record()
    torch.cuda.synchronize()
    return float(PASSES * rows / (begun.elapsed_time(ended) / 1_000))
