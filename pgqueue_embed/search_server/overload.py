"""The limit of requests that wait: beyond it, clients are told to come again."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from pgqueue_embed.errors import PgembedError
from pgqueue_embed.web_server.answers import App, Receive, Scope, Send, send_error

# Requests that are being answered, each with a body and an answer of some kilobytes.
MOST_REQUESTS = 128

# Texts that wait for the model, of all requests together.
MOST_TEXTS = 4_096

RETRY_AFTER_SECONDS = 1


class Overloaded(PgembedError):
    """More is asked for than can be answered soon; worth trying again."""

    status = 429

    def __init__(self) -> None:
        super().__init__("too many requests wait already; try again in a second")


class RequestLimit:
    """An ASGI application around `app` that answers 429 once it has MOST_REQUESTS in hand.

    And 503 for those that it has to give up when it is stopped.
    """

    def __init__(self, app: App, *, open_paths: Collection[str] = ()) -> None:
        self._app = app
        self._open_paths = open_paths
        self._in_hand = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http" or scope["path"] in self._open_paths:
            await self._app(scope, receive, send)
        elif self._in_hand >= MOST_REQUESTS:
            retry = {"retry-after": str(RETRY_AFTER_SECONDS)}
            await send_error(send, 429, str(Overloaded()), retry)
        else:
            with self._one_more():
                await self._unless_stopped(scope, receive, send)

    async def _unless_stopped(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Tell a client whose answer is broken off, since the server is to end, to come again."""
        begun = False

        async def noting(message: Any) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except asyncio.CancelledError:
            if begun:
                raise
            retry = {"retry-after": str(RETRY_AFTER_SECONDS)}
            await send_error(send, 503, "the server is being stopped; try again in a while", retry)

    @contextmanager
    def _one_more(self) -> Iterator[None]:
        self._in_hand += 1
        try:
            yield
        finally:
            self._in_hand -= 1
