"""Part 5, by the program: `pgembed work` of one process and of two, by a model of token vectors.

Tokenising alone has all cores, and one process of Python has one beside what a library computes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.bench import Bench
from benchmarks.corpora import Corpus, maude, poems, wikipedia
from benchmarks.database import cloned, queued_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, ratio
from benchmarks.pipeline_part import BY_EXTRA, TOKENISING
from benchmarks.runs import Run, run_command
from benchmarks.static_model import minilm_tokens
from benchmarks.stub_model import default_tokenizer
from pgqueue_embed.chunking.nanotoken_reader import LIBRARY, is_installed
from pgqueue_embed.embedding.devices import cores

PART = "processes"
# Of the rate of tokenising alone.
REACHES = {"": 0.85, BY_EXTRA: 1.5}
# Processes, and the loops of each.
WAYS = ((1, 2), (2, 1), (2, 2))

# Python imports it at its start, where PYTHONPATH names its folder.
WITHOUT_EXTRA = f"""
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *at: None if name == {LIBRARY!r} else found(name, *at)
"""


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure all corpora, large enough that starting and stopping are little of the time."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(WITHOUT_EXTRA, encoding="utf-8")
        for load in (wikipedia, maude, poems):
            corpus = bench.corpus(load)
            if corpus is not None:
                times = bench.sizes.times_over.get(corpus.name, 1)
                yield _measured(bench, corpus.times(times), folder)


def _measured(bench: Bench, corpus: Corpus, without_extra: str) -> Measured:
    bench.say(f"pgembed work; {corpus.name}")
    template = queued_database(bench.server, corpus.documents, str(minilm_tokens()))
    settings = {"": {"PYTHONPATH": without_extra}, BY_EXTRA: {}}
    workers = {
        f"--processes {processes} -c {loops}{extra}": _worker(
            bench, template, processes, loops, settings[extra]
        )
        for extra in (("", BY_EXTRA) if is_installed() else ("",))
        for processes, loops in WAYS
    }
    tokenising: dict[str, Callable[[], float | Run]] = {TOKENISING: _tokenising(corpus)}
    outcomes = interleaved(bench.rounds, tokenising | workers, on_run=bench.on_run)
    runs = {name: [each for each in outcomes[name] if isinstance(each, Run)] for name in workers}
    chunks = next(iter(runs.values()))[0].chunks
    rates = {name: [run.rate for run in found] for name, found in runs.items()}
    seconds = [each for each in outcomes[TOKENISING] if isinstance(each, float)]
    alone = [chunks / each for each in seconds]
    figures = [_figure(corpus, TOKENISING, alone, f"both cores, {chunks:,} chunks in all")]
    figures += [
        _figure(corpus, name, found, f"{ratio(found, alone):.2f} of tokenising alone")
        for name, found in rates.items()
    ]
    return Measured(figures=figures, reaches=list(_reaches(corpus, rates, alone)))


def _tokenising(corpus: Corpus) -> Callable[[], float]:
    """Return a measurement of the seconds of one tokenising pass on all cores."""
    tokenizer = default_tokenizer()

    def tokenise() -> float:
        started = time.perf_counter()
        tokenizer.encode_batch(list(corpus.documents), add_special_tokens=False)
        return time.perf_counter() - started

    return tokenise


def _worker(
    bench: Bench, template: str, processes: int, loops: int, settings: Mapping[str, str]
) -> Callable[[], Run]:
    """Return a drain of a copy of the queue; the processes share the cores out."""
    environment = {**settings, "OMP_NUM_THREADS": str(max(1, cores() // processes))}
    options = ["--processes", str(processes), "--concurrency", str(loops)]

    def work() -> Run:
        with cloned(bench.server, template) as conninfo:
            return run_command(conninfo, options, environment)

    return work


def _figure(corpus: Corpus, name: str, rates: Sequence[float], note: str) -> Figure:
    return Figure(
        part=PART, name=name, corpus=corpus.name, unit="chunks/s", values=rates, note=note
    )


def _reaches(
    corpus: Corpus, rates: Mapping[str, Sequence[float]], alone: Sequence[float]
) -> Iterator[Reach]:
    """Compare the best way of each, with the extra and without it, with tokenising alone."""
    for extra, target in REACHES.items():
        shares = {
            name: ratio(found, alone)
            for name, found in rates.items()
            if name.endswith(BY_EXTRA) is bool(extra)
        }
        if shares:
            best = max(shares, key=shares.__getitem__)
            name = f"{best} / {TOKENISING} ({corpus.name})"
            yield Reach(name=name, measured=shares[best], target=target)
