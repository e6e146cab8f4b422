"""`python -m benchmarks`: measure, print one table, write JSON."""

from __future__ import annotations

import argparse
import importlib
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.bench import Bench
from benchmarks.machine import describe_machine
from benchmarks.options import FULL, QUICK, QUICK_ROUNDS, Options
from benchmarks.report import new_file, print_report, write_json
from pgqueue_embed.garbage import collect_seldom
from pgqueue_embed.log import LogSettings

PARTS = {
    "model": "the model alone, encode, a script and `pgembed work` (1 to 4)",
    "pipeline": "a model that costs nothing: the pipeline's own cost (5)",
    "processes": "the same by `pgembed work` of one process and of two (5)",
    "feeding": "how busy a fast device is kept",
    "queue": "enqueue, claims and progress at millions of records (6, 8)",
    "changes": "idle polls, claims and looks beside many changes of single rows",
    "watch": "a look at everything over a month's history",
    "growth": "what ten times the work costs where much waits",
    "device": "what the probe chose from, batch sizes and threads, for the forward pass",
    "gpu": "a GPU: its forward pass alone, and workers end to end",
    "launches": "launching a pass beside threads that cut texts, in one call and in many",
    "kernels": "a GPU: formats, kernels and a compiler for its forward pass",
    "cost": "the processor time of a record, by `pgembed work` and by a script",
    "waiting": "passes of a CPU beside one another, or by threads that wait for each other",
    "engines": "ONNX Runtime and OpenVINO for the forward pass, where they are installed",
    "memory": "the worker's memory on a record of 50 MB and on many of 1 MB",
    "capture": "what triggers on the source cost its writers",
    "freshness": "from the commit of an INSERT to that of its vector",
    "start": "what commands cost from the shell, their model loaded anew",
    "search": "indexes of smaller vectors; exact search, with vectors in the row and elsewhere",
    "filters": "searches with a condition, by each kind of index, over a million vectors",
    "hybrid": "words beside vectors: judged searches, and how long words take",
    "serve": "`pgembed serve` under 32 clients, against its model alone",
    "scale": "many worker processes with a device of fixed rate (7)",
}


def main() -> None:
    """Run the parts that the command line names."""
    arguments = _parser().parse_args()
    # Some parts run a worker's loops in this process.
    collect_seldom()
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else 5)
    sizes = QUICK if arguments.quick else FULL
    sizes = replace(sizes, filtered_vectors=arguments.vectors or sizes.filtered_vectors)
    options = Options(rounds=rounds, postgresql=arguments.postgresql, sizes=sizes)
    console = Console(width=arguments.width)
    LogSettings(level="warning").apply()
    machine = {
        **describe_machine(),
        "rounds": rounds,
        "quick": arguments.quick,
        "postgresql": arguments.postgresql,
    }
    file = arguments.out or new_file()
    with Bench(options, console) as bench:
        measured = bench.measured
        for name in arguments.only or PARTS:
            part = importlib.import_module(f"benchmarks.{name}_part")
            for found in part.measure(bench):
                measured.add(found)
                # An hour is long enough for a machine to go down: what is measured is kept.
                write_json(file, machine, measured)
    print_report(console, machine, measured)
    console.print(f"written to {file}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    listed = "; ".join(f"{name}: {what}" for name, what in PARTS.items())
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=listed)
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each variant (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round of small samples")
    parser.add_argument("--vectors", type=int, help="vectors of `filters` (a million)")
    parser.add_argument(
        "--postgresql", type=int, default=18, choices=(16, 18), help="the server's version (18)"
    )
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/)")
    parser.add_argument("--width", type=int, default=160, help="columns of the table")
    return parser


if __name__ == "__main__":
    main()
