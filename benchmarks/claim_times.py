"""Claims by the worker's own statements, without anything to embed in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claim_cursor import ClaimCursor
from pgqueue_embed.queue.claims import claim_items, finish_items, log_attempts
from pgqueue_embed.queue.lease import claim_transaction

LEASE_SECONDS = 60.0


def time_claims(conninfo: str, pipeline: Pipeline, count: int) -> list[float]:
    """Claim, finish and commit one work item `count` times; returns the seconds of each claim.

    A claim is timed from BEGIN until its items are locked and known; logging the attempt and the
    commit (a flush to disk) come after the clock has stopped.
    """
    seconds: list[float] = []
    cursor = ClaimCursor()
    with connect(conninfo) as connection, connect(conninfo) as side:
        for _ in range(count):
            started = time.perf_counter()
            with claim_transaction(connection, lease_seconds=LEASE_SECONDS):
                claim = claim_items(connection, pipeline.id, limit=1, cursor=cursor)
                seconds.append(time.perf_counter() - started)
                assert claim is not None, "the queue is long enough"
                log_attempts(side, claim, worker_id=1)
                finish_items(connection, claim)
    return seconds


@contextmanager
def hold_snapshot(conninfo: str) -> Iterator[None]:
    """Hold an old snapshot, as a forgotten session or a long report does."""
    with connect(conninfo) as connection:
        connection.execute("begin isolation level repeatable read")
        connection.execute("select count(*) from pgembed.pipelines")
        yield
        connection.execute("rollback")


def keep_queue(connection: Connection) -> None:
    """Keep a copy of the queue as it is, for `refill`."""
    connection.execute("create table public.kept as select * from pgembed.work")


def refill(connection: Connection) -> None:
    """Make the queue what it was when it was kept, with nothing dead in it."""
    columns = """
        select string_agg(quote_ident(attname), ', ' order by attnum)
        from pg_attribute
        where attrelid = 'pgembed.work'::regclass
            and attnum > 0 and not attisdropped and attgenerated = ''
    """
    names = connection.value(columns)
    connection.execute(
        f"""
        truncate pgembed.work, pgembed.attempts;
        insert into pgembed.work ({names}) overriding system value
        select {names} from public.kept order by id;
        """
    )


def delete_first_items(connection: Connection, share: float) -> None:
    """Do away with the first part of the queue as if it had been worked on."""
    connection.execute(
        """
        delete from pgembed.work
        where id in (
            select id
            from pgembed.work
            order by id
            limit (select (count(*) * %s)::bigint from pgembed.work)
        )
        """,
        (share,),
    )


@contextmanager
def open_claims(conninfo: str, pipeline: Pipeline, count: int) -> Iterator[None]:
    """Hold `count` claims, with their attempts logged, and give them back at the end."""
    with ExitStack() as stack, connect(conninfo) as side:
        for _ in range(count):
            connection = stack.enter_context(connect(conninfo))
            connection.execute("begin")
            claim = claim_items(connection, pipeline.id, limit=1)
            assert claim is not None, "the queue is long enough"
            log_attempts(side, claim, worker_id=1)
            stack.callback(connection.execute, "rollback")
        yield
