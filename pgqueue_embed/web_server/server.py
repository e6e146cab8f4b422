"""Runs an application until a signal or `stop` ends it: what is being answered is answered."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from types import FrameType
from typing import TYPE_CHECKING, Any, Literal, cast

from pgqueue_embed.garbage import collect_as_usual
from pgqueue_embed.log import Forwarding, get_logger
from pgqueue_embed.web_server.answers import App
from pgqueue_embed.web_server.guard import MOST_BODY_BYTES, Guard
from pgqueue_embed.web_server.listening import BACKLOG, Listening, url_of

if TYPE_CHECKING:
    import uvicorn

# How long an answer that is under way may take after the end was asked for.
GRACE_SECONDS = 10

# A client that says nothing more is let go.
KEEP_ALIVE_SECONDS = 30

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Server:
    """An application behind its guard, at its address; `url` is known from the start.

    `make_app` is called with the URL. `private` are sockets besides: of files, say. `run` returns
    once it was ended by a signal (in the main thread), or by `stop` from any other thread; asked
    twice, it breaks off what is under way. `on_started` is called in its thread once requests are
    answered, `on_stop` when it is asked to end: an answer that goes on until the client leaves is
    to end then. Raises UsageError where it cannot listen.
    """

    def __init__(
        self,
        make_app: Callable[[str], App],
        listening: Listening,
        *,
        private: Sequence[socket.socket] = (),
        open_paths: Sequence[str] = (),
        challenge: str = "Bearer",
        most_body_bytes: int = MOST_BODY_BYTES,
        on_started: Callable[[], None] = lambda: None,
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_stop = on_stop
        opened = listening.open_socket()
        self.url = url_of(opened)
        self.started = threading.Event()
        self._sockets = [opened, *private]
        try:
            app = make_app(self.url)
        except BaseException:
            opened.close()
            raise
        guard = Guard(
            app=app,
            key=listening.key,
            names={name.lower() for name in (listening.host, *listening.names)},
            open_paths=open_paths,
            challenge=challenge,
            most_body_bytes=most_body_bytes,
        )

        def tell() -> None:
            self.started.set()
            on_started()

        self._server = _uvicorn_server(guard, tell)

    def run(self) -> None:
        """Serve until ended; raises nothing for a signal."""
        with _asking(self.stop):
            self._server.run(sockets=self._sockets)

    def stop(self) -> None:
        """Ask `run` to return; asked again, at once."""
        self._server.force_exit = self._server.should_exit
        self._server.should_exit = True
        self._on_stop()


def serve(
    make_app: Callable[[str], App],
    listening: Listening,
    *,
    name: str,
    on_started: Callable[[str], None] = lambda _url: None,
    **options: Any,
) -> None:
    """Serve the application until a signal; `options` are those of `Server`.

    `on_started` is called with the URL once requests are answered. Raises UsageError where it
    cannot listen.
    """
    collect_as_usual()
    log = get_logger()

    def tell() -> None:
        log.info("server started", server=name, url=server.url)
        # Whoever reads it may have left; those who ask the server have not.
        with suppress(OSError):
            on_started(server.url)

    server = Server(make_app, listening, on_started=tell, **options)
    server.run()
    log.info("server stopped", server=name)


def _uvicorn_server(app: Guard, on_started: Callable[[], None]) -> uvicorn.Server:
    import uvicorn

    class Uvicorn(uvicorn.Server):
        """Leaves signals to us, and tells when it is there."""

        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            yield

        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            on_started()

    logger = logging.getLogger("uvicorn")
    logger.handlers, logger.propagate = [Forwarding()], False
    return Uvicorn(
        uvicorn.Config(
            cast(Any, app),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            http=_protocol(),
            ws="none",
            backlog=BACKLOG,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
    )


def _protocol() -> Literal["h11"] | type[asyncio.Protocol]:
    """Return what reads requests: httptools where there is one, which takes less time than h11."""
    if find_spec("httptools") is None:
        return "h11"
    from pgqueue_embed.web_server.bounded_http import BoundedHttp

    return BoundedHttp


@contextmanager
def _asking(stop: Callable[[], None]) -> Iterator[None]:
    """Call `stop` at each signal that ends a process, in the main thread, which gets them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def ask(_number: int, _frame: FrameType | None) -> None:
        stop()

    before = {number: signal.getsignal(number) for number in SIGNALS}
    # Whoever started us with signals ignored, such as nohup, keeps it so.
    asked = [number for number, was in before.items() if was is not signal.SIG_IGN]
    for number in asked:
        signal.signal(number, ask)
    try:
        yield
    finally:
        for number in asked:
            signal.signal(number, before[number])
