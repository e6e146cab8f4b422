"""The options of commands that serve: where they listen, and the key that clients bring."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from pgqueue_embed.web_server import Listening

LISTENING = "Listening"

# A command that serves names its own default.
ListenPort = Annotated[
    int,
    typer.Option("--port", help="Port; 0 for any free one.", rich_help_panel=LISTENING),
]


@dataclass(frozen=True, kw_only=True)
class ListeningOptions:
    """Where to listen, but for the port, whose default each command has."""

    host: Annotated[
        str,
        typer.Option(
            "--host",
            help="Name or address to listen at; any but this machine's own takes a key.",
            rich_help_panel=LISTENING,
        ),
    ] = "127.0.0.1"
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            help="File, mode 0600, with the key that clients bring; else PGEMBED_API_KEY.",
            rich_help_panel=LISTENING,
            show_default=False,
        ),
    ] = None
    allow_host: Annotated[
        list[str],
        typer.Option(
            "--allow-host",
            help="A name that requests may be for, such as a proxy's; again for more.",
            rich_help_panel=LISTENING,
            show_default=False,
        ),
    ] = field(default_factory=list)

    def listening(self, port: int) -> Listening:
        """Return where to listen; raises UsageError for what is no key."""
        from pgqueue_embed.web_server import Listening
        from pgqueue_embed.web_server.api_key import find_api_key

        return Listening(
            host=self.host,
            port=port,
            key=find_api_key(self.api_key_file),
            names=tuple(self.allow_host),
        )
