"""Connections and tokenizers that count what goes through them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from psycopg.abc import Params

from pgqueue_embed.chunking.reading import Reader, Reading
from pgqueue_embed.db.session import Connection


class CountingCursor(psycopg.Cursor[Any]):
    """Notes the first words of every statement with its connection."""

    def execute(self, query: Any, params: Params | None = None, **options: Any) -> Any:
        """Execute, and note the statement."""
        text = query if isinstance(query, str) else query.as_string(self.connection)
        assert isinstance(self.connection, CountingConnection)
        self.connection.statements.append(" ".join(str(text).split()[:4]))
        return super().execute(query, params, **options)


class CountingConnection(Connection):
    """Counts the times that it waits for the server, and notes its statements.

    BEGIN, SAVEPOINT, RELEASE and COMMIT of ``transaction()`` are waits without a statement.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.round_trips = 0
        self.statements: list[str] = []

    def wait(self, *arguments: Any, **options: Any) -> Any:
        """Wait for the server once more."""
        self.round_trips += 1
        return super().wait(*arguments, **options)

    def forget(self) -> None:
        """Count from nothing."""
        self.round_trips = 0
        self.statements.clear()


def counting_connection(conninfo: str) -> CountingConnection:
    """Open a session like session.connect does, that counts."""
    return CountingConnection.connect(
        conninfo, autocommit=True, prepare_threshold=None, cursor_factory=CountingCursor
    )


class CountingReader:
    """Stands in for what reads texts as a tokenizer does, and notes every text that is read."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self.texts: list[str] = []

    def read(self, texts: Sequence[str]) -> Reading:
        """Tokenise, and note the texts."""
        self.texts += texts
        return self._reader.read(texts)
