"""Sources that are no ordinary table: views, materialized views, partitions, foreign tables."""

from __future__ import annotations

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.target.column_check import check_column
from tests.support import working
from tests.support.columns import into_column
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain


def embed(connection: Connection, session: Session, pipeline: Pipeline) -> int:
    """Embed what is new, changed or gone; returns how many records that was."""
    queued = working.embed(connection, session, pipeline)
    assert_converged(connection, pipeline.name)
    return queued


# Each with what makes `reports` out of `base` (id, body), and what brings it up to date.
SOURCES = {
    "view": ("create view reports as select id, body from base", "select"),
    "view of a join": (
        "create view reports as select id, title || ': ' || body as body"
        " from base join (values ('Letter')) as t (title) on true",
        "select",
    ),
    "materialized view": (
        "create materialized view reports as select id, body from base",
        "refresh materialized view reports",
    ),
    "materialized view with an index": (
        "create materialized view reports as select id, body from base;"
        "create unique index on reports (id)",
        "refresh materialized view concurrently reports",
    ),
}


@pytest.mark.parametrize(("make", "refresh"), SOURCES.values(), ids=SOURCES)
def test_view_follows_its_tables(
    connection: Connection, session: Session, make: str, refresh: str
) -> None:
    make_source(connection, [*texts(8), None], table="base")
    connection.execute(make)
    pipeline = make_pipeline(connection)
    assert embed(connection, session, pipeline) == 9
    connection.execute("update base set body = 'changed' where id = 2")
    connection.execute("delete from base where id = 3")
    connection.execute("insert into base values (20, 'new')")
    connection.execute(refresh)
    assert embed(connection, session, pipeline) == 3
    assert embed(connection, session, pipeline) == 0


@pytest.mark.on_both_servers
def test_partitioned_table_is_one_source(connection: Connection, session: Session) -> None:
    connection.execute(
        "create table reports (id bigint, day date, body text, primary key (id, day))"
        " partition by range (day)"
    )
    connection.execute(
        "create table early partition of reports for values from (minvalue) to ('2024-07-01')"
    )
    connection.execute("create table late partition of reports default")
    connection.execute(
        "insert into reports select n, date '2024-06-01' + 10 * n::int, 'Report ' || n"
        " from generate_series(1, 9) n"
    )
    pipeline = make_pipeline(connection, id_fields=("id", "day"))
    assert embed(connection, session, pipeline) == 9
    connection.execute("update reports set day = '2024-01-01' where id = 9")
    assert embed(connection, session, pipeline) == 2  # another key, and one that is gone
    connection.execute("drop table late")
    embed(connection, session, pipeline)
    left = one_value(connection, "select count(*) from reports_chunks")
    assert left == 3


def test_partitioned_table_with_vectors_in_a_column_is_indexed(
    connection: Connection, conninfo: str
) -> None:
    connection.execute(
        "create table reports (id bigint primary key, body text) partition by range (id)"
    )
    connection.execute("create table one partition of reports default")
    into_column(connection)
    assert pgembed(conninfo, "index", "reports").error is None
    assert connection.value("select is_valid from pgembed.vector_indexes")


def test_foreign_table_is_asked_for_its_rows_and_has_no_column_to_write_to(
    connection: Connection,
) -> None:
    """The PostgreSQL at hand has no wrapper to read one by: it is taken, and then it fails."""
    connection.execute("create foreign data wrapper nothing")
    connection.execute("create server nowhere foreign data wrapper nothing")
    connection.execute("create foreign table reports (id bigint, body text) server nowhere")
    with pytest.raises(PipelineFault, match="foreign-data wrapper"):
        make_pipeline(connection, REPORTS)
    with pytest.raises(UsageError, match="no ordinary table"):
        check_column(connection, REPORTS, "embedding", "vector")


def test_domain_over_a_domain_is_what_lies_beneath(
    connection: Connection, session: Session
) -> None:
    """A date has one text whatever DateStyle is; money has none."""
    connection.execute(
        """
        create domain day1 as date;
        create domain day2 as day1;
        create domain price1 as money;
        create domain price2 as price1;
        create domain number1 as numeric;
        create domain number2 as number1;
        create table reports (id int primary key, body text, day day2, price price2, n number2);
        insert into reports values (1, 'text', '2024-02-03', 12.5, 1)
        """
    )
    for style in ("SQL, DMY", "German"):
        connection.execute(f"alter database {connection.info.dbname} set datestyle = '{style}'")
    pipeline = make_pipeline(connection, template="$body of $day")
    assert enqueue(connection, pipeline, Selection()) == 1
    drain(session, pipeline)
    connection.execute("set datestyle = 'SQL, DMY'")
    assert enqueue(connection, pipeline, Selection()) == 0
    chunks = connection.execute("select text_chunk from reports_chunks").fetchall()
    assert chunks == [("text of 2024-02-03",)]
    with pytest.raises(UsageError, match=r"price is of type money"):
        make_pipeline(connection, template="$body at $price", name="prices")
    with pytest.raises(UsageError, match=r"n is of type numeric, in which one key has several"):
        make_pipeline(connection, id_fields=("n",), name="numbers")


def test_key_column_of_a_domain_and_of_varchar(connection: Connection, session: Session) -> None:
    connection.execute("create domain code as varchar(20) check (value <> '')")
    connection.execute("create table reports (id code, part varchar(3), body text)")
    connection.execute("create unique index on reports (part, id)")
    connection.execute(
        "insert into reports select 'K ' || n, n % 2, 'Report ' || n from generate_series(1, 6) n"
    )
    pipeline = make_pipeline(
        connection, Table(schema="public", name="reports"), id_fields=("id", "part")
    )
    assert embed(connection, session, pipeline) == 6
    assert embed(connection, session, pipeline) == 0
