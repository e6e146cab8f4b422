"""Part 5: models that cost next to nothing, so that what is left is the pipeline's own cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from statistics import median
from unittest.mock import patch

from benchmarks.bench import Bench
from benchmarks.corpora import Corpus, maude, poems, wikipedia
from benchmarks.cpu_time import server_seconds
from benchmarks.database import cloned, fake_identity, queued_database
from benchmarks.figures import Figure, Measured, interleaved
from benchmarks.runs import STAGES, Run, timed_run
from benchmarks.stub_model import (
    DIMENSIONS,
    default_chunker,
    default_tokenizer,
    drain_with_stub,
)
from pgqueue_embed.chunking import Chunker
from pgqueue_embed.chunking.nanotoken_reader import is_installed

PART = "pipeline"
TOKENISING, CUTTING = "tokenising alone", "cutting alone"
# What is added to the names of variants that the extra tokenises for.
BY_EXTRA = ", nanotoken"
# As many documents as a claim has, or so.
CLAIMED = 256


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the stub model on all corpora."""
    sizes = bench.sizes
    for load, records, concurrencies in (
        (wikipedia, sizes.stub_records, sizes.concurrencies),
        (maude, 2_000, (2,)),
        (poems, sizes.poems, (2,)),
    ):
        corpus = bench.corpus(load)
        if corpus is not None:
            yield _stub(bench, corpus.sample(records), concurrencies)


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One tokenising pass, or one drained queue: its `run`.

    The processor's seconds are those of this process, loops and tokenizer, and of PostgreSQL.
    """

    seconds: float
    own_cpu_seconds: float
    server_cpu_seconds: float
    run: Run | None = None


def _stub(bench: Bench, corpus: Corpus, concurrencies: tuple[int, ...]) -> Measured:
    bench.say(f"a model that costs nothing; {corpus.name}")
    identity = fake_identity(DIMENSIONS)
    template = queued_database(bench.server, corpus.documents, identity)
    variants: dict[str, Callable[[], Pass]] = {TOKENISING: _tokenising(bench, corpus)}
    for extra in ("", BY_EXTRA) if is_installed() else ("",):
        chunker = _chunker(extra)
        variants[f"{CUTTING}{extra}"] = _cutting(bench, corpus, chunker)
        for concurrency in concurrencies:
            variants[f"stub -c {concurrency}{extra}"] = _drain(
                bench, template, concurrency, chunker
            )
    return _stub_measured(corpus, interleaved(bench.rounds, variants, on_run=bench.on_run))


def _observed(bench: Bench, work: Callable[[], Run | None]) -> Pass:
    server = bench.server.status().pid
    server_before, own_before = server_seconds(server), time.process_time()
    started = time.perf_counter()
    run = work()
    return Pass(
        seconds=time.perf_counter() - started,
        own_cpu_seconds=time.process_time() - own_before,
        server_cpu_seconds=server_seconds(server) - server_before,
        run=run,
    )


def _tokenising(bench: Bench, corpus: Corpus) -> Callable[[], Pass]:
    """Return a measurement of one tokenising pass on all cores."""
    tokenizer = default_tokenizer()

    def tokenise() -> None:
        tokenizer.encode_batch(list(corpus.documents), add_special_tokens=False)

    return lambda: _observed(bench, tokenise)


def _chunker(extra: str) -> Chunker:
    """Return the chunker of a worker with the extra, or one without."""
    with patch("pgqueue_embed.chunking.readers.is_installed", return_value=bool(extra)):
        return default_chunker()


def _cutting(bench: Bench, corpus: Corpus, chunker: Chunker) -> Callable[[], Pass]:
    """Return a measurement of the chunker, which knows the words of the round before."""

    def cut() -> None:
        for first in range(0, len(corpus.documents), CLAIMED):
            chunker.chunk(corpus.documents[first : first + CLAIMED])

    return lambda: _observed(bench, cut)


def _drain(bench: Bench, template: str, concurrency: int, chunker: Chunker) -> Callable[[], Pass]:
    def drain(conninfo: str) -> Run:
        return timed_run(conninfo, lambda: drain_with_stub(conninfo, concurrency, chunker))

    def measure_once() -> Pass:
        with cloned(bench.server, template) as conninfo:
            return _observed(bench, lambda: drain(conninfo))

    return measure_once


def _stub_measured(corpus: Corpus, passes: dict[str, list[Pass]]) -> Measured:
    runs = {
        name: [each.run for each in found if each.run is not None]
        for name, found in passes.items()
        if found[0].run is not None
    }
    chunks = next(iter(runs.values()))[0].chunks
    ceiling = [chunks / each.seconds for each in passes[TOKENISING]]
    figures = [
        _figure(TOKENISING, corpus, "chunks/s", ceiling, f"both cores, {chunks:,} chunks in all")
    ]
    for name, found in runs.items():
        figures.append(_run_figure(name, corpus, found))
    for name, observed in passes.items():
        figures += _cpu_figures(name, corpus, chunks, observed)
    return Measured(figures=figures)


def _run_figure(name: str, corpus: Corpus, runs: list[Run]) -> Figure:
    """Return the rate, with what each stage takes (they overlap where claims run side by side)."""
    costs = {
        f"{stage} µs/chunk": [1e6 * run.stages[stage] / run.chunks for run in runs]
        for stage in STAGES
    }
    shown = ", ".join(f"{stage} {median(values):.0f}" for stage, values in costs.items())
    note = f"{runs[0].claims} claims: {shown}".replace(" µs/chunk", "") + " µs/chunk"
    rates = [run.rate for run in runs]
    return replace(_figure(name, corpus, "chunks/s", rates, note), details=costs)


def _cpu_figures(name: str, corpus: Corpus, chunks: int, passes: list[Pass]) -> list[Figure]:
    """Return the processor time of a chunk, ours and the server's."""
    times = {"its process": [1e6 * each.own_cpu_seconds / chunks for each in passes]}
    if passes[0].run is not None:
        times["PostgreSQL"] = [1e6 * each.server_cpu_seconds / chunks for each in passes]
    return [
        _figure(f"{name}, CPU of {whose}", corpus, "µs/chunk", values, "of all threads")
        for whose, values in times.items()
    ]


def _figure(name: str, corpus: Corpus, unit: str, values: list[float], note: str) -> Figure:
    return Figure(part=PART, name=name, corpus=corpus.name, unit=unit, values=values, note=note)
