"""docs/sql.md: made from the catalogue, and its examples executed as they stand."""

from __future__ import annotations

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from scripts.sql_page import PAGE, sql_page
from tests.support.corpus import texts
from tests.support.documents import marked_block
from tests.support.example_pipeline import event_pipeline
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session


def test_the_page_is_what_the_script_writes(connection: Connection) -> None:
    assert PAGE.read_text(encoding="utf-8") == sql_page(connection), "run: make docs"


def test_every_column_and_function_is_explained(connection: Connection) -> None:
    assert "| None |" not in sql_page(connection)


def test_queries_run(connection: Connection) -> None:
    connection.execute(marked_block(PAGE, "watch: executed by the tests", "sql"))


def test_functions_do_what_the_page_says(connection: Connection) -> None:
    event_pipeline(connection, list(texts(5)))
    connection.execute("update event_text set mdr_text_key = 4711 where mdr_text_key = 1")
    connection.execute(marked_block(PAGE, "act: executed by the tests", "sql"))
    rows = connection.execute("select unnest(keys) from pgembed.work").fetchall()
    assert ("4711",) in rows


def test_keys_of_several_columns_are_queued_as_the_page_says(connection: Connection) -> None:
    connection.execute(
        "create table visits (tenant text, id int, day date, body text, primary key (tenant, id));"
        "insert into visits values ('acme', 7, '2026-05-01', 'A visit.')"
    )
    make_pipeline(
        connection,
        Table(schema="public", name="visits"),
        name="visits",
        id_fields=("tenant", "id"),
    )
    connection.execute(marked_block(PAGE, "several: executed by the tests", "sql"))
    assert connection.execute("select keys from pgembed.work").fetchone() == (['["acme", 7]'],)


def test_search_finds_what_the_page_says(connection: Connection, conninfo: str) -> None:
    pipeline = event_pipeline(connection, list(texts(5)))
    connection.execute(
        "select pgembed.enqueue('reports', array(select mdr_text_key from event_text))"
    )
    with open_session(conninfo) as session:
        drain(session, pipeline)
    rows = connection.execute(marked_block(PAGE, "search: executed by the tests", "sql"))
    assert len(rows.fetchall()) == 10
