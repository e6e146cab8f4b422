"""The common ground of pages: the database, allowed actions, templates that escape, messages."""

from __future__ import annotations

import hmac
import secrets
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse

from pgqueue_embed.db import applications
from pgqueue_embed.db.session import BOOKKEEPING_SECONDS, Connection, connect
from pgqueue_embed.monitoring import words
from pgqueue_embed.quantities import count, duration, size
from pgqueue_embed.untrusted.foreign_text import capped, printable, printable_lines
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.version import VERSION
from pgqueue_embed.web.live import Live

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"

# No text of others takes more of a page than this, whatever a template does with it.
MOST_CHARACTERS = 50_000
MOST_NAME = 120
MOST_MESSAGES = 200

# Without a referrer a browser does not say either that a form is from a page of ours.
HEADERS = {"referrer-policy": "same-origin"}


@dataclass(frozen=True, kw_only=True)
class Site:
    """One server of pages; `place` says of which database, without any secret.

    `form_key` is known to our own pages alone, which no other site can read.
    """

    conninfo: str
    place: str
    live: Live
    allows_actions: bool = False
    form_key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    messages: Messages = field(default_factory=lambda: Messages())

    def connect(self) -> Connection:
        """Open a connection for one request."""
        return connect(
            self.conninfo,
            application_name=applications.WEB,
            patience_seconds=BOOKKEEPING_SECONDS,
        )

    def is_own_form(self, key: str) -> bool:
        """Return whether a form came from a page of ours."""
        return hmac.compare_digest(key.encode(), self.form_key.encode())

    def page(
        self, request: Request, template: str, values: Mapping[str, Any], status: int = 200
    ) -> HTMLResponse:
        """Return a page, or only what changed of it where htmx asks for that."""
        shared = {
            "site": self,
            "path": request.url.path,
            "said": self.messages.take(request.query_params.get("said", "")),
            "is_part": "hx-request" in request.headers,
        }
        return HTMLResponse(render(template, {**shared, **values}), status, headers=HEADERS)


class Messages:
    """What was done, to be said once on the page that follows."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: OrderedDict[str, str] = OrderedDict()

    def keep(self, text: str) -> str:
        """Return a number that cannot be guessed, by which the text is found."""
        number = secrets.token_urlsafe(9)
        with self._lock:
            self._texts[number] = text
            if len(self._texts) > MOST_MESSAGES:
                self._texts.popitem(last=False)
        return number

    def take(self, number: str) -> str | None:
        """Return the text, once."""
        with self._lock:
            return self._texts.pop(number, None)


def url(path: str, **values: object) -> str:
    """Return an address of ours; names may hold anything. What is None or empty is left out."""
    given = {name: str(value) for name, value in values.items() if value not in (None, "", False)}
    return f"{path}?{urlencode(given, quote_via=quote)}" if given else path


def shown(value: object) -> object:
    """Return what a template writes: a text of others does nothing but be read, and is bounded."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return printable_lines(capped(value, MOST_CHARACTERS))
    return "" if value is None else value


def name(text: object, most: int = MOST_NAME) -> str:
    """Return a name of others on one line."""
    return printable(str(text), most)


def moment(when: datetime) -> str:
    """Return a time for a person who looks at one: ``27 Nov 14:02:07``."""
    return f"{when.astimezone():%d %b %H:%M:%S}"


def ago(when: datetime, now: datetime) -> str:
    """Return how long ago something was, in its largest unit."""
    seconds = max((now - when).total_seconds(), 0)
    return "just now" if seconds < 5 else f"{' '.join(duration(seconds).split()[:2])} ago"


def render(template: str, values: Mapping[str, Any]) -> str:
    """Return a rendered template."""
    return _environment.get_template(template).render(values)


def _make_environment() -> Environment:
    made = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.filters.update(
        {"name": name, "moment": moment, "ago": ago, "size": size, "duration": duration}
    )
    made.globals.update(
        {
            "url": url,
            "count": count,
            "command": command,
            "event_words": words.event,
            "version": VERSION,
        }
    )
    return made


_environment = _make_environment()
