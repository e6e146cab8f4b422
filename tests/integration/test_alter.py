"""Changes of mind: settings at once, and generations that switch as a whole or not at all."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable

import psycopg
import pytest
from psycopg import sql

from pgqueue_embed import Database
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db import locks
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import LeaseLost, PipelineFault, PipelineReplaced, UsageError
from pgqueue_embed.lifecycle import switch as switching
from pgqueue_embed.lifecycle.alter import Changes, abort, alter, catch_up
from pgqueue_embed.lifecycle.cleanup import finish
from pgqueue_embed.lifecycle.completeness import NotComplete, pending_records
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.replace_table import TableReplacement
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import (
    is_current,
    load_pipeline,
    load_pipelines,
    pause_at_fault,
    pause_pipeline,
)
from pgqueue_embed.pipeline.generations import with_successors
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.housekeeping import clean_up
from pgqueue_embed.vector_search import index_plan
from pgqueue_embed.vector_search.index import plan, vector_indexes
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.claims import allow
from tests.support.commands import pgembed
from tests.support.conditions import terminate, wait_until, wait_until_blocked
from tests.support.corpus import make_source, set_text, texts
from tests.support.fakes import POISON, FakeDevice, fake_chunker, unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, embed_documents, open_session, work_once

SMALLER = Changes(chunk_tokens=8, overlap_tokens=0)


pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


@pytest.fixture
def reports(connection: Connection, session: Session) -> Pipeline:
    """A pipeline whose records are embedded, one of them empty."""
    return embed_documents(connection, session, [*texts(60), None])


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


EMPTY = hashlib.md5(b"").hexdigest()


# At once


def test_settings_that_leave_vectors_alone_change_at_once(
    connection: Connection, reports: Pipeline
) -> None:
    before = signature(connection)
    changes = Changes(name="letters", priority=30, max_attempts=7)
    assert alter(connection, reports, changes) is None
    altered = load_pipeline(connection, "letters")
    assert (altered.id, altered.spec.priority, altered.spec.max_attempts) == (reports.id, 30, 7)
    assert signature(connection) == before
    assert len(load_pipelines(connection)) == 1


def test_name_of_another_pipeline_is_refused(connection: Connection, reports: Pipeline) -> None:
    make_pipeline(connection, make_source(connection, table="letters"), name="letters")
    with pytest.raises(UsageError, match="there is a pipeline 'letters' already"):
        alter(connection, reports, Changes(name="letters", priority=3))
    assert load_pipeline(connection, "reports").spec.priority == 10


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"priority": 0}, "1 to 100"),
        ({"max_attempts": 0}, "from 1 to 1,000,000"),
        ({"name": ""}, "printable"),
        ({"text_fields": ("a",), "template": "$a"}, "give one of them"),
        ({"chunk_tokens": 0}, "at least 1 token"),
        ({"vector_type": "sparsevec"}, "vector or halfvec"),
        ({"text_fields": ("absent",)}, "no column 'absent'"),
        ({}, "nothing to alter"),
        ({"chunk_tokens": 16}, "like that already"),
    ],
)
def test_wrong_changes_leave_everything_as_it_is(
    connection: Connection, reports: Pipeline, changes: dict[str, object], complaint: str
) -> None:
    before = state(connection)
    with pytest.raises(UsageError, match=complaint):
        alter(connection, reports, Changes(**changes))
    assert state(connection) == before


# A new generation


@pytest.mark.on_both_servers
def test_new_generation_is_made_beside_the_old_and_takes_its_place(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    old = signature(connection)
    successor = begin(connection, reports)
    assert (successor.name, str(successor.target)) == (
        "reports (next)",
        "public.reports_chunks_next",
    )
    with pytest.raises(NotComplete, match="61 records to embed yet"):
        switch(connection, reports)
    assert signature(connection) == old
    embed(session, successor)
    assert signature(connection) == old
    next_of = one_value(
        connection, "select next_of from pgembed.progress where pipeline = 'reports (next)'"
    )
    assert next_of == "reports"

    switched = switch(connection, reports)
    assert (switched.name, switched.id, switched.spec.chunk_tokens) == ("reports", successor.id, 8)
    assert signature(connection) not in (old, EMPTY)
    assert [each.name for each in load_pipelines(connection)] == ["reports"]
    assert_converged(connection, "reports")
    for table in ("records", "batches", "scans"):
        query = sql.SQL("select distinct pipeline_id from {}").format(
            sql.Identifier("pgembed", table)
        )
        assert connection.execute(query).fetchall() == [(successor.id,)]


def test_switched_pipeline_leaves_no_trace_of_another_name(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    before = state(connection)["relations"]
    embed(session, begin(connection, reports))
    switch(connection, reports)
    assert state(connection)["relations"] == before
    # And once more, from there.
    again = load_pipeline(connection, "reports")
    embed(session, begin(connection, again, Changes(chunk_tokens=12)))
    switch(connection, again)
    assert state(connection)["relations"] == before
    assert_converged(connection, "reports")


@pytest.mark.parametrize(
    ("pause", "state", "said"),
    [
        (pause_at_fault, ("active", None), ""),
        (pause_pipeline, ("paused", "a reason"), "reports is paused, as it was"),
    ],
    ids=["by a fault", "by a person"],
)
def test_switch_ends_the_pause_of_a_fault_and_names_that_of_a_person(
    connection: Connection,
    conninfo: str,
    session: Session,
    reports: Pipeline,
    pause: Callable[[Connection, Pipeline, str], None],
    state: tuple[str, str | None],
    said: str,
) -> None:
    successor = alter(connection, reports, SMALLER)
    assert successor is not None
    catch_up(connection, reports, successor)
    drain(session, successor)
    pause(connection, reports, "a reason")
    outcome = pgembed(conninfo, "alter", "reports", "--switch")
    assert outcome.exit_code == 0, outcome.stderr
    assert said in outcome.stderr
    query = "select state, state_reason from pgembed.pipelines"
    assert connection.execute(query).fetchone() == state


def test_second_generation_at_once_is_refused(connection: Connection, reports: Pipeline) -> None:
    successor = begin(connection, reports)
    before = state(connection)
    with pytest.raises(UsageError, match="--switch, or --abort"):
        alter(connection, reports, Changes(chunk_tokens=9))
    with pytest.raises(UsageError, match="itself a next generation"):
        alter(connection, successor, Changes(chunk_tokens=9))
    assert state(connection) == before


@pytest.mark.on_both_servers
def test_abort_leaves_nothing_behind(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    before, old = state(connection), signature(connection)
    successor = begin(connection, reports)
    work_once(session, successor, chunker=fake_chunker(8, 0))
    abort(connection, reports)
    assert state(connection) == before
    assert signature(connection) == old
    with pytest.raises(UsageError, match="no next generation to give up"):
        abort(connection, reports)
    with pytest.raises(UsageError, match="no next generation to switch to"):
        switch(connection, reports)


def test_dropping_a_pipeline_drops_its_next_generation(
    connection: Connection, reports: Pipeline
) -> None:
    begin(connection, reports)
    drop_pipeline(connection, reports, delete_vectors=True)
    left = state(connection)
    assert left.pop("relations") == [("reports", "r"), ("reports_pkey", "i")]
    assert not any(left.values())


def test_renamed_pipeline_takes_its_next_generation_along(
    connection: Connection, reports: Pipeline
) -> None:
    begin(connection, reports)
    alter(connection, reports, Changes(name="letters"))
    assert {each.name for each in load_pipelines(connection)} == {"letters", "letters (next)"}


# What the new generation must cover


def test_changes_meanwhile_are_in_the_new_generation(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    successor = begin(connection, reports)
    embed(session, successor)
    set_text(connection, reports.source, 1, "Changed while nobody captured changes.")
    set_text(connection, reports.source, 100, "New, and known to the old generation alone.")
    connection.execute("delete from reports where id = 2")
    enqueue(connection, reports, Selection())
    drain(session, reports)
    with pytest.raises(NotComplete, match="3 records"):
        switch(connection, reports)
    embed(session, successor)
    switch(connection, reports)
    assert_converged(connection, "reports")


def test_other_condition_takes_in_records_that_were_never_seen(
    connection: Connection, session: Session
) -> None:
    reports = make_pipeline(connection, make_source(connection, texts(20)), where="id <= 10")
    enqueue(connection, reports, Selection())
    drain(session, reports)
    for where, expected in [("id % 2 = 0", set(range(2, 21, 2))), ("", set(range(1, 21)))]:
        successor = begin(connection, reports, Changes(where=where))
        drain(session, successor)
        reports = switch(connection, reports)
        assert reports.spec.where == (where or None)
        found = connection.execute("select distinct fulltext_id from public.reports_chunks")
        assert {key for (key,) in found} == expected
        assert_converged(connection, "reports")


def test_queue_of_the_old_generation_is_taken_over(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    successor = begin(connection, reports)
    embed(session, successor)
    set_text(connection, reports.source, 100, "Queued, and not embedded by anybody yet.")
    enqueue(connection, reports, Selection())
    switched = switch(connection, reports)
    embed(session, switched)
    assert_converged(connection, "reports")


def test_more_failures_than_before_are_not_switched_to_unasked(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    successor = begin(connection, reports)
    device = FakeDevice(broken=True)
    drain(session, successor, device, chunker=fake_chunker(8, 0))
    old = signature(connection)
    with pytest.raises(UsageError, match="60 records failed"):
        switch(connection, reports)
    assert signature(connection) == old
    switch(connection, reports, force=True)
    assert signature(connection) == EMPTY
    assert POISON not in old


# Readers


def test_searcher_never_sees_an_empty_or_mixed_result_while_writers_and_workers_are_busy(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    old, successor = signature(connection), begin(connection, reports)
    seen: list[str] = []
    stop = threading.Event()
    errors: list[Exception] = []
    actions = (lambda own: seen.append(signature(own)), find_a_hundred, touch)
    threads = [
        *(repeating(action, conninfo, stop, errors) for action in actions),
        threading.Thread(target=work_until, args=(conninfo, stop, errors)),
    ]
    for thread in threads:
        thread.start()
    try:
        wait_until(
            lambda: errors or pending_records(connection, successor) == 0,
            "all is embedded",
        )
        assert errors == []
        switch(connection, reports, patience_seconds=30)
        new = signature(connection)
        count = len(seen)
        wait_until(lambda: len(seen) > count + 5, "the reader reads on")
    finally:
        stop.set()
        for thread in threads:
            thread.join(20)
    assert errors == []
    assert set(seen) == {old, new}
    assert sorted(seen, key=[old, new].index) == seen
    embed(session, load_pipeline(connection, "reports"))
    assert_converged(connection, "reports")


def repeating(
    action: Callable[[Connection], None],
    conninfo: str,
    stop: threading.Event,
    errors: list[Exception],
) -> threading.Thread:
    """Return a thread that repeats `action` on a connection of its own until `stop`."""

    def run() -> None:
        try:
            with connect(conninfo) as own:
                while not stop.is_set():
                    action(own)
        except Exception as error:  # noqa: BLE001 (told by the test)
            errors.append(error)

    return threading.Thread(target=run)


def find_a_hundred(own: Connection) -> None:
    """Search as a program does that reads the pipeline anew for each search."""
    pipeline = load_pipeline(own, "reports")
    try:
        hits = search(own, pipeline, unit_vector("x"), SearchRequest(limit=100, threshold=-1))
    except PipelineReplaced:
        return
    assert len(hits) == 100


def touch(own: Connection) -> None:
    """Queue a record for both generations, as captured changes are; what is read stays the same.

    It waits its turn, or on a busy machine the successor would never be seen with nothing to do.
    """
    own.execute(
        "insert into pgembed.work (pipeline_id, keys, records, priority, known, embed_again)"
        " select id, '{7}', 1, 0, true, true from pgembed.pipelines"
        " where not exists (select from pgembed.work where pipeline_id = pipelines.id)"
    )
    time.sleep(0.1)


def work_until(conninfo: str, stop: threading.Event, errors: list[Exception]) -> None:
    """Work on every pipeline that there is, as a worker's loop does."""
    try:
        with open_session(conninfo) as session:
            while not stop.is_set():
                for pipeline in load_pipelines(session.side):
                    try:
                        work_once(
                            session,
                            pipeline,
                            chunker=fake_chunker(
                                pipeline.spec.chunk_tokens, pipeline.spec.overlap_tokens
                            ),
                        )
                    except (LeaseLost, PipelineFault):
                        continue
                stop.wait(0.005)
    except Exception as error:  # noqa: BLE001 (told by the test)
        errors.append(error)


