"""A pipeline of four thousand chunks, exact and with each kind of index."""

from __future__ import annotations

import pytest
from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.pipelines import make_pipeline
from tests.support.searching import ROWS

SOURCE = """
create table public.reports as
select n as id, 'text of ' || n as body, n % 50 as kind, date '2026-01-01' + n as made
from generate_series(1, {rows}) as n;
alter table public.reports add primary key (id);
create index on public.reports (kind)
"""

# Two chunks a record, in directions that depend on both, and not on what a condition looks at.
FILL = """
insert into {target} (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens,
    embedding)
select id, id || '-' || chunk, chunk, 'chunk ' || chunk || ' of ' || id, 10, 20, 2,
    array[cosd(angle), sind(angle), 0, 0, 0, 0, 0, 0]
from (
    select id, chunk, 180.0 * ((id * 7919 + chunk * 1009) %% 10007) / 10007 as angle
    from public.reports cross join generate_series(0, 1) as chunk
) as angles
"""


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline over a source with columns to ask for, two chunks a record."""
    return make_reports(connection)


def make_reports(connection: Connection) -> Pipeline:
    """Make a source with columns to ask for and a pipeline over it, two chunks a record."""
    connection.execute(SOURCE.format(rows=ROWS))
    pipeline = make_pipeline(connection, copy_columns=("kind",))
    connection.execute(sql.SQL(FILL).format(target=pipeline.target.identifier), ())
    return pipeline


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


@pytest.fixture(params=["exact", "hnsw", "hnsw that gives up", "ivfflat"])
def indexed(
    request: pytest.FixtureRequest, connection: Connection, conninfo: str, reports: Pipeline
) -> Pipeline:
    """The same with each kind of index, one of which looks at a hundred chunks at most."""
    kind = request.param
    if kind != "exact":
        with connect(conninfo) as builder:
            method = kind.split()[0]
            build_index(builder, reports, plan(builder, reports, IndexOptions(method=method)))
    if "gives up" in kind:
        name = sql.Identifier(connection.info.dbname)
        limit = sql.SQL("alter database {} set hnsw.max_scan_tuples = 100").format(name)
        connection.execute("load 'vector'")
        connection.execute(limit)
    return reports
