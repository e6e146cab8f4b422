"""``pgembed db``: the private PostgreSQL that is used when no database is named."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.local_server import LocalServer, ServerStatus, default_server

app = typer.Typer(
    help="The private PostgreSQL that pgembed uses when no database is named.",
    no_args_is_help=True,
)


def add_commands(parent: typer.Typer) -> None:
    """Add this file's group of commands to `parent`."""
    parent.add_typer(app, name="db")


@app.command()
def start() -> None:
    """Start the private PostgreSQL, and make it at the first time.

    It keeps running until "pgembed db stop", and its data is kept after that. Folder:
    PGEMBED_HOME, or else your own data folder.

    Example: pgembed db start
    """
    server = default_server()
    server.start()
    found = server.status()
    say(_sentence(found))
    if found.shared_account:
        say(f"warning: {found.finding}; {found.way_out}", fg="yellow", err=True)


@app.command()
def stop() -> None:
    """Stop the private PostgreSQL; its data stays where it is.

    Example: pgembed db stop
    """
    server = default_server()
    stopped = server.stop()
    say("stopped; the data stays in " if stopped else "was not running; data folder ", nl=False)
    say(str(server.data_folder))


@app.command()
def status() -> None:
    """Show whether the private PostgreSQL runs, where its data is and how big.

    Example: pgembed db status
    """
    found = default_server().status()
    say(_sentence(found))
    for name, value in _facts(found).items():
        say(f"  {name:<8} {value}")


@app.command()
def url(
    show_password: Annotated[
        bool,
        typer.Option(
            "--show-password", help="Print the password too, as psql needs it. Defaults to hidden."
        ),
    ] = False,
) -> None:
    """Print the connection URL; psql needs it with --show-password.

    Example: psql "$(pgembed db url --show-password)"
    """
    server: LocalServer = default_server()
    say(server.url(mask_password=not show_password))


def _sentence(found: ServerStatus) -> str:
    if found.version is None:
        return "not made yet; make and start it with: pgembed db start"
    if not found.running:
        return f"PostgreSQL {found.version} is stopped; start it with: pgembed db start"
    return f"PostgreSQL {found.version} is running on 127.0.0.1 port {found.port}"


def _facts(found: ServerStatus) -> dict[str, str]:
    facts = {"data": str(found.data_folder)}
    if found.version is not None:
        facts["log"] = str(found.log_file)
        facts["size"] = f"{found.size_bytes / 1024**2:.0f} MiB"
    if found.pid is not None:
        facts["process"] = str(found.pid)
    return facts
