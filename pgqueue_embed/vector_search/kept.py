"""Keeps with a pipeline what was measured for its searches."""

from __future__ import annotations

from typing import Any

import psycopg

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import SetupError


class NotKept(SetupError):
    """The measurement is right, and searches are as before."""


def keep(connection: Connection, query: str, values: dict[str, Any], *, what: str) -> None:
    """Run an update of one row of pgembed.pipelines; raises NotKept, which names `what`."""
    try:
        updated = connection.execute(query, values).rowcount
    except psycopg.Error as error:
        says = f"{what} is not kept: {first_line(error)}; --dry-run measures alone"
        raise NotKept(says) from None
    if not updated:
        raise NotKept(f"{what} is not kept: it has been replaced meanwhile; evaluate again")
