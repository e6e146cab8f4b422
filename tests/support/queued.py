"""Items in the queue of a pipeline, and claims of them."""

from __future__ import annotations

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.queue.claims import (
    claim_items,
)
from pgqueue_embed.queue.work_items import Handling, add_items
from tests.support.corpus import make_source
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.rows import one_value

PIPELINE = 1


def make_empty_pipeline(connection: Connection, _session: Session) -> None:
    make_source(connection)
    assert make_pipeline(connection).id == PIPELINE


def fill(
    connection: Connection, items: int, *, delay_seconds: float = 0.0, **fields: object
) -> None:
    handling = Handling(**fields)  # type: ignore[arg-type]
    for number in range(items):
        add_items(connection, PIPELINE, [str(number)], handling, delay_seconds=delay_seconds)


def claim(connection: Connection, limit: int = 1, *, alone: bool = False) -> list[int]:
    claimed = claim_items(connection, PIPELINE, limit=limit, alone=alone)
    return claimed.work_ids if claimed else []


def count(connection: Connection, table: str) -> int:
    return one_value(connection, f"select count(*) from pgembed.{table}")


def in_flight(connection: Connection) -> int:
    return count(connection, "in_flight")


EMPTY_PIPELINE = filled_by(make_empty_pipeline)
