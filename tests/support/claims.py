"""Keys that are queued, states, chunks and items, for tests of claims."""

from __future__ import annotations

import threading
from collections.abc import Callable

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.work_items import Handling, add_items
from tests.support.fakes import FakeDevice
from tests.support.rows import one_row, one_value


def queue_keys(connection: Connection, pipeline: Pipeline, *keys: int, **fields: object) -> None:
    """Queue records as a trigger does that tells of changes and deletions."""
    told = {"allow_deletes": True, **fields}
    add_items(connection, pipeline.id, [str(key) for key in keys], Handling(**told))  # type: ignore[arg-type]


def states(connection: Connection) -> dict[str, str | None]:
    return dict(connection.execute("select key, state from pgembed.records").fetchall())


def chunk_texts(connection: Connection, key: int) -> list[str]:
    query = (
        "select text_chunk from public.reports_chunks where fulltext_id = %s order by chunk_index"
    )
    return [text for (text,) in connection.execute(query, (key,))]


def count(connection: Connection, table: str) -> int:
    return one_value(connection, f"select count(*) from {table}")


def counted(connection: Connection) -> tuple[int, int]:
    """Return (total, pending) of the one pipeline's progress."""
    total, pending = one_row(connection, "select total, pending from pgembed.progress")
    return total, pending


def nothing_was_written(connection: Connection) -> bool:
    tables = ("records", "batches", "attempts")
    written = [count(connection, f"pgembed.{table}") for table in tables]
    return written == [0, 0, 0] and count(connection, "public.reports_chunks") == 0


def once(action: Callable[[], object]) -> Callable[[], None]:
    """Return a function that runs `action` at its first call only."""
    done = threading.Event()

    def act() -> None:
        if not done.is_set():
            done.set()
            action()

    return act


def allow(device: FakeDevice) -> None:
    assert device.hold is not None
    device.hold.set()


def items(connection: Connection) -> list[tuple[int, bool, int]]:
    return connection.execute(
        "select records, alone, deaths from pgembed.work order by id"
    ).fetchall()
