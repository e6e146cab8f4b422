"""Passes of a CPU: as many at once as it has cores, each in a thread of its own.

Threads within an operation wait for one another some hundred times a pass. Passes beside one
another wait for nothing: on two cores they were 1.15 to 1.3 times as fast, and took no time of
other programs by looking for work (python -m benchmarks --only streams).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from typing import TypeVar

Answer = TypeVar("Answer")
Session = Callable[[], AbstractContextManager[None]]

_of_thread = threading.local()


class Streams:
    """So many threads, each within a `session` and with operations of one thread."""

    def __init__(self, count: int, session: Session) -> None:
        self.count = count
        self._pool = ThreadPoolExecutor(
            count, thread_name_prefix="pgembed-pass", initializer=_begin, initargs=(session,)
        )

    def start(self, compute: Callable[[], Answer]) -> Callable[[], Answer]:
        """Compute in the next thread that is free; returns what waits for the answer."""
        return self._pool.submit(compute).result

    def close(self) -> None:
        """Wait for what was started, and let the threads go."""
        import torch

        self._pool.shutdown()
        torch.clear_autocast_cache()


def _begin(session: Session) -> None:
    import torch

    torch.set_num_threads(1)
    # Held as long as the thread is there, so that autocast casts weights once.
    _of_thread.held = stack = ExitStack()
    stack.enter_context(session())
