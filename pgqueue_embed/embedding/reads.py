"""Answers that a device computes: what waits for one, and what tells that it is there."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True)
class Awaited(Generic[Answer]):
    """Call it to wait for an answer; ``done`` is done once that waits for nothing."""

    wait: Callable[[], Answer]
    done: Future[Any]

    def __call__(self) -> Answer:
        """Return the answer, or raise what was raised where it was computed."""
        return self.wait()


def done_of(read: Callable[[], Any]) -> Future[Any] | None:
    """Return the future of what is read; None where nothing but the wait tells."""
    return read.done if isinstance(read, Awaited) else None


def as_done_as(
    read: Callable[[], Any], wait: Callable[[], Answer]
) -> Callable[[], Answer] | Awaited[Answer]:
    """Return a `wait` for what is made of ``read``, which tells what that does."""
    done = done_of(read)
    return wait if done is None else Awaited(wait=wait, done=done)
