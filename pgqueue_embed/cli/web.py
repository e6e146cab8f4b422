"""The command that serves the page: web."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.listening_options import ListeningOptions, ListenPort
from pgqueue_embed.cli.options import connected

DEFAULT_PORT = 8420


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(web))


def web(
    conninfo: str,
    port: ListenPort = DEFAULT_PORT,
    allow_actions: Annotated[
        bool,
        typer.Option(
            "--allow-actions",
            help="Let the page pause, resume and retry, with this role's rights.",
        ),
    ] = False,
    *,
    listening: ListeningOptions,
) -> None:
    """Serve a page: time left, machines, dead letters, events, and search.

    For this machine alone, and to look only, unless options say otherwise. The
    role needs the rights of pgembed_viewer, and of pgembed_searcher to search.

    Example: pgembed web --dsn postgresql://viewer@db.lan/reports

    Example, to act, and for others: pgembed web --allow-actions --host 0.0.0.0 --api-key-file key
    """
    from pgqueue_embed.web_server import require_server_extra, serve

    require_server_extra()
    from pgqueue_embed.web import make_site, make_web_app

    site = make_site(conninfo, allows_actions=allow_actions)
    serve(
        lambda _url: make_web_app(site),
        listening.listening(port),
        name="web",
        challenge="Basic",
        on_started=lambda url: say(f"open {url} in a browser; Ctrl-C ends it"),
        on_stop=site.live.end,
    )
