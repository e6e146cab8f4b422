"""The command for Prometheus: metrics."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.options import connected


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(metrics))


def metrics(
    conninfo: str,
    name: Annotated[
        str | None, typer.Argument(help="A pipeline.", show_default="every pipeline")
    ] = None,
    textfile: Annotated[
        Path | None,
        typer.Option(
            "--textfile",
            help="Write them into this file, for node_exporter's textfile collector.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Print how everything stands, in the text format of Prometheus.

    Records by state, rates, time left, dead letters, stages, workers and their memory. It takes a
    right to read the views of schema pgembed, and no other.

    Example: pgembed metrics --textfile /var/lib/node_exporter/pgembed.prom
    """
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.monitoring.metrics import metrics_text
    from pgqueue_embed.monitoring.snapshot import read_snapshot

    with connect(conninfo) as connection:
        text = metrics_text(read_snapshot(connection, name))
    if textfile is None:
        say(text.decode().removesuffix("\n"))
    else:
        replace_file(textfile, text)


def replace_file(file: Path, content: bytes) -> None:
    """Put a whole file in the place of another: whoever reads it sees the one or the other.

    Raises UsageError where it cannot be written.
    """
    from pgqueue_embed.errors import UsageError
    from pgqueue_embed.whole_file import replacing

    try:
        with replacing(file) as new:
            new.write(content)
    except OSError as error:
        raise UsageError(f"cannot write {file}: {error.strerror}") from None
