"""A pipeline of four thousand chunks, exact and with each kind of index: see `SEARCHED`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.pipelines import make_pipeline
from tests.support.searching import GIVES_UP, INDEXES, make_reports
from tests.support.serving import Served, serving


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline over a source with columns to ask for, two chunks a record."""
    return load_pipeline(connection, "reports")


@pytest.fixture
def letters(connection: Connection) -> Pipeline:
    """A pipeline of twenty records with a key of two columns, and their vectors beside them."""
    connection.execute(
        """
        create table public.letters (a int, b date, body text, embedding public.vector(8),
            primary key (a, b));
        insert into public.letters
        select n, date '2026-01-01' + n, 'text', array[cosd(n), sind(n), 0, 0, 0, 0, 0, 0]
        from generate_series(1, 20) as n
        """
    )
    return make_pipeline(
        connection,
        Table(schema="public", name="letters"),
        name="letters",
        id_fields=("a", "b"),
        into_column="embedding",
        chunking="none",
    )


@pytest.fixture(params=INDEXES)
def indexed(request: pytest.FixtureRequest, connection: Connection, reports: Pipeline) -> Pipeline:
    """The same with each kind of index, one of which looks at a hundred chunks at most."""
    if request.param == GIVES_UP:
        name = sql.Identifier(connection.info.dbname)
        limit = sql.SQL("alter database {} set hnsw.max_scan_tuples = 100").format(name)
        connection.execute("load 'vector'")
        connection.execute(limit)
    return reports


@pytest.fixture(scope="module")
def served(shared_conninfo: str) -> Iterator[Served]:
    with connect(shared_conninfo) as connection:
        make_reports(connection)
    with serving(shared_conninfo) as running:
        yield running
