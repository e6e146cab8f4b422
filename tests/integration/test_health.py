"""`pgembed health`: 1 and one line for what somebody has to be told, and 0 for what is as usual."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipeline, pause_at_fault, pause_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.worker.registry import WorkerIdentity, register
from tests.support.commands import pgembed
from tests.support.corpus import make_source, texts
from tests.support.fakes import POISON
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by
from tests.support.working import embed_documents

Change = Callable[[Connection, Pipeline], None]


PREPARED = {
    "reports": filled_by(
        lambda connection, session: embed_documents(connection, session, texts(5)),
    )
}


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A pipeline in order: all is embedded and one worker is live."""
    pipeline = load_pipeline(connection, "reports")
    start_worker(connection, pipeline, "mac-a")
    return pipeline


def start_worker(connection: Connection, pipeline: Pipeline, host: str) -> None:
    identity = WorkerIdentity(
        device="cpu", precision="fp32", model="fake", concurrency=1, pipeline_ids=[pipeline.id]
    )
    worker_id = register(connection, identity)
    connection.execute("update pgembed.workers set host = %s where id = %s", (host, worker_id))


def wait_for(minutes: int, *, retrying: bool = False) -> Change:
    """Have a record wait, and the last commit be past, for so long."""

    def change(connection: Connection, pipeline: Pipeline) -> None:
        connection.execute(
            "insert into pgembed.work (pipeline_id, keys, records, created_at, retrying)"
            " values (%s, '{1}', 1, now() - make_interval(mins => %s), %s)",
            (pipeline.id, minutes, retrying),
        )
        connection.execute(
            "update pgembed.batches set committed_at = now() - make_interval(mins => %s)",
            (minutes,),
        )

    return change


def commit_now(connection: Connection, pipeline: Pipeline) -> None:
    wait_for(60)(connection, pipeline)
    connection.execute(
        "insert into pgembed.batches (pipeline_id, records) values (%s, 1)", (pipeline.id,)
    )


def die(connection: Connection, pipeline: Pipeline) -> None:
    connection.execute(
        "insert into pgembed.batches (pipeline_id, dead) values (%s, 3)", (pipeline.id,)
    )


def fall_silent(connection: Connection, _: Pipeline) -> None:
    connection.execute("update pgembed.workers set heartbeat_at = now() - interval '7 minutes'")


def fall_silent_and_come_back(connection: Connection, pipeline: Pipeline) -> None:
    fall_silent(connection, pipeline)
    start_worker(connection, pipeline, "mac-a")


def spoil_index(connection: Connection, _: Pipeline) -> None:
    """Cut the build of an index short, while it waits for a writer."""
    password = connection.info.password
    with psycopg.connect(connection.info.dsn, password=password) as writer:
        writer.execute("lock table reports_chunks in row exclusive mode")
        connection.execute("set statement_timeout = '300 ms'")
        with pytest.raises(psycopg.errors.QueryCanceled):
            connection.execute(
                "create index concurrently spoiled on reports_chunks"
                " using hnsw (embedding public.vector_cosine_ops)"
            )
        connection.execute("reset statement_timeout")
        writer.rollback()


def build_index(connection: Connection, pipeline: Pipeline) -> None:
    spoil_index(connection, pipeline)
    connection.execute("begin; lock table reports_chunks in share update exclusive mode")


def pause(connection: Connection, pipeline: Pipeline) -> None:
    wait_for(60)(connection, pipeline)
    pause_pipeline(connection, pipeline, "paused by a person")


def pause_for_a_fault(connection: Connection, pipeline: Pipeline) -> None:
    pause_at_fault(connection, pipeline, "column body is gone")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (wait_for(20), "reports has 1 records pending and no commit for 15 min"),
        (die, "reports has 3 new dead letters in 15 min"),
        (fall_silent, "nothing is heard of mac-a for 7 min"),
        (spoil_index, "index spoiled of reports is invalid"),
        (pause_for_a_fault, "reports is paused: column body is gone; mend it"),
    ],
)
def test_what_somebody_has_to_know_is_one_line_and_exit_code_1(
    conninfo: str, connection: Connection, reports: Pipeline, change: Change, said: str
) -> None:
    assert pgembed(conninfo, "health").stdout == "ok\n"
    change(connection, reports)
    ran = pgembed(conninfo, "health")
    assert ran.exit_code == 1
    assert ran.stdout.startswith(said)
    assert ran.stdout.count("\n") == 1
    assert pgembed(conninfo, "health", "reports").exit_code == 1


@pytest.mark.parametrize(
    "change",
    [
        wait_for(10),
        wait_for(20, retrying=True),
        commit_now,
        pause,
        fall_silent_and_come_back,
        build_index,
    ],
)
def test_what_is_as_usual_is_healthy(
    conninfo: str, connection: Connection, reports: Pipeline, change: Change
) -> None:
    change(connection, reports)
    ran = pgembed(conninfo, "health")
    assert (ran.stdout, ran.exit_code) == ("ok\n", 0)


def test_limits_are_those_that_are_given(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    die(connection, reports)
    fall_silent(connection, reports)
    wait_for(20)(connection, reports)
    limits = ("--minutes", "30", "--new-dead-letters", "3", "--allow-silent")
    assert pgembed(conninfo, "health", *limits).exit_code == 0
    assert pgembed(conninfo, "health", "--minutes", "30", "--new-dead-letters", "2").exit_code == 1
    assert pgembed(conninfo, "health", "--minutes", "0").exit_code == 2
    other = make_pipeline(
        connection, make_source(connection, [POISON], table="notes"), name="notes"
    )
    assert pgembed(conninfo, "health", other.name).stdout == "ok\n"


def test_database_without_schema_is_not_healthy(empty_conninfo: str) -> None:
    assert pgembed(empty_conninfo, "health").exit_code == 1
