"""The share of time that loops keep a fast device busy, one that computes while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.bench import Bench
from benchmarks.corpora import wikipedia
from benchmarks.database import cloned, fake_identity, queued_database
from benchmarks.figures import Figure, Measured, interleaved
from benchmarks.runs import timed_run
from benchmarks.stub_model import DIMENSIONS, PacedModel, default_chunker, drain_with_stub

# About a thousand of these chunks a second, a quarter of what two cores tokenise and write.
TOKENS_PER_SECOND = 100_000
IN_ONE_CALL = "in one call"


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the share of the time in which the device computes."""
    corpus = bench.corpus(wikipedia)
    if corpus is None:
        return
    corpus = corpus.sample(bench.sizes.fed_records)
    template = queued_database(bench.server, corpus.documents, fake_identity(DIMENSIONS))
    variants = {
        f"-c {concurrency}, {way}": _busy_share(bench, template, concurrency, way == IN_ONE_CALL)
        for concurrency in bench.sizes.concurrencies
        for way in ("launched by operations", IN_ONE_CALL)
    }
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    yield Measured(
        figures=[
            Figure(
                part="feeding",
                name=f"a device of {TOKENS_PER_SECOND:,} tokens/s, {name}",
                corpus=corpus.name,
                unit="of its time busy",
                values=shares,
            )
            for name, shares in outcomes.items()
        ]
    )


def _busy_share(
    bench: Bench, template: str, concurrency: int, in_one_call: bool
) -> Callable[[], float]:
    chunker = default_chunker()

    def measure_once() -> float:
        model = PacedModel(TOKENS_PER_SECOND, in_one_call=in_one_call)
        with cloned(bench.server, template) as conninfo:
            run = timed_run(
                conninfo,
                lambda: drain_with_stub(conninfo, concurrency, chunker, lambda: model),
            )
        return model.busy_seconds / run.steady_seconds

    return measure_once
