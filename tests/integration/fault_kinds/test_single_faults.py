"""Kinds of errors one by one, what commands say of them, and targets that swallow rows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipelines, resume_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.faulty import (
    ORIGINS,
    RECORDS,
    SICK_AND_NEIGHBOUR,
    letters,
    pending,
    state,
    working,
)
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, open_session

# All errors of one origin come after each other in one test.
pytestmark = pytest.mark.timeout(400)

PREPARED = {"pipelines": SICK_AND_NEIGHBOUR}


class TestKinds:
    """What the table above cannot arrange: errors of PostgreSQL itself."""

    @pytest.mark.parametrize(
        ("fault", "words"),
        [
            ("refresh materialized view public.reports with no data", "has not been populated"),
            ("alter type public.mood rename to temper", "mood"),
            ("alter table public.base rename to elsewhere", None),
        ],
        ids=["view without data", "type of --where renamed", "nothing"],
    )
    def test_object_of_the_source_that_is_not_ready_pauses_or_is_no_fault(
        self, connection: Connection, conninfo: str, fault: str, words: str | None
    ) -> None:
        connection.execute("create type public.mood as enum ('good', 'bad')")
        make_source(connection, texts(RECORDS), table="base")
        connection.execute(
            "create materialized view public.reports as select id, body, 'good' as mood from base;"
            "create unique index on public.reports (id)"
        )
        pipeline = make_pipeline(connection, where="mood::public.mood = 'good'")
        enqueue(connection, pipeline, Selection())
        connection.execute(fault)
        with working(conninfo, [pipeline]):
            wait_until(
                lambda: state(connection)[0] == "paused" or pending(connection, "reports") == 0,
                "it is paused or done",
            )
        assert state(connection)[0] == ("active" if words is None else "paused")
        assert words is None or words in (state(connection)[1] or "")

    def test_trigger_without_return_is_a_dead_letter(
        self, connection: Connection, conninfo: str
    ) -> None:
        make_source(connection, texts(20))
        pipeline = make_pipeline(connection, max_attempts=1)
        connection.execute(
            "create function audit() returns trigger language plpgsql as"
            " $$ begin if new.fulltext_id <> 7 then return new; end if; end $$;"
            "create trigger audit before insert on reports_chunks"
            " for each row execute function audit()"
        )
        enqueue(connection, pipeline, Selection())
        with working(conninfo, [pipeline]):
            wait_until(lambda: pending(connection, "reports") == 0, "all is done")
        assert_converged(connection, "reports")
        assert list(letters(connection)) == ["7"]

    def test_column_of_a_published_table_without_identity_pauses_and_goes_on(
        self, connection: Connection, conninfo: str
    ) -> None:
        connection.execute("create table reports (id bigint, body text)")
        connection.execute("create unique index on reports (id)")
        connection.execute("insert into reports values (1, 'one'), (2, 'two')")
        connection.execute("set client_min_messages = error")
        connection.execute("create publication changes for table reports")
        pipeline = make_pipeline(
            connection,
            target=Table(schema="public", name="reports"),
            into_column="embedding",
            chunking="none",
        )
        enqueue(connection, pipeline, Selection())
        with working(conninfo, [pipeline]):
            wait_until(lambda: state(connection)[0] == "paused", "it is paused")
            assert "does not have a replica identity" in (state(connection)[1] or "")
            connection.execute("alter table reports replica identity full")
            resume_pipeline(connection, pipeline)
            wait_until(lambda: pending(connection, "reports") == 0, "all is done")
        assert letters(connection) == {}

    def test_error_of_every_row_pauses_without_a_record_to_blame(
        self, connection: Connection, conninfo: str
    ) -> None:
        make_source(connection, texts(RECORDS), table="base")
        connection.execute("create view public.reports as select id, body from public.base")
        pipeline = make_pipeline(connection)
        enqueue(connection, pipeline, Selection())
        connection.execute(
            "create or replace view public.reports as"
            " select id, case when 1 / (id - id) = 0 then body end as body from public.base"
        )
        with working(conninfo, [pipeline]):
            wait_until(lambda: state(connection)[0] == "paused", "it is paused")
        assert (state(connection)[1] or "").startswith(
            "reading public.reports: division by zero; mend"
        )


SECOND = Table(schema="public", name="second")


def commands(pipeline: Pipeline) -> dict[str, Callable[[Connection], object]]:
    from pgqueue_embed.queue.deleted import enqueue_deleted

    return {
        "enqueue": lambda each: enqueue(each, pipeline, Selection(everything=True)),
        "enqueue of some": lambda each: enqueue(each, pipeline, Selection(where="id < 5")),
        "gone": lambda each: enqueue_deleted(each, pipeline, slice_records=100),
        "create": lambda each: make_pipeline(each, name="second", target=SECOND),
    }


@pytest.mark.parametrize("command", ["enqueue", "enqueue of some", "gone", "create"])
def test_command_says_in_one_line_what_a_function_of_the_source_raises(
    connection: Connection, conninfo: str, pipelines: list[Pipeline], command: str
) -> None:
    from pgqueue_embed.errors import PgembedError

    failing, _ = pipelines
    assert [each.name for each in load_pipelines(connection)] == ["reports", "notes"]
    for code in ("27000", "57014", "P0001", "XX000", "42501"):
        ORIGINS["source's own condition"].arrange(connection, code)
        with pytest.raises(
            PgembedError, match=r"public\.reports.*: no (text|row|where) at all"
        ) as raised:
            commands(failing)[command](connection)
        assert "\n" not in str(raised.value)


SWALLOWING_TRIGGER = """
create trigger swallow before insert on public.reports_chunks
    for each row execute function swallow()
"""


SWALLOWING_RULE = """
create rule swallow as on insert to public.reports_chunks
    where new.fulltext_id = 3 do instead nothing
"""


@pytest.mark.parametrize(
    ("swallow", "copied"),
    [(SWALLOWING_TRIGGER, ()), (SWALLOWING_TRIGGER, ("id",)), (SWALLOWING_RULE, ())],
    ids=["trigger", "trigger, copied columns", "rule"],
)
def test_chunks_that_the_target_lets_vanish_are_a_dead_letter(
    connection: Connection, conninfo: str, swallow: str, copied: tuple[str, ...]
) -> None:
    make_source(connection, texts(5))
    columns = TargetColumns(id="chunk_number")
    pipeline = make_pipeline(
        connection, copy_columns=copied, columns=columns, max_attempts=1, trust_owners=True
    )
    connection.execute(
        "create function swallow() returns trigger language plpgsql as"
        " $$ begin if new.fulltext_id = 3 then return null; end if; return new; end $$"
    )
    connection.execute(swallow)
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    letters = connection.execute("select key, last_error from pgembed.dead_letters").fetchall()
    assert [(key, "has not kept all of its chunks" in error) for key, error in letters] == [
        ("3", True)
    ]
    chunks = "select count(distinct fulltext_id) from public.reports_chunks"
    assert connection.execute(chunks).fetchone() == (4,)


def test_rows_that_a_trigger_puts_elsewhere_are_there(
    connection: Connection, conninfo: str
) -> None:
    make_source(connection, texts(5))
    pipeline = make_pipeline(connection)
    connection.execute("create table public.heir () inherits (public.reports_chunks)")
    connection.execute(
        "create function divert() returns trigger language plpgsql as"
        " $$ begin insert into public.heir select new.*; return null; end $$"
    )
    connection.execute(
        "create trigger divert before insert on public.reports_chunks"
        " for each row execute function divert()"
    )
    enqueue(connection, pipeline, Selection())
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")
