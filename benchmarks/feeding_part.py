"""The share of time that loops keep a fast device busy, one that computes while they work."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.bench import Bench
from benchmarks.corpora import Corpus, shuffled_reports, wikipedia
from benchmarks.database import cloned, fake_identity, queued_database
from benchmarks.figures import Figure, Measured, interleaved
from benchmarks.runs import timed_run
from benchmarks.stub_model import DIMENSIONS, PacedModel, default_chunker, drain_with_stub

IN_ONE_CALL = "in one call"


@dataclass(frozen=True, kw_only=True)
class Pace:
    """So many tokens a second, padding included, in the batches of a kind of device."""

    kind: str
    tokens_per_second: int

    def __str__(self) -> str:
        return f"a device of {self.tokens_per_second:,} tokens/s"


# About a thousand chunks of Wikipedia a second, a quarter of what two cores tokenise and write;
# and 6,700 of the reports, nearly what an H200 computes by a model of 335 M parameters.
MODERATE = Pace(kind="mps", tokens_per_second=100_000)
LARGE = Pace(kind="cuda", tokens_per_second=650_000)


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the share of the time in which the device computes."""
    few, many = bench.sizes.fed_records
    corpus = bench.corpus(wikipedia)
    if corpus is not None:
        yield _measured(bench, MODERATE, corpus.sample(few))
    yield _measured(bench, LARGE, shuffled_reports(many))


def _measured(bench: Bench, pace: Pace, corpus: Corpus) -> Measured:
    template = queued_database(bench.server, corpus.documents, fake_identity(DIMENSIONS))
    variants = {
        f"-c {concurrency}, {way}": _busy_share(
            bench, template, pace, concurrency, way == IN_ONE_CALL
        )
        for concurrency in bench.sizes.concurrencies
        for way in ("launched by operations", IN_ONE_CALL)
    }
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    return Measured(
        figures=[
            Figure(
                part="feeding",
                name=f"{pace}, {name}",
                corpus=corpus.name,
                unit="of its time busy",
                values=shares,
            )
            for name, shares in outcomes.items()
        ]
    )


def _busy_share(
    bench: Bench, template: str, pace: Pace, concurrency: int, in_one_call: bool
) -> Callable[[], float]:
    chunker = default_chunker()

    def measure_once() -> float:
        model = PacedModel(pace.tokens_per_second, pace.kind, in_one_call=in_one_call)
        with cloned(bench.server, template) as conninfo:
            run = timed_run(
                conninfo,
                lambda: drain_with_stub(conninfo, concurrency, chunker, lambda: model),
            )
        return model.busy_seconds / run.steady_seconds

    return measure_once
