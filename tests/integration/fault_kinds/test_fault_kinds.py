"""Errors by SQLSTATE and origin, and what becomes of pipeline, record and neighbour.

A neighbour of the failing pipeline is embedded in every case, and the worker never ends by itself.
"""

from __future__ import annotations

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import resume_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker import unserved
from pgqueue_embed.worker.loop import Shared
from tests.support.conditions import wait_until
from tests.support.faulty import (
    ORIGINS,
    RAISING,
    SICK_AND_NEIGHBOUR,
    SOURCE_ORIGINS,
    TARGET_ORIGINS,
    letters,
    pending,
    state,
    working,
)
from tests.support.rows import one_value

# All errors of one origin come after each other in one test.
pytestmark = pytest.mark.timeout(400)


# Of a user's function: of every class that such a function raises, by itself or by what it does.
FAULTS = (
    *("0A000", "21000", "22012", "23514", "25006", "25P03", "27000", "2F005", "38000", "39P01"),
    *("40001", "42704"),
    *("44000", "55000", "55P03", "57014", "58P01", "P0001", "P0002", "P0004", "XX000", "ZZ999"),
)


AWAY = ("08001", "53100", "57P01")


SOME_FAULTS = ("27000", "42704", "57014", "P0001")


PREPARED = {"pipelines": SICK_AND_NEIGHBOUR}


def queue_changed(connection: Connection, pipeline: Pipeline, said: str, table: str) -> None:
    """Queue every record of the pipeline with another text."""
    connection.execute(f"update public.{table} set body = %s || id", (f"Changed to {said}: ",))
    enqueue(connection, pipeline, Selection())


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
    failing, neighbour = pipelines
    ORIGINS[origin].arrange(connection, codes[0])
    with working(conninfo, pipelines):
        for code in codes:
            ORIGINS[origin].change(connection, code)
            queue_changed(connection, neighbour, code, "notes")
            resume_pipeline(connection, failing)
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
    failing, neighbour = pipelines
    said = {"3": "the target table refused it: no vectors at all"}
    with working(conninfo, pipelines):
        for number, code in enumerate(refused_by(origin)):
            queue_changed(connection, failing, f"well before {code}", "base")
            wait_until(lambda: pending(connection, "reports") == 0, f"{code}: all is well before")
            assert letters(connection) == {}
            charged_before = charged(connection)
            connection.execute("update public.base set body = 'Of ' || id")
            arrange = ORIGINS[origin].change if number else ORIGINS[origin].arrange
            arrange(connection, code)
            if origin == "target clear":
                connection.execute("update public.base set body = '' where id = 3")
            enqueue(connection, failing, Selection())
            queue_changed(connection, neighbour, code, "notes")
            wait_until(lambda: pending(connection, "notes") == 0, f"{code}: a neighbour is done")
            wait_until(lambda: pending(connection, "reports") == 0, f"{code}: others are done")
            assert state(connection) == ("active", None), code
            assert letters(connection) == said, code
            assert charged(connection) - charged_before == failing.spec.max_attempts, code
            connection.execute(RAISING.format(where="false", code="P0001"))


@pytest.mark.parametrize("origin", WRITABLE)
def test_server_that_is_away_is_waited_for_and_starves_nobody(
    connection: Connection, conninfo: str, pipelines: list[Pipeline], origin: str
) -> None:
    failing, neighbour = pipelines
    ORIGINS[origin].arrange(connection, AWAY[0])
    with working(conninfo, pipelines) as shared:
        for code in AWAY:
            ORIGINS[origin].change(connection, code)
            before = clock(shared, failing)
            queue_changed(connection, neighbour, code, "notes")
            wait_until(lambda: pending(connection, "notes") == 0, f"{code}: a neighbour is done")
            # Of three turns, one may have begun before.
            charged_to = lambda most=before + 50: clock(shared, failing) > most  # noqa: E731
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
    monkeypatch.setattr(unserved, "RECHECK_SECONDS", 0.2)
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
    monkeypatch.setattr(unserved, "RECHECK_SECONDS", 0.2)
    ORIGINS["source's own condition"].arrange(connection, "42501")
    with working(conninfo, pipelines) as shared:
        reasons = shared.served.unserved.reasons
        wait_until(lambda: "as role" in reasons().get(pipelines[0].id, ""), "it says why not")
        connection.execute("truncate pgembed.work")
        wait_until(lambda: reasons() == {}, "it says so no more")
