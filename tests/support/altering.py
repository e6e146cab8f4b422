"""Pipelines whose vectors change: next generations, and what a person sees of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.conditions import wait_until
from tests.support.corpus import texts
from tests.support.fakes import fake_chunker
from tests.support.prepared import filled_by
from tests.support.rows import one_value
from tests.support.working import drain, embed_documents

# Sixty records and an empty one, embedded: where tests of a switch begin.
REPORTS_EMBEDDED = filled_by(
    lambda connection, session: embed_documents(connection, session, [*texts(60), None])
)
SMALLER = Changes(chunk_tokens=8, overlap_tokens=0)
EMPTY = hashlib.md5(b"").hexdigest()


def begin(connection: Connection, pipeline: Pipeline, changes: Changes = SMALLER) -> Pipeline:
    """Make a next generation and queue its records."""
    successor = alter(connection, pipeline, changes)
    assert successor is not None
    catch_up(connection, pipeline, successor)
    return successor


def embed(session: Session, pipeline: Pipeline) -> None:
    """Embed what waits, with the chunks of the pipeline."""
    drain(
        session,
        pipeline,
        chunker=fake_chunker(pipeline.spec.chunk_tokens, pipeline.spec.overlap_tokens),
    )


def state(connection: Connection) -> dict[str, list[tuple[object, ...]]]:
    """Return everything that a person could see of pipelines: rows, ledger, queue, relations."""
    queries = {
        "pipelines": "select * from pgembed.pipelines order by id",
        "records": "select * from pgembed.records order by pipeline_id, key",
        "work": "select * from pgembed.work order by id",
        "scans": "select pipeline_id from pgembed.scans order by 1",
        "relations": "select relname, relkind from pg_class join pg_namespace n"
        " on n.oid = relnamespace where nspname = 'public' order by 1",
    }
    return {name: connection.execute(query).fetchall() for name, query in queries.items()}


def signature(connection: Connection) -> str:
    """Return what a reader of the target table sees, in one statement."""
    found = one_value(
        connection,
        "select md5(coalesce(string_agg(fulltext_id || chunk_id || text_chunk || embedding::text,"
        " ',' order by fulltext_id, chunk_index), '')) from public.reports_chunks",
    )
    return str(found)


BUILDS = "select pid from pg_stat_progress_create_index where current_locker_pid = %s"
UNUSABLE = "select indexrelid::regclass::text from pg_index where not indisvalid order by 1"


@contextmanager
def once_an_index_is_built(conninfo: str, act: Callable[[int], object]) -> Iterator[None]:
    """Keep an index that is built in the block from its end until `act`, with its pid, ends it."""
    with connect(conninfo) as reader, connect(conninfo) as observer, ThreadPoolExecutor(1) as other:
        reader.execute("begin isolation level repeatable read")
        reader.execute("select from pgembed.pipelines")
        pid = (reader.info.backend_pid,)

        def break_off() -> None:
            wait_until(lambda: observer.value(BUILDS, pid), "an index is built")
            act(observer.value(BUILDS, pid))
            wait_until(lambda: not observer.value(BUILDS, pid), "it is built no more")
            reader.execute("rollback")

        broken_off = other.submit(break_off)
        yield
        broken_off.result()


def unusable(connection: Connection) -> list[str]:
    """Return the indexes that no query can use."""
    return [name for (name,) in connection.execute(UNUSABLE)]
