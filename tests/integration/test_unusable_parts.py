"""Leftovers of an interrupted build of a part's index, and what is built beside them."""

from __future__ import annotations

import threading
from contextlib import suppress

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.vector_search.index import lacks_declared, plan, vector_indexes
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.altering import begin, embed
from tests.support.conditions import wait_until
from tests.support.corpus import texts
from tests.support.working import embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


def test_what_an_interrupted_build_has_left_does_not_make_the_whole_useless(
    conninfo: str, connection: Connection, session: Session
) -> None:
    reports = embed_documents(
        connection, session, texts(9), partition_by="hash:3", index_method="hnsw"
    )
    leave_unusable(conninfo, connection, "by_hand", "reports_chunks_1")
    # As one is that was made by hand of the whole alone, and of the parts never.
    connection.execute(
        "create index reports_chunks_embedding_hnsw on only public.reports_chunks"
        " using hnsw (embedding public.vector_cosine_ops)"
    )
    with connect(conninfo) as builder:
        build_index(builder, reports, plan(connection, reports, IndexOptions()))
    assert unusable(connection) == []
    assert not lacks_declared(connection, reports)
    embed(session, begin(connection, reports))
    leave_unusable(conninfo, connection, "left_by_a_switch", "reports_chunks_next_1")
    with connect(conninfo) as own:
        switched = switch(own, reports)
    assert unusable(connection) == []
    assert [each.valid for each in vector_indexes(connection, switched)] == [True]


def test_what_a_killed_switch_has_left_of_one_table_is_dropped_by_the_next(
    conninfo: str, connection: Connection, session: Session
) -> None:
    reports = embed_documents(connection, session, texts(9))
    with connect(conninfo) as builder:
        build_index(builder, reports, plan(connection, reports, IndexOptions()))
    embed(session, begin(connection, reports))
    leave_unusable(conninfo, connection, "left_by_a_switch", "reports_chunks_next")
    with connect(conninfo) as own:
        switched = switch(own, reports)
    assert unusable(connection) == []
    assert [each.valid for each in vector_indexes(connection, switched)] == [True]


def leave_unusable(conninfo: str, connection: Connection, name: str, part: str) -> None:
    """Leave an index of `part` as one is left whose builder was killed."""
    query = f"create index concurrently {name} on public.{part}"

    def build_in_vain(builder: Connection) -> None:
        with suppress(psycopg.errors.QueryCanceled):
            builder.execute(f"{query} using hnsw (embedding public.vector_cosine_ops)")

    with connect(conninfo) as writer, writer.transaction(), connect(conninfo) as builder:
        writer.execute(f"lock table public.{part} in row exclusive mode")
        thread = threading.Thread(target=build_in_vain, args=(builder,))
        thread.start()
        wait_until(lambda: name in unusable(connection), f"{name} is there")
        connection.execute("select pg_cancel_backend(%s)", (builder.info.backend_pid,))
        thread.join()


def unusable(connection: Connection) -> list[str]:
    query = "select relname::text from pg_index join pg_class on oid = indexrelid"
    return [name for (name,) in connection.execute(f"{query} where not indisvalid")]
