"""Stands in front of an application: lets in whole requests of those who may ask, and no others."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from pgqueue_embed.log import get_logger
from pgqueue_embed.web_server.answers import (
    SECURITY_HEADERS,
    App,
    Message,
    Receive,
    Scope,
    Send,
    send_error,
)
from pgqueue_embed.web_server.api_key import ApiKey
from pgqueue_embed.web_server.listening import host_name, is_address

MOST_BODY_BYTES = 4 * 1024**2

# How long a client may take to send its body.
BODY_SECONDS = 20.0

ENCODED_HEADERS = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

# A client that leaves is told by this.
DISCONNECT = "http.disconnect"


class Refused(Exception):
    """A request that the application is not to see: what its client is told."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Gone(Exception):
    """The client has left, and hears nothing any more."""


@dataclass(frozen=True, kw_only=True)
class Guard:
    """An ASGI application around `app`.

    A request has to be for one of `names`, ``localhost`` or an IP address: the page of a stranger
    cannot point a name of its own at this machine, and read what is served. It brings the `key`, if
    there is one, but for `open_paths` and through a Unix socket, which file rights guard. Its whole
    body is read first: at most `most_body_bytes`, in BODY_SECONDS. `challenge` is what a client
    without the key is asked for: ``Basic`` makes a browser ask a person.
    """

    app: App
    key: ApiKey | None = None
    names: Collection[str] = ()
    open_paths: Collection[str] = ()
    most_body_bytes: int = MOST_BODY_BYTES
    challenge: str = "Bearer"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; the start and the end of the server are passed on."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "http":
            await _Exchange(scope, send).run(self, receive)

    def check(self, scope: Scope) -> None:
        """Raise Refused for a request that is not to be answered, as its headers tell."""
        headers = _headers(scope)
        # What came through a Unix socket has no client address.
        if not scope.get("client"):
            return
        host = headers.get("host", "")
        self._check_host(host)
        self._check_origin(headers.get("origin"), host)
        is_open = self.key is None or scope["path"] in self.open_paths
        if (
            self.key is not None
            and not is_open
            and not self.key.is_in(headers.get("authorization"))
        ):
            raise Refused(
                401,
                "this takes the server's key: send the header Authorization: Bearer KEY",
                www_authenticate=f'{self.challenge} realm="pgembed"',
            )

    def _check_host(self, header: str) -> None:
        name = host_name(header)
        if name is None:
            raise Refused(400, "a request has to name its host: send one header Host")
        if name != "localhost" and name not in self.names and not is_address(name):
            raise Refused(
                421,
                f"{name} is no name of this server; if it is to be, start it with"
                f" --allow-host {name}",
            )

    def _check_origin(self, origin: str | None, host: str) -> None:
        """Raise Refused for what a page of another site sends."""
        if origin is not None and origin.partition("://")[2].lower() != host.strip().lower():
            raise Refused(403, "pages of other sites may not ask this server")


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._status: int | None = None

    async def run(self, guard: Guard, receive: Receive) -> None:
        started = time.monotonic()
        try:
            guard.check(self._scope)
            body = await _whole_body(self._scope, receive, guard.most_body_bytes)
            await guard.app(self._scope, _replaying(body, receive), self._respond)
        except Refused as refused:
            await self._refuse(refused)
        except Gone:
            pass
        except Exception as error:
            get_logger().error("request failed", path=self._scope["path"], exc_info=error)
            if self._status is not None:
                raise  # the response is cut off, so that it is not taken for a whole one
            await self._refuse(Refused(500, "an error of the server, described in its log"))
        milliseconds = round(1000 * (time.monotonic() - started), 1)
        get_logger().debug(
            "request answered",
            method=self._scope["method"],
            path=self._scope["path"],
            status=self._status,
            milliseconds=milliseconds,
        )

    async def _refuse(self, refused: Refused) -> None:
        # What is left of a body that was not read would be taken for the next request.
        headers = {**refused.headers, "connection": "close"}
        self._status = refused.status
        await send_error(self._send, refused.status, refused.message, headers)

    async def _respond(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = int(message["status"])
            message["headers"] = [*_added(message.get("headers", ())), *message.get("headers", ())]
        await self._send(message)


def _added(headers: Any) -> list[tuple[bytes, bytes]]:
    """Return the security headers that a response has not got by itself."""
    has = {bytes(name).lower() for name, _ in headers}
    return [(name, value) for name, value in ENCODED_HEADERS if name not in has]


def _headers(scope: Scope) -> dict[str, str]:
    """Return the headers by name; of one that came twice nothing is believed."""
    found: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        found[key] = "" if key in found else value.decode("latin-1")
    return found


async def _whole_body(scope: Scope, receive: Receive, most_bytes: int) -> bytes:
    declared = _headers(scope).get("content-length", "")
    if declared.isdigit() and int(declared) > most_bytes:
        raise _too_large(most_bytes)
    try:
        return await asyncio.wait_for(_read(receive, most_bytes), BODY_SECONDS)
    except (TimeoutError, asyncio.TimeoutError):
        raise Refused(408, f"the request did not come within {BODY_SECONDS:g} seconds") from None


async def _read(receive: Receive, most_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == DISCONNECT:
            raise Gone
        body += message.get("body", b"")
        if len(body) > most_bytes:
            raise _too_large(most_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(most_bytes: int) -> Refused:
    return Refused(413, f"a request may have {most_bytes:,} bytes at most; send less at once")


def _replaying(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives the body first, and then what the client does."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return waiting.pop() if waiting else await receive()

    return next_message
