"""A switch of generations: nobody reads a mixture, and whoever dies or waits leaves it whole."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db import locks
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import (
    LeaseLost,
    NotFound,
    PipelineFault,
    PipelineReplaced,
    UsageError,
)
from pgqueue_embed.lifecycle import switch as switching
from pgqueue_embed.lifecycle.alter import Changes, abort
from pgqueue_embed.lifecycle.cleanup import finish
from pgqueue_embed.lifecycle.completeness import NotComplete, pending_records
from pgqueue_embed.lifecycle.replace_table import TableReplacement
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import (
    is_current,
    load_pipeline,
    load_pipelines,
)
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.housekeeping import clean_up
from pgqueue_embed.vector_search import index_plan
from pgqueue_embed.vector_search.index import plan, vector_indexes
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.lexical_index import build_lexical_index, has_lexical_index
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.altering import (
    REPORTS_EMBEDDED,
    begin,
    embed,
    once_an_index_is_built,
    signature,
    state,
    unusable,
)
from tests.support.claims import allow
from tests.support.commands import pgembed
from tests.support.conditions import terminate, wait_until, wait_until_blocked
from tests.support.corpus import set_text, texts
from tests.support.fakes import FakeDevice, fake_chunker, unit_vector
from tests.support.oracle import assert_converged
from tests.support.rows import one_value
from tests.support.working import drain, open_session, work_once

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")
PREPARED = {"reports": REPORTS_EMBEDDED}


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


def test_generation_that_was_given_up_elsewhere_is_not_taken_for_complete(
    connection: Connection, reports: Pipeline
) -> None:
    successor = begin(connection, reports)
    abort(connection, reports)
    with pytest.raises(NotFound, match="has just been switched to, or given up"):
        pending_records(connection, successor)


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


def test_switch_that_is_interrupted_while_it_builds_an_index_leaves_nothing_of_it(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("create index on reports_chunks using hnsw (embedding vector_cosine_ops)")
    successor = begin(connection, reports)
    embed(session, successor)
    interrupt = lambda _pid: os.kill(os.getpid(), signal.SIGINT)  # noqa: E731
    with once_an_index_is_built(conninfo, interrupt), pytest.raises(KeyboardInterrupt):
        switch(connection, reports)
    assert unusable(connection) == []
    assert vector_indexes(connection, switch(connection, reports))


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
    build_lexical_index(connection, reports)
    successor = begin(connection, reports, Changes(model="another/model"))
    assert successor.dimensions != reports.dimensions
    drain(session, successor, FakeDevice(dimensions=successor.dimensions))
    switched = switch(connection, reports)
    found = [(each.quantize, each.valid) for each in vector_indexes(connection, switched)]
    assert found == [(quantize, True)]
    assert has_lexical_index(connection, switched)


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


EFFORT = """
update pgembed.pipelines
set ef_search = 120, ef_search_scan = 'none', ef_search_parameters = '{}', ef_search_recall = 0.9
where name = 'reports'
"""


@pytest.mark.parametrize("model", [None, "another/model"])
def test_measured_effort_is_kept_for_vectors_of_the_same_model_alone(
    connection: Connection, session: Session, reports: Pipeline, conninfo: str, model: str | None
) -> None:
    connection.execute(
        "create index on public.reports_chunks using hnsw (embedding public.vector_cosine_ops)"
    )
    connection.execute(EFFORT)
    successor = begin(connection, reports, *([Changes(model=model)] if model else []))
    if model:
        drain(session, successor, FakeDevice(dimensions=successor.dimensions))
    else:
        embed(session, successor)
    switched = pgembed(conninfo, "alter", "reports", "--switch")
    found = one_value(
        connection, "select pgembed.measured_effort(pipelines, 'none') from pgembed.pipelines"
    )
    assert found == (None if model else 120)
    said = "the ef_search 120 of reports was measured by another index, or other vectors"
    assert (said in switched.stderr) is bool(model)


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
