"""`python -m benchmarks`: measure, print one table, write JSON."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from rich.console import Console

from benchmarks.bench import Bench
from benchmarks.machine import describe_machine
from benchmarks.options import COMPLETE, FULL, QUICK, QUICK_ROUNDS, Options, Sizes
from benchmarks.report import print_report, write_json
from pgqueue_embed.log import LogSettings

PARTS = {
    "model": "the model alone, encode, a script and `pgembed work` (1 to 4)",
    "pipeline": "a model that costs nothing: the pipeline's own cost (5)",
    "queue": "enqueue, claims and progress at millions of records (6, 8)",
    "device": "batch sizes, threads, formats and a compiler for the forward pass",
    "engines": "ONNX Runtime and OpenVINO for the forward pass, where they are installed",
    "memory": "the worker's memory on a record of 50 MB and on many of 1 MB",
    "capture": "what triggers on the source cost its writers",
    "freshness": "from the commit of an INSERT to that of its vector",
    "scale": "many worker processes with a device of fixed rate (7)",
}


def main() -> None:
    """Run the parts that the command line names."""
    arguments = _parser().parse_args()
    rounds = arguments.rounds or (QUICK_ROUNDS if arguments.quick else 5)
    options = Options(rounds=rounds, sizes=_sizes(arguments))
    console = Console(width=arguments.width)
    LogSettings(level="warning").apply()
    machine = {**describe_machine(), "rounds": rounds, "quick": arguments.quick}
    with Bench(options, console) as bench:
        for name in arguments.only or PARTS:
            part = importlib.import_module(f"benchmarks.{name}_part")
            bench.measured.add(part.measure(bench))
        measured = bench.measured
    print_report(console, machine, measured)
    console.print(f"written to {write_json(arguments.out, machine, measured)}", soft_wrap=True)


def _sizes(arguments: argparse.Namespace) -> Sizes:
    if arguments.complete:
        return COMPLETE
    return QUICK if arguments.quick else FULL


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    listed = "; ".join(f"{name}: {what}" for name, what in PARTS.items())
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="NAME", help=listed)
    parser.add_argument("--rounds", type=int, help="interleaved rounds of each variant (default 5)")
    parser.add_argument("--quick", action="store_true", help="one round of small samples")
    parser.add_argument(
        "--complete",
        action="store_true",
        help="20,000 records of Wikipedia for real models, not 3,000 and 4,000",
    )
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/)")
    parser.add_argument("--width", type=int, default=160, help="columns of the table")
    return parser


if __name__ == "__main__":
    main()
