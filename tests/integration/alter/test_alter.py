"""Altered pipelines: settings at once, and generations that take the place of the old one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from psycopg import sql

from pgqueue_embed import Database
from pgqueue_embed.claim.process import Session
from pgqueue_embed.cli.work import suggest_index
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes, abort, alter, catch_up
from pgqueue_embed.lifecycle.completeness import NotComplete
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import (
    load_pipeline,
    load_pipelines,
    pause_at_fault,
    pause_pipeline,
)
from pgqueue_embed.pipeline.generations import with_successors
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.altering import EMPTY, REPORTS_EMBEDDED, SMALLER, begin, embed, signature, state
from tests.support.commands import pgembed
from tests.support.corpus import make_source, set_text, texts
from tests.support.fakes import POISON, FakeDevice, fake_chunker
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_value
from tests.support.working import drain, work_once

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")
PREPARED = {"reports": REPORTS_EMBEDDED}


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


def test_worker_that_has_drained_a_next_generation_names_the_switch(
    connection: Connection,
    session: Session,
    conninfo: str,
    reports: Pipeline,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Not an index of it, which the switch builds where the old vectors have one."""
    embed(session, begin(connection, reports))
    suggest_index(conninfo, ("reports (next)",))
    assert capsys.readouterr().out == (
        "nothing of reports (next) is pending; let searches use it:"
        " pgembed alter reports --switch\n"
    )
