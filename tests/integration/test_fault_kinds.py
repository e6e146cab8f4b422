"""Errors by SQLSTATE and origin, and what becomes of pipeline, record and neighbour.

A neighbour of the sick pipeline is embedded in every case, and the worker never ends by itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines, resume_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import loop, unserved
from pgqueue_embed.worker.loop import Shared, run_loop
from pgqueue_embed.worker.stop_reasons import STOPPED
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice, FixedPipelines, fake_chunker
from tests.support.light import light_settings
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.rows import one_row, one_value
from tests.support.working import drain, open_session

# All errors of one origin come after each other in one test.
pytestmark = pytest.mark.timeout(400)

RECORDS = 6
NEIGHBOURS = 2

# Of a user's function: of every class that such a function raises, by itself or by what it does.
FAULTS = (
    *("0A000", "21000", "22012", "23514", "25006", "25P03", "27000", "2F005", "38000", "39P01"),
    *("40001", "42704"),
    *("44000", "55000", "55P03", "57014", "58P01", "P0001", "P0002", "P0004", "XX000", "ZZ999"),
)
AWAY = ("08001", "53100", "57P01")
SOME_FAULTS = ("27000", "42704", "57014", "P0001")


# What fails, and where. Each statement is executed once the sick pipeline has been embedded, and
# all of its records have changed since.

RAISING = """
create or replace function public.refuse(id bigint, says text) returns boolean
language plpgsql as $$
begin
    if id = 3 and {where} then raise exception 'no % at all', says using errcode = '{code}'; end if;
    return true;
end $$;
"""
ROW_TRIGGER = """
create function public.refuse() returns trigger language plpgsql as $$
begin
    perform public.refuse({row}.fulltext_id, 'vectors');
    return {row};
end $$;
"""
BEFORE_INSERT = (
    RAISING
    + ROW_TRIGGER.replace("{row}", "new")
    + """
create trigger refuse before insert on public.reports_chunks
for each row execute function public.refuse();
"""
)
DEFERRED = (
    RAISING
    + ROW_TRIGGER.replace("{row}", "new")
    + """
create constraint trigger refuse after insert on public.reports_chunks
deferrable initially deferred for each row execute function public.refuse();
"""
)
BEFORE_DELETE = (
    RAISING
    + ROW_TRIGGER.replace("{row}", "old")
    + """
create trigger refuse before delete on public.reports_chunks
for each row execute function public.refuse();
update public.base set body = '' where id = 3;
"""
)
REUSED = (
    RAISING
    + """
alter table public.reports_chunks rename to stored;
create view public.reports_chunks as
select id, fulltext_id, chunk_id, chunk_index, start_char, end_char, tokens, embedding, created_at,
    case when public.refuse(fulltext_id, 'vectors') then text_chunk end as text_chunk
from public.stored;
create function public.store() returns trigger language plpgsql as $$
begin
    insert into public.stored (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char,
        tokens, embedding)
    values (new.fulltext_id, new.chunk_id, new.chunk_index, new.text_chunk, new.start_char,
        new.end_char, new.tokens, new.embedding);
    return new;
end $$;
create trigger store instead of insert on public.reports_chunks
for each row execute function public.store();
"""
)
SWEPT = (
    RAISING
    + """
