"""A clock of what a device works, whatever else the machine does."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pgqueue_embed.embedding.devices import kind_of

Clock = Callable[[], float]


@contextmanager
def working_clock(device: str) -> Iterator[Clock]:
    """Yield a clock, in seconds, of what this thread lets a device compute.

    A CPU computes in this thread alone meanwhile: several threads would wait for each other on a
    machine that is busy, and what others take from this one does not count. A GPU has done all that
    it was given when the clock tells.
    """
    import torch

    if kind_of(device) == "cpu":
        usual = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield time.thread_time
        finally:
            torch.set_num_threads(usual)
        return

    def seconds() -> float:
        if kind_of(device) == "mps":
            torch.mps.synchronize()
        else:
            torch.cuda.synchronize(device)
        return time.perf_counter()

    yield seconds
