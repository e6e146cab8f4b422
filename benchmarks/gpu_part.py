"""A real GPU: the forward pass alone, workers end to end, and the tokenizer that feeds them.

Skipped where torch finds no GPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks import ceiling
from benchmarks.bench import Bench
from benchmarks.corpora import Corpus, shuffled_reports
from benchmarks.database import cloned, queued_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, ratio
from benchmarks.random_model import large_model
from benchmarks.runs import STAGES, Run, run_commands
from pgqueue_embed.chunking import Chunk
from pgqueue_embed.embedding import EmbeddingModel
from pgqueue_embed.embedding.devices import choose_device, describe_device
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

PART = "gpu"
PRECISIONS = ("auto", "bf16", "fp32")
TOKENISING = "tokenising alone, all cores"
FORWARD_CHUNKS = 8_192


@dataclass(frozen=True, kw_only=True)
class Load:
    """A model, how many records of reports it is given, and in which numbers of workers."""

    name: str
    model: str
    records: int
    workers: tuple[tuple[int, int], ...]  # processes, and claims of each


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the default model and a large one."""
    device = choose_device("auto")
    if device == "cpu":
        yield Measured(notes=["skipped: no GPU here"])
        return
    many, few = bench.sizes.gpu_records
    for load in (
        Load(
            name="MiniLM, 22 M parameters",
            model=DEFAULT_MODEL,
            records=many,
            workers=((1, 2), (1, 4), (2, 2), (4, 2), (8, 2)),
        ),
        Load(
            name="BERT-large, 335 M parameters",
            model=str(large_model()),
            records=few,
            workers=((1, 2), (1, 4), (2, 2)),
        ),
    ):
        yield _measure(bench, device, load)


def _measure(bench: Bench, device: str, load: Load) -> Measured:
    corpus = replace(shuffled_reports(load.records), name=f"{load.name}, reports")
    template = queued_database(bench.server, corpus.documents, load.model)
    variants: dict[str, Callable[[], float | Run]] = {}
    notes = [f"{load.name} on {describe_device(device)}"]
    for precision in PRECISIONS:
        model = ceiling.load_model(precision, name=load.model, device=device)
        chunks = ceiling.distinct_chunks(model, corpus.documents[:FORWARD_CHUNKS])
        name = f"forward {precision}"
        variants[name] = ceiling.forward_rate(model, chunks[:FORWARD_CHUNKS])
        notes.append(f"{name}: {model.choice}, {model.limits.max_tokens_per_batch:,} a batch")
        variants[name]()
    variants[TOKENISING] = _tokenising(model, chunks, corpus)
    for processes, claims in load.workers:
        variants[f"work, {processes} x -c {claims}"] = _work(bench, template, processes, claims)
    outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    best = max(
        (name for name in outcomes if name.startswith("work")),
        key=lambda name: max(_rates(outcomes[name])),
    )
    reach = Reach(
        name=f"{best} / forward auto ({load.name})",
        measured=ratio(_rates(outcomes[best]), _rates(outcomes["forward auto"])),
        target=0.95,
    )
    figures = [
        Figure(
            part=PART,
            name=name,
            corpus=corpus.name,
            unit="chunks/s",
            values=_rates(found),
            note=_note(found[0]),
        )
        for name, found in outcomes.items()
    ]
    return Measured(figures=figures, reaches=[reach], notes=notes)


def _tokenising(model: EmbeddingModel, chunks: list[Chunk], corpus: Corpus) -> Callable[[], float]:
    documents = list(corpus.documents[:FORWARD_CHUNKS])

    def measure_once() -> float:
        started = time.perf_counter()
        model.tokenizer.encode_batch(documents, add_special_tokens=False)
        return len(chunks) / (time.perf_counter() - started)

    return measure_once


def _work(bench: Bench, template: str, processes: int, claims: int) -> Callable[[], Run]:
    commands = [["--concurrency", str(claims)]] * processes

    def measure_once() -> Run:
        with cloned(bench.server, template) as conninfo:
            return run_commands(conninfo, commands)

    return measure_once


def _rates(outcomes: list[float | Run]) -> list[float]:
    return [each.late_rate if isinstance(each, Run) else each for each in outcomes]


def _note(outcome: float | Run) -> str:
    if not isinstance(outcome, Run):
        return ""
    costs = ", ".join(
        f"{stage} {1e6 * outcome.stages[stage] / outcome.chunks:.0f}" for stage in STAGES
    )
    return f"{outcome.claims} claims, {outcome.chunks:,} chunks: {costs} µs/chunk"