truncate pgembed.work;
insert into pgembed.work (pipeline_id, keys, records, sweep_after)
select id, '{{}}', 0, '' from pgembed.pipelines where name = 'reports';
"""
)
# The claim's own connection executes nothing on the source but the re-check.
IN_CLAIM = "current_setting('application_name') = 'pgembed claim'"


@dataclass(frozen=True)
class Origin:
    """Where an error comes from: statements with `code`, for the record 3 `where` this is so."""

    statements: str
    where: str = "true"

    def arrange(self, connection: Connection, code: str) -> None:
        connection.execute(self.statements.format(code=code, where=self.where))

    def change(self, connection: Connection, code: str) -> None:
        """Raise another error where one was arranged."""
        connection.execute(RAISING.format(code=code, where=self.where))


SOURCE_ORIGINS = {
    "source read": Origin(RAISING, "says = 'text'"),
    "source's own condition": Origin(RAISING, "says = 'row'"),
    "where-condition": Origin(RAISING, "says = 'where'"),
    "re-check under the mutex": Origin(RAISING, IN_CLAIM),
    "reuse's read": Origin(REUSED, "says = 'vectors'"),
    "sweep": Origin(SWEPT),
}
TARGET_ORIGINS = {
    "target write": Origin(BEFORE_INSERT, "says = 'vectors'"),
    "deferred constraint at COMMIT": Origin(DEFERRED, "says = 'vectors'"),
    "target clear": Origin(BEFORE_DELETE, "says = 'vectors'"),
}
ORIGINS = {**SOURCE_ORIGINS, **TARGET_ORIGINS}


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "reconnect_delay_seconds", lambda _failures, jitter: 0.01)
    monkeypatch.setattr(loop, "poll_delay_seconds", lambda _idle_polls, jitter: 0.1)


@contextmanager
def working(conninfo: str, pipelines: list[Pipeline], **settings: object) -> Iterator[Shared]:
    """Run one loop of a worker in a thread while the block lasts; it may not end by itself."""
    shared = Shared.of(
        conninfo,
        light_settings(drain=False, lease_seconds=20, **settings),
        worker_id=1,
        device=FakeDevice(),
        served=FixedPipelines(pipelines, fake_chunker()),
    )
    thread = threading.Thread(target=run_loop, args=(shared,), daemon=True)
    thread.start()
    try:
        yield shared
        assert thread.is_alive(), shared.shutdown.failure
    finally:
        shared.shutdown.finish(STOPPED)
        thread.join(20)
    assert not thread.is_alive()
    assert shared.shutdown.failure is None


def make_sick_and_neighbour(connection: Connection, session: Session) -> None:
    make_source(connection, texts(RECORDS), table="base")
    connection.execute(RAISING.format(where="false", code="P0001"))
    connection.execute(
        "create view public.reports as"
        " select id, case when public.refuse(id, 'text') then body end as body"
        " from public.base where public.refuse(id, 'row')"
    )
    make_source(connection, texts(NEIGHBOURS), table="notes")
    sick = make_pipeline(connection, max_attempts=2, where="public.refuse(id, 'where')")
    neighbour = make_pipeline(connection, Table(schema="public", name="notes"), name="notes")
    enqueue(connection, sick, Selection())
    drain(session, sick)
    connection.execute("update public.base set body = 'Changed. ' || body")
    enqueue(connection, sick, Selection())
    enqueue(connection, neighbour, Selection())


PREPARED = {"pipelines": filled_by(make_sick_and_neighbour)}


@pytest.fixture
def pipelines(connection: Connection) -> list[Pipeline]:
    """A pipeline that is embedded and whose records have changed, and one that is queued."""
    return [load_pipeline(connection, name) for name in ("reports", "notes")]


def queue_changed(connection: Connection, pipeline: Pipeline, said: str, table: str) -> None:
    """Queue every record of the pipeline with another text."""
    connection.execute(f"update public.{table} set body = %s || id", (f"Changed to {said}: ",))
    enqueue(connection, pipeline, Selection())


def pending(connection: Connection, name: str) -> int:
    """Return how many records wait or are in flight; pgembed.progress takes ten times as long."""
    query = (
        "select coalesce(sum(greatest(records, 1)), 0) from pgembed.work"
        " where pipeline_id = (select id from pgembed.pipelines where name = %s)"
    )
    return one_value(connection, query, (name,))


def state(connection: Connection) -> tuple[str, str | None]:
    query = "select state, state_reason from pgembed.pipelines where name = 'reports'"
    state, reason = one_row(connection, query)
    return state, reason


def letters(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("select key, last_error from pgembed.dead_letters").fetchall())


def charged(connection: Connection) -> int:
    return one_value(connection, "select sum(failed) from pgembed.batches")


# The view that stands in for the target, for the vectors' reading, is good for one case.
PAUSED = [
    ("source read", FAULTS),
    *((origin, SOME_FAULTS) for origin in list(SOURCE_ORIGINS)[1:] if origin != "reuse's read"),
    *(("reuse's read", (code,)) for code in SOME_FAULTS),
]


def refused_by(origin: str) -> tuple[str, ...]:
    codes = FAULTS if origin == "target write" else SOME_FAULTS
    return *(code for code in codes if code not in ("40001", "55P03")), "42501"


# What stands in for the target in the case of the vectors' reading cannot be written to.
WRITABLE = [origin for origin in ORIGINS if origin != "reuse's read"]
LEFT_TO_OTHERS = [origin for origin in SOURCE_ORIGINS if origin in WRITABLE]


@pytest.mark.parametrize(("origin", "codes"), PAUSED)
def test_error_of_the_source_pauses_its_pipeline_alone(
    connection: Connection,
    conninfo: str,
    pipelines: list[Pipeline],
    origin: str,
    codes: tuple[str, ...],
) -> None:
    sick, neighbour = pipelines
    ORIGINS[origin].arrange(connection, codes[0])
    with working(conninfo, pipelines):
        for code in codes:
            ORIGINS[origin].change(connection, code)
            queue_changed(connection, neighbour, code, "notes")
            resume_pipeline(connection, sick)
            wait_until(lambda: pending(connection, "notes") == 0, f"{code}: a neighbour is done")
            wait_until(lambda: state(connection)[0] == "paused", f"{code} pauses")
            reason = state(connection)[1] or ""
            assert "\n" not in reason
            assert " at all; mend it and run: pgembed resume reports" in reason
            if origin == "source read":
                assert reason.startswith("record 3: reading public.reports: no ")
            assert (letters(connection), charged(connection)) == ({}, 0), code


@pytest.mark.parametrize("origin", TARGET_ORIGINS)
def test_error_of_the_target_makes_a_dead_letter_of_its_record(
    connection: Connection, conninfo: str, pipelines: list[Pipeline], origin: str
) -> None:
    sick, neighbour = pipelines
    said = {"3": "the target table refused it: no vectors at all"}
    with working(conninfo, pipelines):
        for number, code in enumerate(refused_by(origin)):
            queue_changed(connection, sick, f"well before {code}", "base")
            wait_until(lambda: pending(connection, "reports") == 0, f"{code}: all is well before")
            assert letters(connection) == {}
            charged_before = charged(connection)
            connection.execute("update public.base set body = 'Of ' || id")
            arrange = ORIGINS[origin].change if number else ORIGINS[origin].arrange
            arrange(connection, code)
            if origin == "target clear":
                connection.execute("update public.base set body = '' where id = 3")
            enqueue(connection, sick, Selection())
            queue_changed(connection, neighbour, code, "notes")
            wait_until(lambda: pending(connection, "notes") == 0, f"{code}: a neighbour is done")
            wait_until(lambda: pending(connection, "reports") == 0, f"{code}: others are done")
            assert state(connection) == ("active", None), code
            assert letters(connection) == said, code
            assert charged(connection) - charged_before == sick.spec.max_attempts, code
            connection.execute(RAISING.format(where="false", code="P0001"))


@pytest.mark.parametrize("origin", WRITABLE)
def test_server_that_is_away_is_waited_for_and_starves_nobody(
    connection: Connection, conninfo: str, pipelines: list[Pipeline], origin: str
) -> None:
    sick, neighbour = pipelines
    ORIGINS[origin].arrange(connection, AWAY[0])
    with working(conninfo, pipelines) as shared:
        for code in AWAY:
            ORIGINS[origin].change(connection, code)
            before = clock(shared, sick)
            queue_changed(connection, neighbour, code, "notes")
            wait_until(lambda: pending(connection, "notes") == 0, f"{code}: a neighbour is done")
            # Of three turns, one may have begun before.
            charged_to = lambda most=before + 50: clock(shared, sick) > most  # noqa: E731
            wait_until(charged_to, f"{code}: its turns are charged")
            assert state(connection) == ("active", None), code
            assert (letters(connection), charged(connection)) == ({}, 0), code
            assert pending(connection, "reports") > 0


def clock(shared: Shared, pipeline: Pipeline) -> float:
    """Return the seconds that a pipeline is charged; two turns that were given back are more."""
    return shared.turns.share._clocks.get(pipeline.id, 0.0) * pipeline.spec.priority


@pytest.mark.parametrize("origin", LEFT_TO_OTHERS)
def test_right_that_a_role_lacks_stops_this_worker_alone_until_it_is_granted(
    connection: Connection,
    conninfo: str,
    pipelines: list[Pipeline],
    monkeypatch: pytest.MonkeyPatch,
    origin: str,
) -> None:
    monkeypatch.setattr(unserved, "LOOK_AGAIN_SECONDS", 0.2)
    ORIGINS[origin].arrange(connection, "42501")
    with working(conninfo, pipelines) as shared:
        wait_until(lambda: pending(connection, "notes") == 0, "the neighbour is embedded")
        reasons = shared.served.unserved.reasons
        wait_until(lambda: "as role" in reasons().get(pipelines[0].id, ""), "it says why not")
        assert state(connection) == ("active", None)
        connection.execute(RAISING.format(where="false", code="P0001"))
        wait_until(lambda: pending(connection, "reports") == 0, "it is looked at again")
        assert reasons() == {}
    assert (letters(connection), charged(connection)) == ({}, 0)


def test_reason_goes_when_others_have_done_the_work(
    connection: Connection,
    conninfo: str,
    pipelines: list[Pipeline],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is left to others any more then, whether the right was granted or not."""
    monkeypatch.setattr(unserved, "LOOK_AGAIN_SECONDS", 0.2)
    ORIGINS["source's own condition"].arrange(connection, "42501")
    with working(conninfo, pipelines) as shared:
        reasons = shared.served.unserved.reasons
        wait_until(lambda: "as role" in reasons().get(pipelines[0].id, ""), "it says why not")
        connection.execute("truncate pgembed.work")
        wait_until(lambda: reasons() == {}, "it says so no more")


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

    sick, _ = pipelines
    assert [each.name for each in load_pipelines(connection)] == ["reports", "notes"]
    for code in ("27000", "57014", "P0001", "XX000", "42501"):
        ORIGINS["source's own condition"].arrange(connection, code)
        with pytest.raises(
            PgembedError, match=r"public\.reports.*: no (text|row|where) at all"
        ) as raised:
            commands(sick)[command](connection)
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
