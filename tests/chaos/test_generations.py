"""Generations change hands under real worker processes, some of them killed meanwhile."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.pipeline.catalog import load_pipeline, load_pipelines
from pgqueue_embed.queue.claims import is_drained
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.conditions import wait_until
from tests.support.corpus import make_source, set_text, texts
from tests.support.light import light_workers
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline

RECORDS = 300


pytestmark = pytest.mark.usefixtures("fake_next_model")


def test_workers_go_through_two_switches_without_losing_or_mixing_anything(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    make_source(connection, texts(RECORDS))
    pipeline = make_pipeline(connection)
    enqueue(connection, pipeline, Selection())
    # The second table is called as the first one was while it was the next.
    with light_workers(conninfo, tmp_path, 2, drain=False, batch_seconds=0.01) as workers:
        for chunk_tokens in (20, 12):
            successor = alter(connection, pipeline, Changes(chunk_tokens=chunk_tokens))
            assert successor is not None
            catch_up(connection, pipeline, successor)
            workers[0].send(signal.SIGKILL)
            set_text(connection, REPORTS, chunk_tokens, f"Changed before {chunk_tokens}.")
            enqueue(connection, pipeline, Selection())
            pipeline = switch(connection, pipeline, patience_seconds=60)
            assert pipeline.spec.chunk_tokens == chunk_tokens
            set_text(connection, REPORTS, RECORDS + chunk_tokens, "New after a switch.")
            enqueue(connection, pipeline, Selection())
        wait_until(
            lambda: is_drained(connection, [pipeline.id]),
            "everything is embedded",
            seconds=60,
        )
    (left,) = load_pipelines(connection)
    assert (left.name, left.state, left.spec.chunk_tokens) == ("reports", "active", 12)
    assert load_pipeline(connection, "reports") == left
    connection.execute("delete from pgembed.attempts where died_at is null")
    assert_converged(connection, "reports")


def test_backlog_of_the_old_generation_becomes_the_next_ones(
    conninfo: str, connection: Connection, tmp_path: Path
) -> None:
    """What a worker of the old one embeds while the switch waits is not lost with it."""
    make_source(connection, texts(50))
    pipeline = make_pipeline(connection)
    start_capture(connection, pipeline)
    enqueue(connection, pipeline, Selection())
    with light_workers(conninfo, tmp_path, 1, drain=False, batch_seconds=0.05):
        wait_until(lambda: is_drained(connection, [pipeline.id]), "the first ones are embedded")
        connection.execute(
            "insert into public.reports (id, body)"
            " select number, 'A late report ' || number from generate_series(51, 1500) as number"
        )
        successor = alter(connection, pipeline, Changes(chunk_tokens=20))
        assert successor is not None
        catch_up(connection, pipeline, successor)
        pipeline = switch(connection, pipeline, patience_seconds=120)
        wait_until(
            lambda: is_drained(connection, [pipeline.id]), "everything is embedded", seconds=120
        )
    assert_converged(connection, "reports")
    assert enqueue(connection, pipeline, Selection()) == 0
