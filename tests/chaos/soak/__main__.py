"""The soak's command line; the seed that it prints repeats a run's chance, not the machine's."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

from pgqueue_embed.worker import supervisor
from tests.chaos.soak.plan import Plan
from tests.chaos.soak.run import soak


def main() -> None:
    """Run as told on the command line, and print what happened."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="how long faults happen")
    parser.add_argument("--records", type=int, default=5_000, help="how many there are at first")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randint(1, 10**6))
    parser.add_argument("--logs", type=Path, help="a new folder for what the workers say")
    options = parser.parse_args()
    plan = Plan(options.seed)
    sys.stdout.write(f"seed {plan.seed}: {plan}\n")
    sys.stdout.flush()
    vars(supervisor)["restart_delay_seconds"] = lambda _crashes: 0.2
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.logs or Path(temporary)
        folder.mkdir(exist_ok=True)
        happened = soak(plan, seconds=options.seconds, records=options.records, folder=folder)
    for what, count in sorted(happened.items()):
        sys.stdout.write(f"{what}: {count:,}\n")
    sys.stdout.write(f"every promise was kept, in {time.monotonic() - began:,.0f} seconds\n")


if __name__ == "__main__":
    main()
