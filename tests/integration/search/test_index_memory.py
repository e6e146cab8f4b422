"""An index that does not fit into the memory is not begun before somebody has said yes."""

from __future__ import annotations

from psycopg import sql

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.build_time import estimated_build_seconds
from pgqueue_embed.vector_search.index import has_vector_index, plan
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.commands import pgembed
from tests.support.searching import SEARCHED
from tests.support.tty import on_terminal

PREPARED = SEARCHED

QUESTION = "Build it nevertheless? [y/N]"


def test_without_a_terminal_it_is_refused_with_all_that_there_is_to_know(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    ran = pgembed(conninfo, "index", "reports", "--memory", "3")
    assert ran.exit_code == 2
    for words in (
        "the index of 4,000 vectors needs about 4 MB while it is built, and gets 3 MB",
        "timed on a sample, it takes ",
        "what would fit: --method ivfflat (",
        "--memory 4",
        "--yes",
    ):
        assert words in (ran.error or "")
    assert not has_vector_index(connection, reports)
    assert connection.value("select to_regclass('pg_temp.pgembed_sample')") is None


def test_yes_builds_it_nevertheless(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    ran = pgembed(conninfo, "index", "reports", "--memory", "3", "--yes")
    assert ran.exit_code == 0
    assert "warning: the index of 4,000 vectors needs about 4 MB" in ran.stderr
    assert has_vector_index(connection, reports)


def test_a_role_without_temporary_tables_is_told_that_the_time_is_not_known(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    name = sql.Identifier(connection.info.dbname)
    connection.execute(sql.SQL("revoke temporary on database {} from public").format(name))
    connection.execute("create role owner")
    connection.execute("grant usage on schema pgembed, public to owner")
    connection.execute("grant select on all tables in schema pgembed to owner")
    connection.execute("alter table public.reports_chunks owner to owner")
    try:
        with connect(conninfo) as role:
            role.execute("set role owner")
            planned = plan(role, reports, IndexOptions(memory_megabytes=1))
            assert estimated_build_seconds(role, reports, planned) is None
    finally:
        connection.execute("alter table public.reports_chunks owner to current_user")
        connection.execute("drop owned by owner; drop role owner")


def test_on_a_terminal_a_person_is_asked(
    conninfo: str, connection: Connection, reports: Pipeline
) -> None:
    with on_terminal(conninfo, "index", "reports", "--memory", "3") as tty:
        tty.wait_until(lambda: QUESTION in tty.read(), "the question is shown")
        tty.press("n\n")
        assert tty.wait() == 1
    assert not has_vector_index(connection, reports)
    with on_terminal(conninfo, "index", "reports", "--memory", "3") as tty:
        tty.wait_until(lambda: QUESTION in tty.read(), "the question is shown")
        tty.press("y\n")
        assert tty.wait() == 0
    assert has_vector_index(connection, reports)
