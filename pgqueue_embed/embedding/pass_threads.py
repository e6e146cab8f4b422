"""Passes of a CPU: as many at once as it has cores, each in a thread of its own.

Threads within an operation wait for one another some hundred times a pass. Passes beside one
another wait for nothing: on two cores they were 1.1 to 1.3 times as fast, and took nothing from
other programs by looking for work (python -m benchmarks --only waiting).
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import AbstractContextManager, suppress
from queue import Empty, SimpleQueue
from traceback import clear_frames
from typing import Any

from pgqueue_embed.embedding.devices import use_cores
from pgqueue_embed.embedding.reads import Answer, Awaited

Session = Callable[[], AbstractContextManager[None]]
Job = tuple["Future[Any]", Callable[[], Any]]

# Each has its own activations in memory, which are the larger the larger the model is.
MOST_PASSES = 16


class PassThreads:
    """Threads that share the ``cores``, each within a ``session``; they go with this object."""

    def __init__(self, cores: int, session: Session) -> None:
        threads = -(-cores // MOST_PASSES)
        self.count = cores // threads
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        # Daemons: at the end of the program what has not begun is not waited for.
        self._threads = [
            threading.Thread(
                target=_compute,
                args=(self._jobs, session, threads),
                name=f"pgembed-pass-{number}",
                daemon=True,
            )
            for number in range(self.count)
        ]
        for thread in self._threads:
            thread.start()
        _threads.update(self._threads)
        _alive.add(self)
        self._finalizer = weakref.finalize(self, _end, self._jobs, self.count)
        self._finalizer.atexit = False  # `_end_all` does that, and waits

    def start(self, compute: Callable[[], Answer]) -> Awaited[Answer]:
        """Compute in the next thread that is free; returns what waits for the answer."""
        future: Future[Answer] = Future()
        self._jobs.put((future, compute))
        return Awaited(wait=future.result, done=future)

    def close(self) -> None:
        """Wait for what was started, and let the threads go."""
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()
        self._finalizer.detach()

    def end(self) -> None:
        """Let the threads go; what has not begun is not computed."""
        _end(self._jobs, self.count)


def _compute(jobs: SimpleQueue[Job | None], session: Session, threads: int) -> None:
    use_cores(threads)
    # Held as long as the thread is there, so that autocast casts weights once.
    with session():
        while (job := jobs.get()) is not None:
            _run(*job)
            del job  # an idle thread holds no chunks


def _run(future: Future[Any], compute: Callable[[], Any]) -> None:
    try:
        future.set_result(compute())
    except BaseException as error:  # noqa: BLE001 - raised where the answer is waited for
        # Else what a pass had made would be in memory as long as its error: too long, if that is
        # that there is no more of it.
        clear_frames(error.__traceback__)
        future.set_exception(error)


def _end(jobs: SimpleQueue[Job | None], threads: int) -> None:
    """Let the threads go, behind what they have begun; what has not begun is not waited for.

    Nor are the threads: an object is given up anywhere, and in one of them, too.
    """
    with suppress(Empty):
        while True:
            jobs.get_nowait()
    for _ in range(threads):
        jobs.put(None)


_alive: weakref.WeakSet[PassThreads] = weakref.WeakSet()
# Those of all objects, also of the ones that are gone.
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """End all threads and wait for them: torch bears none that ends with the interpreter."""
    for each in list(_alive):
        each.end()
    for thread in list(_threads):
        thread.join()
