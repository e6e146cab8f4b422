"""Part 7: many workers on one database, each with a device of fixed rate (simulated Macs)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.database import cloned, fake_identity, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, Reach, interleaved
from benchmarks.fleet import CLAIM_SECONDS, DIMENSIONS, RATE, Scaled, run_fleet
from pgqueue_embed.db.session import connect
from pgqueue_embed.queue.work_items import add_items
from tests.support.corpus import make_source

PART = "scale-out"
COPIES = 40
ITEM_RECORDS = 64
PAPER_MACS = 64
PAPER_RATE = 1_000


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure each number of simulated Macs and extrapolate the server's share."""
    corpus = bench.corpus(maude)
    if corpus is None:
        return
    bench.say(f"a queue for simulated Macs of {RATE} chunks/s each")
    template = _queue(bench, list(corpus.documents))
    variants: dict[str, Callable[[], Scaled]] = {
        str(count): partial(_run, bench, template, count) for count in bench.sizes.mac_counts
    }
    outcomes = interleaved(
        bench.rounds, variants, on_run=lambda n, name: bench.on_run(n, f"{name} Macs")
    )
    yield _measured({int(name): runs for name, runs in outcomes.items()})


def _queue(bench: Bench, documents: list[str]) -> str:
    """Queue every report 40 times over, in small items: none shall run dry."""
    conninfo = new_database(bench.server)
    with connect(conninfo) as connection:
        make_source(connection, documents * COPIES)
        connection.execute("vacuum analyze public.reports")
        pipeline = make_pipeline(connection, fake_identity(DIMENSIONS))
        keys = [str(number + 1) for number in range(COPIES * len(documents))]
        with connection.transaction():
            add_items(connection, pipeline.id, keys, records_per_item=ITEM_RECORDS)
    return conninfo


def _run(bench: Bench, template: str, count: int) -> Scaled:
    with cloned(bench.server, template) as conninfo:
        return run_fleet(conninfo, count, bench.sizes.window_seconds, bench.server.status().pid)


def _measured(runs: dict[int, list[Scaled]]) -> Measured:
    """Return records/s and the efficiency of each number of Macs."""
    measured = Measured()
    corpus = f"MAUDE x {COPIES}"
    for count, found in runs.items():
        note = (
            f"{median(run.claims_per_second for run in found):.1f} claims/s of about"
            f" {CLAIM_SECONDS} s, server {median(run.server_cores for run in found):.2f} cores,"
            f" workers {median(run.client_cores for run in found):.2f}"
        )
        rates = [run.records_per_second for run in found]
        chunks = [run.chunks_per_second for run in found]
        measured.figures.append(
            Figure(
                part=PART,
                name=f"{count} Macs",
                corpus=corpus,
                unit="records/s",
                values=rates,
                note=note,
                details={"chunks/s": chunks},
            )
        )
    for count, found in runs.items():
        measured.figures.append(_efficiency(corpus, count, found))
    largest = max(runs)
    measured.reaches.append(
        Reach(
            name=f"efficiency of {largest} Macs",
            measured=measured.figures[-1].median,
            target=0.95,
        )
    )
    measured.figures.append(_on_paper(corpus, runs[largest]))
    return measured


def _efficiency(corpus: str, count: int, runs: list[Scaled]) -> Figure:
    """Return chunks/s by what the devices would do if nothing ever kept them waiting."""
    values = [run.chunks_per_second / (count * RATE) for run in runs]
    note = f"devices alone: {count * RATE:,} chunks/s"
    name = f"{count} Macs, efficiency"
    return Figure(part=PART, name=name, corpus=corpus, unit="x", values=values, note=note)


def _on_paper(corpus: str, runs: list[Scaled]) -> Figure:
    """Return the cores that the server needs for 64 Macs, from its measured cost a chunk.

    The cost includes that of claims a tenth as long as real ones, so that it errs upwards. What
    does not fit on the server's cores is lost: the efficiency is cores there / cores needed.
    """
    costs = [run.server_cores / run.chunks_per_second for run in runs]
    values = [cost * PAPER_MACS * PAPER_RATE for cost in costs]
    note = f"by arithmetic: {1e6 * median(costs):.0f} µs of the server a chunk; not measured"
    name = f"{PAPER_MACS} Macs of {PAPER_RATE:,} chunks/s: server"
    return Figure(part=PART, name=name, corpus=corpus, unit="cores", values=values, note=note)
