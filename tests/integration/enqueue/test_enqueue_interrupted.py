"""Enqueues that are interrupted, that run beside others, and keys and settings of every kind."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PgembedError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, Slice, enqueue
from tests.support.conditions import wait_until_blocked
from tests.support.corpus import KEY_OF_NUMBER, delete_records, make_source, set_text, texts
from tests.support.enqueuing import (
    ODD_SETTINGS,
    THOUSAND,
    Interrupted,
    interrupt_after,
    numbers,
    queued_keys,
    set_of_database,
)
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.working import drain, open_session

PREPARED = {"pipeline": THOUSAND}


def test_interrupted_enqueue_goes_on_where_it_stopped(
    connection: Connection, pipeline: Pipeline
) -> None:
    with pytest.raises(Interrupted):
        enqueue(connection, pipeline, Selection(), slice_records=100, on_slice=interrupt_after(3))
    assert queued_keys(connection) == numbers(1, 300)
    slices: list[Slice] = []
    queued = enqueue(connection, pipeline, Selection(), slice_records=100, on_slice=slices.append)
    assert queued == 700
    assert [done.queued for done in slices[:8]] == [100] * 7 + [0]
    assert queued_keys(connection) == numbers(1, 1000)


def test_resumed_enqueue_finds_what_came_in_behind_its_cursor(
    connection: Connection, pipeline: Pipeline
) -> None:
    with pytest.raises(Interrupted):
        enqueue(connection, pipeline, Selection(), slice_records=100, on_slice=interrupt_after(3))
    set_text(connection, REPORTS, -5, "came in late")
    assert enqueue(connection, pipeline, Selection(), slice_records=100) == 701
    assert "-5" in queued_keys(connection)


def test_interrupted_limit_counts_what_it_had_queued(
    connection: Connection, pipeline: Pipeline
) -> None:
    limited = Selection(limit=250)
    with pytest.raises(Interrupted):
        enqueue(connection, pipeline, limited, slice_records=100, on_slice=interrupt_after(2))
    assert enqueue(connection, pipeline, limited, slice_records=100) == 50
    assert queued_keys(connection) == numbers(1, 250)


def test_another_selection_starts_from_the_beginning(
    connection: Connection, pipeline: Pipeline
) -> None:
    with pytest.raises(Interrupted):
        enqueue(connection, pipeline, Selection(), slice_records=100, on_slice=interrupt_after(3))
    assert enqueue(connection, pipeline, Selection(where="id <= 310"), slice_records=100) == 10
    assert enqueue(connection, pipeline, Selection()) == 690


def test_enqueue_never_ends_early_without_saying_so(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    """Somebody starts an enqueue with another selection while this one runs."""
    taken_over = threading.Event()

    def take_over(_: Slice) -> None:
        if not taken_over.is_set():
            taken_over.set()
            with connect(conninfo) as other:
                enqueue(other, pipeline, Selection(where="id <= 150"), slice_records=10)

    try:
        enqueue(connection, pipeline, Selection(), slice_records=100, on_slice=take_over)
    except PgembedError as error:
        assert "enqueue" in str(error)  # noqa: PT017 (either outcome is fine)
    else:
        assert sorted(queued_keys(connection), key=int) == numbers(1, 1000)


@pytest.mark.on_both_servers
def test_two_machines_take_turns_and_queue_every_key_once(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    start = threading.Barrier(2)

    def machine(_: int) -> int:
        with connect(conninfo) as session:
            start.wait(10)
            return enqueue(session, pipeline, Selection(), slice_records=50)

    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(machine, range(2)))
    assert sum(counts) == 1000
    assert sorted(queued_keys(connection), key=int) == numbers(1, 1000)


def test_second_machine_waits_for_the_slice_of_the_first(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    with pytest.raises(Interrupted):
        enqueue(connection, pipeline, Selection(), slice_records=100, on_slice=interrupt_after(1))
    with (
        connect(conninfo) as first,
        connect(conninfo) as second,
        ThreadPoolExecutor(1) as pool,
    ):
        with first.transaction():
            first.execute("select from pgembed.scans for no key update")
            waiting = pool.submit(enqueue, second, pipeline, Selection(), slice_records=100)
            wait_until_blocked(connection, second.info.backend_pid)
            assert len(queued_keys(connection)) == 100
        assert waiting.result(30) == 900


def test_switch_that_has_the_turn_can_lock_the_pipeline(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    """A switch locks the scan and then the pipeline; the other way round is a deadlock."""
    enqueue(connection, pipeline, Selection())
    lock = "select from pgembed.{} for update"
    with ThreadPoolExecutor() as pool, connect(conninfo) as second:
        with connection.transaction():
            connection.execute(lock.format("scans"))
            scan = pool.submit(enqueue, second, pipeline, Selection(everything=True))
            wait_until_blocked(connection, second.info.backend_pid)
            connection.execute("set local lock_timeout = '5s'")
            connection.execute(lock.format("pipelines"))
        scan.result(30)


def _terminate(connection: Connection, pid: int) -> None:
    connection.execute("select pg_terminate_backend(%s)", (pid,))


def test_lost_connection_keeps_the_slices_that_were_committed(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    with connect(conninfo) as session:
        pid = session.info.backend_pid
        with pytest.raises(Exception, match=r"terminat|closed|lost"):
            enqueue(
                session,
                pipeline,
                Selection(),
                slice_records=100,
                on_slice=lambda _: _terminate(connection, pid),
            )
    assert queued_keys(connection) == numbers(1, 100)
    assert enqueue(connection, pipeline, Selection()) == 900


def test_records_without_a_key_are_left_out(connection: Connection) -> None:
    connection.execute("create table public.reports (id bigint unique, body text)")
    connection.execute("insert into public.reports values (null, 'a'), (1, 'b'), (null, 'c')")
    assert enqueue(connection, make_pipeline(connection), Selection()) == 1


def test_empty_source_queues_nothing(connection: Connection) -> None:
    make_source(connection, [])
    assert enqueue(connection, make_pipeline(connection), Selection()) == 0


def test_gone_records_do_not_stop_a_scan(connection: Connection, pipeline: Pipeline) -> None:
    delete_records(connection, REPORTS, list(range(1, 1000, 3)))
    assert enqueue(connection, pipeline, Selection(), slice_records=10) == 667


@pytest.mark.usefixtures("odd_settings")
@pytest.mark.parametrize("key_type", KEY_OF_NUMBER)
def test_keys_of_every_type_survive_odd_settings(conninfo: str, key_type: str) -> None:
    """Keys travel as text: a date must mean the same day on every machine."""
    with connect(conninfo) as connection:
        source = make_source(connection, texts(120, chunks=2), key_type=key_type)
        pipeline = make_pipeline(connection, source)
        assert enqueue(connection, pipeline, Selection(), slice_records=50) == 120
        set_of_database(connection, {"datestyle": "German", "timezone": "America/Lima"})
        with connect(conninfo) as other:
            assert enqueue(other, pipeline, Selection(), slice_records=50) == 0
        set_of_database(connection, {"datestyle": "Postgres, MDY", "timezone": "Europe/Paris"})
        with open_session(conninfo) as session:
            drain(session, pipeline)
        assert enqueue(connection, pipeline, Selection(), slice_records=50) == 0
        assert_converged(connection, "reports")


# What stands for a value of each type that some setting spells otherwise.
SPELLED = """
create table public.base (
    id integer primary key, number double precision, bytes bytea, price money, moment timestamptz,
    day date, span interval
);
insert into public.base
select n, n / 7.0, decode('00ff', 'hex'), n / 3.0, now(), now()::date, '1 day 2 hours'::interval
from generate_series(1, 5) as n;
create view public.reports as
select id, number, concat_ws(' ', number, bytes, price, moment, day, span) as body from public.base
"""


@pytest.mark.parametrize("recipe", [{}, {"text_fields": (), "template": "about $number"}])
def test_text_that_settings_spell_otherwise_is_the_same_for_every_session(
    connection: Connection, conninfo: str, recipe: dict[str, Any]
) -> None:
    connection.execute(SPELLED)
    pipeline = make_pipeline(connection, **recipe)
    assert enqueue(connection, pipeline, Selection()) == 5
    with open_session(conninfo) as session:
        drain(session, pipeline)
    set_of_database(connection, ODD_SETTINGS)
    with connect(conninfo) as other:
        assert enqueue(other, pipeline, Selection()) == 0


def test_dates_of_all_ages_are_keys(connection: Connection, conninfo: str) -> None:
    connection.execute("create table public.reports (id timestamptz primary key, body text)")
    connection.execute(
        "insert into public.reports select id::timestamptz, id from unnest(array["
        "'0044-03-15 12:00:00.123456+00 BC', '0001-01-01 00:00+00', '12024-01-01 00:00+00',"
        "'infinity', '-infinity', '1890-06-01 00:00:00+00']) as id"
    )
    pipeline = make_pipeline(connection)
    assert enqueue(connection, pipeline, Selection()) == 6
    with open_session(conninfo) as session:
        session.side.execute("set datestyle = 'SQL, DMY'; set timezone = 'Europe/Amsterdam'")
        drain(session, pipeline)
    connection.execute("set timezone = 'UTC'")
    assert_converged(connection, "reports")


@pytest.mark.parametrize("collation", ["C", "ucs_basic", "default"])
def test_text_keys_of_any_collation_are_queued_once(connection: Connection, collation: str) -> None:
    connection.execute(
        f'create table public.reports (id text collate "{collation}" primary key, body text)'
    )
    connection.execute(
        "insert into public.reports select key, 'text' from ("
        "select (case when n % 2 = 0 then 'a' else 'B' end) || '-' || n || ' é%' as key"
        " from generate_series(1, 500) as n) as keys"
    )
    pipeline = make_pipeline(connection)
    assert enqueue(connection, pipeline, Selection(), slice_records=60) == 500
    assert enqueue(connection, pipeline, Selection(), slice_records=70) == 0
    in_order = connection.execute("select id from public.reports order by id").fetchall()
    assert queued_keys(connection) == [key for (key,) in in_order]


def test_view_without_duplicates_can_be_a_source(connection: Connection, conninfo: str) -> None:
    make_source(connection, texts(100), table="base")
    connection.execute(
        "create view public.reports as select id, upper(body) as body from public.base"
    )
    pipeline = make_pipeline(connection, Table(schema="public", name="reports"))
    assert enqueue(connection, pipeline, Selection(), slice_records=30) == 100
    with open_session(conninfo) as session:
        drain(session, pipeline)
    assert_converged(connection, "reports")


def test_pipelines_over_one_source_have_queues_of_their_own(
    connection: Connection, pipeline: Pipeline
) -> None:
    other = make_pipeline(
        connection, name="other", target=Table(schema="public", name="other_chunks")
    )
    assert enqueue(connection, pipeline, Selection()) == 1000
    assert enqueue(connection, other, Selection(limit=10)) == 10


def test_work_in_flight_is_not_queued_again(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    enqueue(connection, pipeline, Selection())
    with connect(conninfo) as holder, holder.transaction():
        holder.execute("select from pgembed.work for update")
        assert enqueue(connection, pipeline, Selection()) == 0


def test_default_isolation_of_the_database_does_not_matter(
    connection: Connection, conninfo: str, pipeline: Pipeline
) -> None:
    connection.execute("set default_transaction_isolation = 'repeatable read'")
    assert enqueue(connection, pipeline, Selection(), slice_records=100) == 1000
