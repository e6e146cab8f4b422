"""What the threads of a forward pass do while they wait for each other: sleep, or spin.

Not a target: it shows why a worker lets them sleep.
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

PART = "waiting"
# GNU OpenMP's own count where nobody asks for another (libgomp manual, GOMP_SPINCOUNT).
WAITING = {"sleep": {}, "spin": {"GOMP_SPINCOUNT": "300000"}}
NEIGHBOUR = [sys.executable, "-c", "while True: pass"]


def measure(bench: Bench) -> Iterator[Measured]:
    """Measure the forward pass with either, alone and beside a process that never rests."""
    with ExitStack() as stack:
        variants: dict[str, Callable[[], float]] = {}
        for name, environment in WAITING.items():
            bench.say(f"a process whose waiting threads {name}")
            process = stack.enter_context(_forward_process(environment))
            variants[f"{name}, alone"] = partial(_rate, process)
            variants[f"{name}, beside one busy process"] = partial(_rate_beside, process)
        outcomes = interleaved(bench.rounds, variants, on_run=bench.on_run)
    yield Measured(
        figures=[
            Figure(part=PART, name=name, corpus="30 of MAUDE", unit="chunks/s", values=rates)
            for name, rates in outcomes.items()
        ]
    )


@contextmanager
def _forward_process(environment: dict[str, str]) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.forward_process"],
        env={**os.environ, **environment},
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
