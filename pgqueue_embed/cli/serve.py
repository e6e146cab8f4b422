"""The commands that answer others: serve, over HTTP; mcp, for an assistant that starts it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.listening_options import ListeningOptions, ListenPort
from pgqueue_embed.cli.options import connected, log_settings
from pgqueue_embed.garbage import collect_as_usual

if TYPE_CHECKING:
    from pgqueue_embed.web_server.answers import App

DEFAULT_PORT = 8377

Names = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME]...", help="Pipelines.", show_default="every pipeline"),
]
Device = Annotated[
    str,
    typer.Option("--device", help="cpu, auto, mps, cuda or cuda:N; computed in fp32 on each."),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(serve))
    app.command()(connected(mcp))


def serve(
    conninfo: str,
    names: Names = None,
    port: ListenPort = DEFAULT_PORT,
    device: Device = "cpu",
    listening: ListeningOptions = ListeningOptions(),  # noqa: B008 - frozen, and filled in anyway
) -> None:
    """Answer searches over HTTP, with the models loaded and queries batched.

    POST /search, POST /v1/embeddings and GET /v1/models (as OpenAI has them),
    POST /mcp for assistants, GET /health. Nothing is ever written.

    For this machine alone, unless clients bring a key: see docs/search.md.

    Example: pgembed serve reports --port 8377
    """
    from pgqueue_embed.web_server import require_server_extra, serve

    require_server_extra()
    from pgqueue_embed.embedding.devices import choose_device
    from pgqueue_embed.search_server.announce import announced
    from pgqueue_embed.search_server.app import HEALTH

    log_settings().apply()
    where = listening.listening(port)
    if device != "cpu":
        # Without it no pipeline could be searched. For the CPU, torch need not be there.
        choose_device(device)
    with announced() as private:
        serve(
            lambda _url: _app(conninfo, device, names or ()),
            where,
            name="serve",
            on_started=lambda url: say(f"searches are answered at {url}; stop: Ctrl-C"),
            private=private,
            open_paths=[HEALTH],
        )


def _app(conninfo: str, device: str, names: Sequence[str]) -> App:
    """Return the application, its models loaded."""
    import gc

    from pgqueue_embed.search_server.app import make_search_app
    from pgqueue_embed.search_server.encoders import WarmEncoders

    app = make_search_app(conninfo, WarmEncoders(device), names)
    # To look through the libraries for garbage takes a second, in which no request is answered.
    gc.collect()
    gc.freeze()
    return app


def mcp(conninfo: str, names: Names = None) -> None:
    """Let an assistant search, over standard input and output: an MCP server.

    Its tools search, fetch a record and list pipelines; nothing is ever
    written. An assistant starts it by itself, from its configuration.

    Example: pgembed mcp reports --dsn postgresql://reader@db.lan/reports
    """
    from pgqueue_embed.web_server import require_server_extra

    require_server_extra()
    import asyncio

    from pgqueue_embed.search_server.assistants import assistant_server
    from pgqueue_embed.search_server.encoders import DirectEncoder
    from pgqueue_embed.search_server.service import SearchService

    log_settings(quiet=True).apply()
    collect_as_usual()
    service = SearchService(conninfo, DirectEncoder(), names or ())
    try:
        service.check()
        asyncio.run(assistant_server(service).run_stdio_async())
    finally:
        service.close()
