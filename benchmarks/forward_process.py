"""A process of its own that measures the forward pass at each line that it reads."""

from __future__ import annotations

import sys

from benchmarks import ceiling
from benchmarks.corpora import maude

RECORDS = 30

# One pass after the other, each by threads within its operations.
WITHIN = "within"


def main() -> None:
    """Print chunks a second, once for each line of standard input; "within" is said below."""
    model = ceiling.load_model()
    chunks = ceiling.distinct_chunks(model, maude().sample(RECORDS).documents)
    rate = ceiling.one_by_one_rate if WITHIN in sys.argv else ceiling.forward_rate
    measure = rate(model, chunks)
    measure()
    for _ in sys.stdin:
        print(measure(), flush=True)


if __name__ == "__main__":
    main()