def test_search_with_the_old_vector_in_the_new_table_is_refused(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    switch(connection, reports)
    with pytest.raises(PipelineReplaced, match="search again"):
        search(connection, reports, unit_vector("x"), SearchRequest(limit=3, threshold=-1))


# Workers and crashes


def test_claim_of_the_old_generation_writes_nothing_after_the_switch(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))

    def queue_and_switch() -> None:
        """Switch while a claim of the old generation, begun after its queue was locked, is made."""
        connection.execute("delete from pgembed.pipelines where id = %s", (reports.id,))
        connection.execute("drop table reports_chunks")
        connection.execute("alter table reports_chunks_next rename to reports_chunks")
        connection.execute(
            "update pgembed.pipelines set name = 'reports', target_table = 'reports_chunks'"
        )

    set_text(connection, reports.source, 1, "Changed, and claimed by the old generation.")
    enqueue(connection, reports, Selection())
    with pytest.raises(LeaseLost, match="replaced or dropped"):
        work_once(session, reports, FakeDevice(during=queue_and_switch))
    # Its item is there still; any worker's housekeeping gives it to the new generation.
    clean_up(connection)
    switched = load_pipeline(connection, "reports")
    embed(session, switched)
    finish(connection, switched)
    assert_converged(connection, "reports")


