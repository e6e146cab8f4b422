"""Answers without an application: an error as JSON, in the form that clients of OpenAI read."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from pgqueue_embed.untrusted.foreign_text import MOST_CHARACTERS, printable

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

# What browsers are to do with a response: run nothing, send nothing on, show it in no frame.
SECURITY_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none';"
    " frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}

TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


def error_body(status: int, message: str, *, code: str | None = None) -> dict[str, Any]:
    """Return what is sent as JSON with `status`; `message` is put on one line."""
    usual = "invalid_request_error" if status < 500 else "server_error"
    return {
        "error": {
            "message": printable(message, MOST_CHARACTERS * 8),
            "type": TYPES.get(status, usual),
            "param": None,
            "code": code,
        }
    }


async def send_error(
    send: Send, status: int, message: str, headers: dict[str, str] | None = None
) -> None:
    """Send an error as a whole response, with the security headers."""
    body = json.dumps(error_body(status, message)).encode()
    given = {
        "content-type": "application/json",
        "content-length": str(len(body)),
        **SECURITY_HEADERS,
        **(headers or {}),
    }
    encoded = [(name.encode(), value.encode()) for name, value in given.items()]
    await send({"type": "http.response.start", "status": status, "headers": encoded})
    await send({"type": "http.response.body", "body": body})
