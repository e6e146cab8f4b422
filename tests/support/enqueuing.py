"""Items that have been queued, and settings under which they are."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from psycopg import sql

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.enqueue import Slice
from tests.support.corpus import make_source, texts
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by

ODD_SETTINGS = {
    "datestyle": "SQL, DMY",
    "timezone": "Asia/Kathmandu",
    "intervalstyle": "iso_8601",
    "extra_float_digits": "-3",
    "bytea_output": "escape",
}


class Interrupted(Exception):
    """Stands for Ctrl-C."""


def interrupt_after(slices: int) -> Callable[[Slice], None]:
    seen: list[Slice] = []

    def on_slice(done: Slice) -> None:
        seen.append(done)
        if len(seen) == slices:
            raise Interrupted

    return on_slice


def queued_items(connection: Connection) -> list[list[str]]:
    rows = connection.execute("select keys from pgembed.work order by priority, id")
    return [keys for (keys,) in rows]


def queued_keys(connection: Connection) -> list[str]:
    return [key for keys in queued_items(connection) for key in keys]


def numbers(first: int, last: int) -> list[str]:
    return [str(number) for number in range(first, last + 1)]


def make_thousand(connection: Connection, _session: Session) -> None:
    make_source(connection, texts(1000))
    make_pipeline(connection)


def set_of_database(connection: Connection, settings: Mapping[str, str]) -> None:
    database = sql.Identifier(connection.info.dbname)
    for name, value in settings.items():
        statement = sql.SQL("alter database {} set {} = {}")
        connection.execute(statement.format(database, sql.Identifier(name), sql.Literal(value)))


THOUSAND = filled_by(make_thousand)
