"""A worker process whose model the library opens: `python -m benchmarks.library_worker`."""

from __future__ import annotations

from pgqueue_embed.embedding import opening
from pgqueue_embed.worker import process


def main() -> None:
    """Work as ordered on standard input."""
    vars(opening)["open_light"] = lambda *_: None
    process.main()


if __name__ == "__main__":
    main()
