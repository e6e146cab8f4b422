"""A TCP proxy before the database that loses what a bad network loses."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from psycopg.conninfo import conninfo_to_dict, make_conninfo

BYTES = 65536


class Link:
    """One connection of a client through the proxy."""

    def __init__(self, client: socket.socket, server: socket.socket) -> None:
        self.client = client
        self.server = server
        self.swallow_requests = False
        self.swallow_replies = False

    def close(self) -> None:
        """End both sides, as a reset of the connection does."""
        for side in (self.client, self.server):
            with suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


class Proxy:
    """Passes on what it gets, until it is told otherwise.

    `on_request` is called with each piece that a client sends, before it is passed on; it may set
    what is swallowed on its link from there, or close it.
    """

    def __init__(self, host: str, port: int) -> None:
        self.on_request: Callable[[Link, bytes], None] = lambda _link, _data: None
        self.on_reply: Callable[[Link, bytes], None] = lambda _link, _data: None
        self.links: list[Link] = []
        self._address = (host, port)
        self._refusing = False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def freeze(self) -> None:
        """Swallow everything on the links there are, in both directions; they stay open."""
        for link in self.links:
            link.swallow_requests = link.swallow_replies = True

    def refuse(self, refusing: bool = True) -> None:
        """Close new connections at once, or stop doing so."""
        self._refusing = refusing

    def close(self) -> None:
        """End everything."""
        self._listener.close()
        for link in self.links:
            link.close()
            link.client.close()
            link.server.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._refusing:
                client.close()
                continue
            link = Link(client, socket.create_connection(self._address))
            self.links.append(link)
            threading.Thread(target=self._pass_requests, args=(link,), daemon=True).start()
            threading.Thread(target=self._pass_replies, args=(link,), daemon=True).start()

    def _pass_requests(self, link: Link) -> None:
        for data in _pieces(link.client):
            self.on_request(link, data)
            if not link.swallow_requests:
                _send(link.server, data)
        if not link.swallow_requests:
            link.close()

    def _pass_replies(self, link: Link) -> None:
        for data in _pieces(link.server):
            self.on_reply(link, data)
            if not link.swallow_replies:
                _send(link.client, data)
        if not link.swallow_replies:
            link.close()


def _pieces(side: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            data = side.recv(BYTES)
        except OSError:
            return
        if not data:
            return
        yield data


def _send(side: socket.socket, data: bytes) -> None:
    with suppress(OSError):
        side.sendall(data)


@contextmanager
def proxied(conninfo: str) -> Iterator[tuple[Proxy, str]]:
    """Run a proxy before the server of `conninfo`; gives it and the way through it."""
    server = conninfo_to_dict(conninfo)
    proxy = Proxy(str(server["host"]), int(str(server["port"])))
    try:
        yield proxy, make_conninfo(conninfo, host="127.0.0.1", port=proxy.port)
    finally:
        proxy.close()
