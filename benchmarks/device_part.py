"""Variants, batch sizes and threads of a device's forward pass.

And what no variant can pass: the matrix products alone.

Not a target: it shows why the worker's choice stands on this machine, or that it should not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from statistics import median

from benchmarks import ceiling
from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.figures import Figure, Measured, interleaved, ratio
from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import EmbeddingModel
from pgqueue_embed.embedding.devices import kind_of
from pgqueue_embed.embedding.precision import AUTO, FP32, candidates
from pgqueue_embed.embedding.probe import HOPELESS, probe
from pgqueue_embed.embedding.shapes import SIZES_OF
from pgqueue_embed.embedding.working_clock import working_clock

PART = "device"
RECORDS = 30


# Chunks a second.
Rate = Callable[[], float]


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the forward pass on ready ids in variants of which a worker uses one."""
    model = ceiling.load_model()
    chunks = ceiling.distinct_chunks(model, maude().sample(RECORDS).documents)
    yield _variants(bench, model, chunks)
    yield _sizes(bench, model, chunks)


def _variants(bench: Bench, chosen: EmbeddingModel, chunks: Sequence[Chunk]) -> Measured:
    """Measure what the probe chose from, by the clock that it has, with the canaries' cosines.

    On a CPU, that is one thread and its own time: a busy machine does not change it.
    """
    device, size = chosen.device, chosen.limits.max_tokens_per_batch
    variants = candidates(device, AUTO)
    probed = probe(variants, device)
    notes = [f"the probe takes {chosen.choice}"]
    notes += [f"not here: {each}, {why}" for each, why in probed.failures.items()]
    rates: dict[str, Rate] = {}
    cosines: dict[str, float] = {}
    fastest = max(probed.rates.values())
    for variant, rate in probed.rates.items():
        if rate * HOPELESS < fastest:
            notes.append(f"not timed: {variant}, {rate / fastest:.2f} of the fastest by the probe")
            continue
        model, cosines[str(variant)] = ceiling.in_variant(variant, device)
        rates[str(variant)] = _alone(model, chunks, size)
    found = _interleaved(bench, rates)
    figures = [
        Figure(
            part=PART,
            name=f"forward, {name}, one thread's own time",
            corpus=f"{len(chunks)} chunks of MAUDE",
            unit="chunks/s",
            values=values,
            note=f"{ratio(values, found[str(FP32)]):.2f} of fp32's rate,"
            f" lowest cosine of the canaries {cosines[name]:.5f}",
        )
        for name, values in found.items()
    ]
    return Measured(figures=figures, notes=notes)


def _sizes(bench: Bench, model: EmbeddingModel, chunks: Sequence[Chunk]) -> Measured:
    """Measure the variant in use in batches of all sizes, and otherwise than a CPU's."""
    chosen = model.limits.max_tokens_per_batch
    rates = {
        f"{size:,} tokens a batch": ceiling.forward_rate(model, chunks, size)
        for size in SIZES_OF[kind_of(model.device)]
    }
    if kind_of(model.device) == "cpu":
        rates["one batch after the other, on all cores"] = ceiling.one_by_one_rate(
            model, chunks, chosen
        )
        rates["one thread"] = _with_threads(1, ceiling.one_by_one_rate(model, chunks, chosen))
    figures = [
        Figure(
            part=PART,
            name=f"forward, {model.choice.variant}, {name}",
            corpus=f"{len(chunks)} chunks of MAUDE",
            unit="chunks/s",
            values=values,
        )
        for name, values in _interleaved(bench, rates).items()
    ]
    tokens = sum(map(model.sequence_tokens, chunks))
    figures.append(_products(model, bench.rounds, tokens / len(chunks)))
    return Measured(figures=figures)


def _interleaved(bench: Bench, rates: dict[str, Rate]) -> dict[str, list[float]]:
    bench.say("a first pass of each variant, to warm up")
    for each in rates.values():
        each()
    return interleaved(bench.rounds, rates, on_run=bench.on_run)


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


def _alone(model: EmbeddingModel, chunks: Sequence[Chunk], size: int) -> Rate:
    def measure_once() -> float:
        with working_clock(model.device) as clock:
            return ceiling.one_by_one_rate(model, chunks, size, clock)()

    return measure_once


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
