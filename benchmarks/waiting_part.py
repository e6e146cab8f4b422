"""Passes of a CPU beside one another, and one after the other by threads within operations.

Not a target: it shows why a worker computes as many at once as there are cores, and lets threads
that wait for each other sleep sooner than torch by itself.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

from benchmarks.bench import Bench
from benchmarks.figures import Figure, Measured, interleaved
from benchmarks.forward_process import RECORDS, WITHIN

PART = "waiting"
# How often a thread of GNU OpenMP looks before it sleeps. 300,000 is what it does by itself
# (libgomp manual, GOMP_SPINCOUNT).
LOOKS = (0, 1_000, 10_000, 300_000)
NEIGHBOUR = [sys.executable, "-c", "while True: pass"]


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the forward pass each way, alone and beside a process that never rests."""
    with ExitStack() as stack:
        variants: dict[str, Callable[[], float]] = {}
        for looks in (None, *LOOKS):
            name = "passes beside one another" if looks is None else f"one by one, {looks:,} looks"
            bench.say(name)
            process = stack.enter_context(_forward_process(looks))
            variants[f"{name}, alone"] = partial(_rate, process)
            variants[f"{name}, beside one busy process"] = partial(_rate_beside, process)
        outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    yield Measured(
        figures=[
            Figure(
                part=PART, name=name, corpus=f"{RECORDS} of MAUDE", unit="chunks/s", values=rates
            )
            for name, rates in outcomes.items()
        ]
    )


@contextmanager
def _forward_process(looks: int | None) -> Iterator[subprocess.Popen[str]]:
    spinning = {} if looks is None else {"GOMP_SPINCOUNT": str(looks)}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.forward_process", *([WITHIN] if spinning else ())],
        env={**os.environ, **spinning},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        _rate(process)
        yield process
    finally:
        process.kill()
        process.wait()


def _rate(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None, "it is a pipe"
    assert process.stdout is not None, "it is a pipe"
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


def _rate_beside(process: subprocess.Popen[str]) -> float:
    neighbour = subprocess.Popen(NEIGHBOUR)
    try:
        return _rate(process)
    finally:
        neighbour.kill()
        neighbour.wait()
