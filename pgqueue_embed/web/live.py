"""One watcher for all viewers, for as long as anyone looks."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from starlette.concurrency import run_in_threadpool

from pgqueue_embed.errors import PgembedError
from pgqueue_embed.monitoring.snapshot import Snapshot
from pgqueue_embed.monitoring.watcher import Watcher

LOOK_SECONDS = 2.0

# No viewer has asked for so long: the watcher ends, and its connection with it.
IDLE_SECONDS = 15.0

# The first look has to connect.
FIRST_LOOK_SECONDS = 15.0
NEXT_LOOK_SECONDS = 3.0

# A proxy must not take a stream for dead while nothing changes.
SILENCE_SECONDS = 15.0

MOST_VIEWERS = 500


class NothingSeen(PgembedError):
    """The database could not be looked at even once."""

    status = 503


class TooManyViewers(PgembedError):
    """So many pages are open that another one gets no stream."""

    status = 503


@dataclass(frozen=True)
class Look:
    """The last snapshot that could be taken, and why there is no newer one, if there is none."""

    snapshot: Snapshot
    trouble: str | None
    number: int


Render = Callable[[Look], str]


class Live:
    """Snapshots for pages, and streams of what is rendered of them.

    Safe to be called from many threads. A text that many look at is rendered once a look.
    """

    def __init__(self, conninfo: str) -> None:
        self._conninfo = conninfo
        self._changed = threading.Condition()
        self._watcher: Watcher | None = None
        self._asked_at = 0.0
        self._wakers: set[Callable[[], None]] = set()
        self._rendering = threading.Lock()
        self._rendered: dict[object, tuple[object, str]] = {}
        self._is_ended = False

    @property
    def viewers(self) -> int:
        """How many streams are open."""
        return len(self._wakers)

    @property
    def is_watching(self) -> bool:
        """Whether there is a watcher, with its connection."""
        return self._watcher is not None

    def look(self, *, anew: bool = False) -> Look:
        """Return the latest look; with `anew`, one that was begun after now.

        Raises NothingSeen with the reason if there has been none.
        """
        with self._changed:
            watcher = self._watched()
            if anew:
                # The look that is being taken may have begun before.
                wanted = watcher.looks + 1
                watcher.look_now()
                self._changed.wait_for(lambda: watcher.looks >= wanted, NEXT_LOOK_SECONDS)
            self._changed.wait_for(lambda: watcher.looks > 0, FIRST_LOOK_SECONDS)
            return self._seen(watcher)

    def end(self) -> None:
        """End all streams and the watcher; safe in a signal handler, and more than once."""
        self._is_ended = True
        watcher = self._watcher
        if watcher is not None:
            watcher.stop()
        for wake in tuple(self._wakers):
            wake()

    def stream(self, key: object, render: Render) -> AsyncIterator[str]:
        """Return server-sent events: what `render` returns, whenever that is another text.

        Viewers with an equal `key` get one rendering. Ends when the server does. Raises
        TooManyViewers.
        """
        if self.viewers >= MOST_VIEWERS:
            raise TooManyViewers(f"{MOST_VIEWERS} pages are being watched; close some")
        return self._events(key, render)

    async def _events(self, key: object, render: Render) -> AsyncIterator[str]:
        loop, changed = asyncio.get_running_loop(), asyncio.Event()

        def wake() -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(changed.set)

        self._wakers.add(wake)
        try:
            last = ""
            while not self._is_ended:
                changed.clear()
                text = await run_in_threadpool(self._render, key, render)
                yield _event(text) if text is not None and text != last else ": still here\n\n"
                last = text or last
                if not self._is_ended:
                    await _wait(changed)
        finally:
            self._wakers.discard(wake)

    def _watched(self) -> Watcher:
        """Return the watcher, which is started if there was no viewer; the lock is held."""
        self._asked_at = time.monotonic()
        if self._watcher is None:
            self._watcher = Watcher(self._conninfo, seconds=LOOK_SECONDS, on_look=self._on_look)
            self._watcher.__enter__()
        return self._watcher

    def _on_look(self) -> None:
        with self._changed:
            is_idle = time.monotonic() - self._asked_at > IDLE_SECONDS and not self._wakers
            if is_idle and self._watcher is not None:
                self._watcher.stop()
                self._watcher = None
            self._changed.notify_all()
        for wake in tuple(self._wakers):
            wake()

    def _seen(self, watcher: Watcher) -> Look:
        if watcher.latest is None:
            raise NothingSeen(watcher.trouble or "the database has not answered yet")
        return Look(watcher.latest, watcher.trouble, watcher.looks)

    def _render(self, key: object, render: Render) -> str | None:
        """Return what is to be shown; None while nothing has been seen."""
        try:
            look = self.look()
        except NothingSeen:
            return None
        with self._rendering:
            state, text = self._rendered.get(key, (None, ""))
            if state != (look.number, look.trouble):
                text = render(look)
                if len(self._rendered) > MOST_VIEWERS:
                    self._rendered.clear()
                self._rendered[key] = ((look.number, look.trouble), text)
            return text


async def _wait(changed: asyncio.Event) -> None:
    try:
        await asyncio.wait_for(changed.wait(), SILENCE_SECONDS)
    except (TimeoutError, asyncio.TimeoutError):
        return


def _event(text: str) -> str:
    lines = "\n".join(f"data: {line}" for line in text.splitlines())
    return f"event: live\n{lines}\n\n"