def test_worker_that_does_not_know_of_the_switch_yet_pauses_nothing(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    successor = begin(connection, reports)
    embed(session, successor)
    switch(connection, reports)
    # The table that it thinks is its own is made again, for the generation after.
    begin(connection, load_pipeline(connection, "reports"), Changes(chunk_tokens=12))
    set_text(connection, reports.source, 1, "Changed after the switch.")
    enqueue(connection, load_pipeline(connection, "reports"), Selection())
    with pytest.raises(LeaseLost, match="replaced or dropped"):
        work_once(session, successor, chunker=fake_chunker(8, 0))
    assert not is_current(connection, successor)
    assert is_current(connection, load_pipeline(connection, "reports"))


def test_claim_in_hand_of_the_old_generation_is_waited_for(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    set_text(connection, reports.source, 1, "Changed before the switch.")
    enqueue(connection, reports, Selection())
    device = FakeDevice(hold=threading.Event())
    claim = threading.Thread(target=work_once, args=(session, reports, device))
    claim.start()
    assert device.entered.wait(20)
    with connect(conninfo) as own:
        pid = own.info.backend_pid
        outcome: list[Exception] = []

        def run() -> None:
            try:
                switch(own, reports)
            except NotComplete as error:
                outcome.append(error)

        switcher = threading.Thread(target=run)
        set_text(connection, reports.source, 1, texts(1)[0])  # as the new generation has it
        switcher.start()
        wait_until_blocked(connection, pid)
        allow(device)
        claim.join(20)
        switcher.join(20)
    assert outcome == []
    switched = load_pipeline(connection, "reports")
    embed(session, switched)
    assert_converged(connection, "reports")


@pytest.mark.on_both_servers
@pytest.mark.parametrize(
    ("place", "step"),
    [(switching, "_lock"), (TableReplacement, "exchange"), (switching, "_exchange_rows")],
    ids=["lock", "exchange", "rows"],
)
def test_crash_in_the_middle_of_a_switch_changes_nothing(
    conninfo: str,
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    step: str,
) -> None:
    embed(session, begin(connection, reports))
    old = signature(connection)
    usual = getattr(place, step)

    def crash(*arguments: object) -> None:
        usual(*arguments)
        (own,) = (each for each in arguments if isinstance(each, Connection))
        terminate(connection, own.info.backend_pid)

    monkeypatch.setattr(place, step, crash)
    with connect(conninfo) as own, pytest.raises(psycopg.OperationalError):
        switch(own, reports)
    assert signature(connection) == old
    assert len(load_pipelines(connection)) == 2
    monkeypatch.setattr(place, step, usual)
    switch(connection, reports)
    assert signature(connection) != old
    assert_converged(connection, "reports")


def test_crash_after_the_commit_is_cleaned_up_later(
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embed(session, begin(connection, reports))

    def crash(*_: object) -> None:
        raise RuntimeError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(switching, "finish", crash)
        with pytest.raises(RuntimeError, match="cut off"):
            switch(connection, reports)
    switched = load_pipeline(connection, "reports")
    assert_converged(connection, "reports")
    begin(connection, switched, Changes(chunk_tokens=12))
    abort(connection, switched)
    leftovers = one_value(
        connection, "select count(*) from pgembed.records where pipeline_id = %s", (reports.id,)
    )
    assert leftovers == 0


def test_switch_happens_once(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    embed(session, begin(connection, reports))
    outcomes: list[str] = []
    barrier = threading.Barrier(4)

    def run() -> None:
        with connect(conninfo) as own:
            barrier.wait(20)
            try:
                outcomes.append(switch(own, reports).name)
            except UsageError as error:
                outcomes.append(str(error))

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert outcomes.count("reports") == 1, outcomes
    assert len(outcomes) == 4
    assert_converged(connection, "reports")


# What the new table takes over


@pytest.mark.on_both_servers
def test_indexes_rights_views_and_comment_are_taken_over(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("create role reader_of_vectors")
    try:
        connection.execute("grant select on reports_chunks to reader_of_vectors")
        connection.execute("grant update (text_chunk) on reports_chunks to reader_of_vectors")
        connection.execute('create index "odd ""name on x" on reports_chunks (length(text_chunk))')
        connection.execute(
            "create index on reports_chunks using hnsw (embedding vector_cosine_ops) with (m = 8)"
        )
        connection.execute(
            "create view of_people with (security_barrier) as select id, text_chunk from"
            " reports_chunks where tokens > 0"
        )
        connection.execute("create view on_view as select count(*) as chunks from of_people")
        connection.execute("comment on table reports_chunks is 'Ours.'")
        before = features(connection)
        embed(session, begin(connection, reports))
        switch(connection, reports)
        assert features(connection) == before
        chunks = one_value(connection, "select chunks from on_view")
        assert (chunks,) == connection.execute(
            "select count(*) from public.reports_chunks"
        ).fetchone()
    finally:
        connection.execute("drop owned by reader_of_vectors")
        connection.execute("drop role reader_of_vectors")


def features(connection: Connection) -> list[tuple[object, ...]]:
    """Return rights, comment, and the indexes' definitions without their names."""
    return connection.execute(
        "select relacl::text, obj_description(oid, 'pg_class'),"
        " (select attacl::text from pg_attribute where attrelid = c.oid"
        " and attname = 'text_chunk'),"
        " (select array_agg(d order by d) from (select regexp_replace(pg_get_indexdef(indexrelid),"
        " '^.* USING ', '') as d from pg_index where indrelid = c.oid) as i)"
        " from pg_class as c where relname = 'reports_chunks'"
    ).fetchall()


def test_index_of_vectors_is_built_for_the_new_type(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("create index on reports_chunks using hnsw (embedding vector_cosine_ops)")
    embed(session, begin(connection, reports, Changes(vector_type="halfvec")))
    switch(connection, reports)
    definitions = " ".join(map(str, features(connection)[0]))
    assert "halfvec_cosine_ops" in definitions


@pytest.mark.parametrize("quantize", ["halfvec", "binary"])
def test_index_of_smaller_vectors_is_built_for_the_new_dimensions(
    connection: Connection, session: Session, reports: Pipeline, quantize: str
) -> None:
    options = index_plan.IndexOptions(quantize=quantize)
    build_index(connection, reports, plan(connection, reports, options))
    successor = begin(connection, reports, Changes(model="another/model"))
    assert successor.dimensions != reports.dimensions
    drain(session, successor, FakeDevice(dimensions=successor.dimensions))
    switched = switch(connection, reports)
    found = [(each.quantize, each.valid) for each in vector_indexes(connection, switched)]
    assert found == [(quantize, True)]


def test_switch_builds_its_indexes_with_the_memory_that_index_would(
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connection.execute("create index on reports_chunks using hnsw (embedding vector_cosine_ops)")
    connection.execute("set maintenance_work_mem = '1MB'")
    successor = begin(connection, reports, Changes(vector_type="halfvec"))
    embed(session, successor)
    copy_indexes, settings = TableReplacement.copy_indexes, []

    def noting(replacement: TableReplacement, connection: Connection) -> None:
        settings.append(one_value(connection, "show maintenance_work_mem"))
        copy_indexes(replacement, connection)

    monkeypatch.setattr(TableReplacement, "copy_indexes", noting)
    monkeypatch.setattr(index_plan, "hnsw_bytes", lambda *_: 77 * index_plan.MEGABYTE)
    switch(connection, reports)
    assert settings == ["77MB"]
    assert one_value(connection, "show maintenance_work_mem") == "1MB"


@pytest.mark.parametrize(
    ("addition", "complaint"),
    [
        ("alter table reports_chunks add column checked boolean", "column checked"),
        ("alter table reports_chunks enable row level security", "row level security"),
        ("alter table reports_chunks add check (tokens < 9999)", "constraint CHECK"),
        (
            "create materialized view counted as select count(*) from public.reports_chunks",
            "counted",
        ),
        (
            "create table remarks (chunk_id bigint references reports_chunks (id))",
            "remarks",
        ),
        (
            "create view shown as select embedding from public.reports_chunks",
            "view public.shown cannot read the new vectors",
        ),
    ],
)
def test_what_cannot_be_taken_over_is_told_and_nothing_is_switched(
    connection: Connection,
    session: Session,
    reports: Pipeline,
    addition: str,
    complaint: str,
) -> None:
    connection.execute(addition)
    successor = begin(connection, reports, Changes(model="another/model"))
    drain(session, successor, FakeDevice(dimensions=4))
    before, old = state(connection), signature(connection)
    with pytest.raises(UsageError, match=complaint) as refused:
        switch(connection, reports)
    assert "\n" not in str(refused.value)
    assert signature(connection) == old
    after = state(connection)
    assert {**after, "records": None} == {**before, "records": None}
    abort(connection, reports)


def test_reader_who_holds_the_table_is_not_waited_for_for_ever(
    conninfo: str,
    connection: Connection,
    session: Session,
    reports: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(locks, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(switching, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(locks, "TRIES", 2)
    embed(session, begin(connection, reports))
    with connect(conninfo) as reader, reader.transaction():
        reader.execute("select from public.reports_chunks")
        with pytest.raises(UsageError, match="used without a pause"):
            switch(connection, reports)
    switch(connection, reports)
    assert_converged(connection, "reports")


# The command and the Python interface


def test_command_alters_shows_switches_and_gives_up(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    assert pgembed(conninfo, "alter", "reports", "--priority", "20").stdout == "altered reports\n"
    begun = pgembed(conninfo, "alter", "reports", "--chunk-size", "8", "--overlap-tokens", "0")
    assert "made reports (next): body → public.reports_chunks_next" in begun.stdout
    assert "queued 61 records for it" in begun.stdout
    assert "pgembed alter reports --switch --wait" in begun.stdout

    early = pgembed(conninfo, "alter", "reports", "--switch")
    assert (early.error or "").startswith("reports (next) has 61 records to embed yet")
    embed(session, load_pipeline(connection, "reports (next)"))
    shown = pgembed(conninfo, "status").stdout
    assert (
        "nothing of reports (next) is pending; let searches use it: pgembed alter reports --switch"
        in shown
    )
    switched = pgembed(conninfo, "alter", "reports", "--switch", "--wait")
    assert switched.stdout.startswith("reports uses its new vectors, in public.reports_chunks;")
    altered = load_pipeline(connection, "reports")
    assert (altered.spec.priority, altered.spec.chunk_tokens) == (20, 8)

    pgembed(conninfo, "alter", "reports", "--chunk-size", "16")
    given_up = pgembed(conninfo, "alter", "reports", "--abort").stdout
    assert given_up == "gave up reports (next) and dropped public.reports_chunks_next\n"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ([], "nothing to alter"),
        (["--switch", "--abort"], "give one of them"),
        (["--switch", "--chunk-size", "9"], "go without changes"),
        (["--wait"], "belong to --switch"),
        (["--abort"], "no next generation to give up"),
    ],
)
@pytest.mark.usefixtures("reports")
def test_options_that_do_not_fit_are_refused(
    conninfo: str, options: list[str], complaint: str
) -> None:
    assert complaint in (pgembed(conninfo, "alter", "reports", *options).error or "")


def test_program_alters_and_switches(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    pipeline = Database(conninfo).pipeline("reports")
    assert pipeline.alter(name="letters") is None
    successor = pipeline.alter(chunk_size=8, overlap_tokens=0)
    assert successor is not None
    assert (pipeline.name, successor.name) == ("letters", "letters (next)")
    embed(session, successor.settings())
    pipeline.switch()
    assert pipeline.settings().spec.chunk_tokens == 8
    assert_converged(connection, "letters")
    pipeline.alter(text_field=["body"], chunk_size=9)
    pipeline.abort()
    assert [each.name for each in Database(conninfo).pipelines()] == ["letters"]


def test_worker_of_a_pipeline_works_on_its_next_generation_too(
    connection: Connection, reports: Pipeline
) -> None:
    successor = begin(connection, reports)
    make_pipeline(connection, make_source(connection, table="letters"), name="letters")
    found = with_successors(connection, ["reports"])
    assert [each.id for each in found] == [reports.id, successor.id]
