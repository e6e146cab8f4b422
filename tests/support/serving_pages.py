"""A page that is served, what a stranger asks of it, and the browser that shows it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from pgqueue_embed.db.session import connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.web import live as live_module
from pgqueue_embed.web import make_site, make_web_app, searching
from pgqueue_embed.web.site import Site, url
from pgqueue_embed.web_server import Listening, Server
from tests.support.watching import HOSTILE, ODD_NAME, WordEncoder, make_world

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page


@dataclass(frozen=True)
class World:
    """A server that may only look, one that may act, and the database behind both."""

    conninfo: str
    reports: Pipeline
    looking: httpx.Client
    acting: httpx.Client
    acting_site: Site


@contextmanager
def serving(site: Site, **listening: Any) -> Iterator[httpx.Client]:
    server = Server(
        lambda _url: make_web_app(site),
        Listening(port=0, **listening),
        challenge="Basic",
        on_stop=site.live.end,
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.started.wait(20)
        with httpx.Client(base_url=server.url, timeout=30, trust_env=False) as client:
            yield client
    finally:
        server.stop()
        thread.join(8)
        assert not thread.is_alive(), "the server does not end"


@contextmanager
def served_world(
    conninfo: str, *, is_hostile: bool = True, place: str | None = None
) -> Iterator[World]:
    """Make a database in the middle of its work, and serve it, looked at often.

    Pages say that it is at `place`, if that is given.
    """
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack:
        patch.setattr(searching, "encoder_of", lambda _pipeline: WordEncoder())
        patch.setattr(live_module, "LOOK_SECONDS", 0.3)
        with connect(conninfo) as connection:
            connection.execute("reset search_path")
            reports = make_world(connection, conninfo, is_hostile=is_hostile)
        acting_site = make_site(conninfo, allows_actions=True)
        if place is not None:
            acting_site = replace(acting_site, place=place)
        yield World(
            conninfo=conninfo,
            reports=reports,
            looking=stack.enter_context(serving(make_site(conninfo))),
            acting=stack.enter_context(serving(acting_site)),
            acting_site=acting_site,
        )


def form(site: Site, **fields: str) -> dict[str, str]:
    return {"form_key": site.form_key, **fields}


def events(client: httpx.Client, address: str, on_event: Callable[[str], bool]) -> None:
    """Read a stream until `on_event` returns True for the text of an event."""
    with client.stream("GET", address) as answer:
        data: list[str] = []
        for line in answer.iter_lines():
            if line.startswith("data: "):
                data.append(line.removeprefix("data: "))
            elif not line and data:
                if on_event("\n".join(data)):
                    return
                data = []


DESKTOP = {"width": 1200, "height": 900}
PHONE = {"width": 390, "height": 844}


class Watched:
    """A page that notes what a person should never meet: errors, and other hosts."""

    def __init__(self, browser: Browser, base_url: str) -> None:
        self._base_url = base_url
        self._context = browser.new_context(
            base_url=base_url,
            viewport=DESKTOP,  # type: ignore[arg-type]
        )
        self.page: Page = self._context.new_page()
        self.met: list[str] = []
        self.page.on("console", lambda message: self.met.append(message.text))
        self.page.on("pageerror", lambda error: self.met.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url))

    def __enter__(self) -> Page:
        return self.page

    def __exit__(self, *_: object) -> None:
        self._context.close()
        assert self.met == []

    def _note(self, address: str) -> None:
        if not address.startswith((self._base_url, "data:")):
            self.met.append(address)


# With what others wrote in them, or what nobody has asked for.
PAGES = (
    "/",
    "/machines",
    "/failures",
    "/events",
    url("/failures", pipeline="reports"),
    url("/failures/letters", pipeline="reports"),
    url("/pipeline", name="reports"),
    url("/pipeline", name=ODD_NAME),
    url("/events", pipeline="reports"),
    url("/document", pipeline="reports", key="8"),
    url("/search", pipeline="reports", q="needle haystack", columns="brand_name", per_record="1"),
    url("/search", pipeline="reports", q=HOSTILE, where="event_type = 'D'"),
    url("/search", pipeline="reports", q="x", where=HOSTILE),
    url("/search", pipeline=ODD_NAME, q="quick fox"),
    url("/search", pipeline="reports", q="x", limit="nan", threshold="nan"),
    url("/nowhere", said=HOSTILE),
    url("/pipeline", name=HOSTILE),
    url("/pipeline", name="a\0b"),
)
# Those of docs/web.md have a name.
DRAWN = {
    "overview": "/",
    "pipeline": url("/pipeline", name="reports"),
    "machines": "/machines",
    "dead-letters": "/failures",
    "search": url(
        "/search",
        pipeline="reports",
        q="drug eluting stent in the artery",
        columns="brand_name",
        where="event_type <> 'D'",
        per_record="1",
        limit="2",
    ),
    "events": "/events",
}
JUST_NOW = """
update pgembed.batches
set committed_at = committed_at + (
    select clock_timestamp() - max(committed_at) from pgembed.batches
)
where not rolled_up
"""
AS_FOR_A_USER = """
update pgembed.pipelines
set model = 'sentence-transformers/all-MiniLM-L6-v2', dimensions = 384,
    model_fingerprint = encode(sha256('all-MiniLM-L6-v2'), 'hex')
"""


# Where test_documents_have_pictures_of_clean_pages draws, such as docs/web.
PICTURES = os.environ.get("PGEMBED_SCREENSHOTS", "")


def _draw(page: Page, name: str) -> None:
    """Draw a page for the documents, in few colours, by Pillow: small files."""
    file = Path(PICTURES) / f"{name}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=file, full_page=True, animations="disabled")
    reduce = "import sys; from PIL import Image; p = sys.argv[1];"
    reduce += " Image.open(p).convert('RGB').quantize(64).save(p, optimize=True)"
    subprocess.run([sys.executable, "-c", reduce, str(file)], check=True)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Debian's chromium; as root it has no sandbox of its own."""
    from shutil import which

    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=which("chromium"), args=["--no-sandbox"]
        )
        yield started
        started.close()


def draw_pages(conninfo: str, browser: Browser) -> None:
    """Draw the pages of a clean world, made in this database, for the documents."""
    with (
        served_world(conninfo, is_hostile=False, place="web@db.lan:5432/reports") as clean,
        connect(conninfo) as connection,
        Watched(browser, str(clean.acting.base_url)) as page,
    ):
        connection.execute(AS_FOR_A_USER)
        for drawn, address in DRAWN.items():
            # As of this moment, at which all machines but the silent one work.
            connection.execute(JUST_NOW)
            page.goto(address)
            page.wait_for_timeout(500)
            _draw(page, f"{drawn}-light")
        page.goto(DRAWN["pipeline"])
        page.emulate_media(color_scheme="dark")
        _draw(page, "pipeline-dark")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        page.goto(DRAWN["dead-letters"])
        _draw(page, "dead-letters-phone")
