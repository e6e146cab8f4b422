"""What else the device could do with a forward pass: batch sizes, threads, formats, a compiler.

And what no variant can pass: the matrix products alone.

Not a target: it shows why the worker's choice stands on this machine, or that it should not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

from benchmarks import ceiling
from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.figures import Figure, Measured, interleaved
from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import EmbeddingModel
from pgqueue_embed.embedding.devices import kind_of
from pgqueue_embed.embedding.shapes import SIZES_OF, Batch, plan_batches

PART = "device"
RECORDS = 30

Rate = Callable[[], float]


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the forward pass on ready ids in variants of which a worker uses one."""
    import torch

    model = ceiling.load_model()
    corpus = maude().sample(RECORDS)
    chunks = ceiling.distinct_chunks(model, corpus.documents)
    chosen = model.limits.max_tokens_per_batch
    variants = {
        f"{size:,} tokens a batch": _forward(model, chunks, size)
        for size in SIZES_OF[kind_of(model.device)]
    }
    if kind_of(model.device) == "cpu":
        variants["one thread"] = _with_threads(1, _forward(model, chunks, chosen))
        variants["bf16 by autocast"] = _forward(model, chunks, chosen, _autocast)
        compiled = torch.compile(model._network.vectors, dynamic=True)
        variants["torch.compile"] = _forward(model, chunks, chosen, vectors=compiled)
    bench.say("a first pass of each variant, to warm up and to compile")
    for variant in variants.values():
        variant()
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    figures = [
        Figure(
            part=PART,
            name=f"forward {model.precision}, {name}",
            corpus=f"{len(chunks)} chunks of MAUDE",
            unit="chunks/s",
            values=rates,
        )
        for name, rates in outcomes.items()
    ]
    tokens = sum(map(model.sequence_tokens, chunks))
    figures.append(_products(model, bench.rounds, tokens / len(chunks)))
    note = f"a worker here takes batches of {chosen:,} tokens"
    yield Measured(figures=figures, notes=[note])


def _products(model: EmbeddingModel, rounds: int, chunk_tokens: float) -> Figure:
    """Time the matrix products of the forward pass alone, without all that is between them.

    They are those of its linear layers; attention's own come to some percent at this length.
    """
    import torch

    library = ceiling.load_library().to(model.device)
    if model.precision == "fp16":
        library.half()
    layers = [each for each in library.modules() if isinstance(each, torch.nn.Linear)]
    rows = model.limits.max_tokens_per_batch
    inputs = [torch.randn(rows, layer.in_features).to(layer.weight) for layer in layers]
    flops = sum(2 * layer.in_features * layer.out_features for layer in layers)
    rates: list[float] = []
    with torch.no_grad():
        for _ in range(rounds + 1):
            started = time.perf_counter()
            for layer, each in zip(layers, inputs, strict=True):
                torch.nn.functional.linear(each, layer.weight, layer.bias)
            rates.append(rows / (time.perf_counter() - started))
    return Figure(
        part=PART,
        name=f"matrix products alone, {model.precision}",
        corpus=f"{chunk_tokens:.0f} tokens a chunk",
        unit="chunks/s",
        values=[rate / chunk_tokens for rate in rates[1:]],
        note=f"{flops / 1e6:.1f} MFLOP a token, {median(rates[1:]) * flops / 1e9:.0f} GFLOPS",
    )


def _autocast() -> AbstractContextManager[Any]:
    import torch

    context: AbstractContextManager[Any] = torch.autocast("cpu", dtype=torch.bfloat16)
    return context


def _forward(
    model: EmbeddingModel,
    chunks: Sequence[Chunk],
    size: int,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    vectors: Any = None,
) -> Rate:
    lengths = [model.sequence_tokens(chunk) for chunk in chunks]
    batches = plan_batches(lengths, model.limits.resized(size))

    def measure_once() -> float:
        if vectors is not None:
            vars(model._network)["vectors"] = vectors
        try:
            return len(chunks) / _seconds(model, chunks, batches, context)
        finally:
            vars(model._network).pop("vectors", None)

    return measure_once


def _seconds(
    model: EmbeddingModel,
    chunks: Sequence[Chunk],
    batches: Sequence[Batch],
    context: Callable[[], AbstractContextManager[Any]],
) -> float:
    started = time.perf_counter()
    with model.session(), context():
        for batch in batches:
            model.forward([chunks[row] for row in batch.rows], length=batch.length)
    return time.perf_counter() - started


def _with_threads(count: int, rate: Rate) -> Rate:
    import torch

    def measure_once() -> float:
        usual = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            return rate()
        finally:
            torch.set_num_threads(usual)

    return measure_once
