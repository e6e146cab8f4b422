"""Keys that a foreign key takes along, and that are used again for other records."""

from __future__ import annotations

import random

import psycopg
import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.sync import start_capture
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, work_once

STEPS = 60
KEYS = 9

SOURCES = {
    "plain": ("id bigint primary key", ("id",)),
    "composite": (
        "day timestamptz default '2024-05-01', id bigint, primary key (id, day)",
        ("id", "day"),
    ),
    # The ledger and the chunks' ids hold it by its beginning and a hash.
    "long": (
        "id bigint unique,"
        " long text generated always as (repeat(md5(id::text), 20)) stored primary key",
        ("long",),
    ),
}

# Few texts, so that a record finds under its new key a ledger row of the very text that it has.
TEXTS = (
    "Pump stopped.",
    "Pump stopped. " * 30,
    "The valve was open. The alarm did not sound.",
    "",
)


@pytest.fixture(params=list(SOURCES.values()), ids=list(SOURCES))
def reports(request: pytest.FixtureRequest, connection: Connection) -> Pipeline:
    """A pipeline over an empty table with one kind of key, whose vectors refer to it."""
    columns, key = request.param
    connection.execute(f"create table reports ({columns}, body text)")
    source = Table(schema="public", name="reports")
    return make_pipeline(connection, source, id_fields=key, foreign_key=True)


def test_keys_that_change_and_are_used_again_are_embedded(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    insert = "insert into reports (id, body) select i, %s || i from generate_series(1, 40) as i"
    connection.execute(insert, ("Pump ",))
    enqueue(connection, reports, Selection())
    drain(session, reports)
    connection.execute("update reports set id = id + 100")
    connection.execute(insert, ("New ",))
    enqueue(connection, reports, Selection(where="id <= 40"))
    drain(session, reports)
    state = connection.execute("select state, state_reason from pgembed.pipelines").fetchone()
    assert state == ("active", None)
    enqueue(connection, reports, Selection())
    drain(session, reports)
    assert_converged(connection, "reports")
    assert enqueue(connection, reports, Selection()) == 0


def test_key_that_changes_to_that_of_a_record_with_the_same_text_is_written_anew(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("insert into reports (id, body) values (1, 'Same.'), (2, 'Same.')")
    enqueue(connection, reports, Selection())
    drain(session, reports)
    connection.execute("delete from reports where id = 2; update reports set id = 2")
    assert enqueue(connection, reports, Selection()) == 2
    drain(session, reports)
    assert_converged(connection, "reports")


def test_keys_that_move_on_in_one_statement_take_no_chunks_of_others_along(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    start_capture(connection, reports)
    # From the last key on, so that each moves to one that has just become free.
    connection.execute(
        "insert into reports (id, body) select 9 - i, 'Same.' from generate_series(1, 8) as i"
    )
    drain(session, reports)
    connection.execute("update reports set id = id + 1")
    connection.execute("insert into reports (id, body) values (1, 'Another.')")
    drain(session, reports)
    assert_converged(connection, "reports")


@pytest.mark.parametrize("is_captured", [True, False], ids=["captured", "enqueued"])
@pytest.mark.parametrize("seed", [1, 2])
def test_records_converge_whatever_becomes_of_their_keys(
    connection: Connection, session: Session, reports: Pipeline, is_captured: bool, seed: int
) -> None:
    chance = random.Random(seed)
    if is_captured:
        start_capture(connection, reports)
    for _ in range(STEPS):
        _change(connection, chance)
        if not is_captured and chance.random() < 0.5:
            enqueue(connection, reports, Selection())
        if chance.random() < 0.4:
            work_once(session, reports)
    if not is_captured:
        enqueue(connection, reports, Selection())
    drain(session, reports)
    assert connection.execute("select * from pgembed.dead_letters").fetchall() == []
    assert_converged(connection, "reports")


def _change(connection: Connection, chance: random.Random) -> None:
    one, other = chance.sample(range(1, KEYS), 2)
    values = {"one": one, "other": other, "body": chance.choice(TEXTS)}
    statement = chance.choice(
        (
            "insert into reports (id, body) values (%(one)s, %(body)s)",
            "insert into reports (id, body) values (%(other)s, %(body)s)",
            "update reports set body = %(body)s where id = %(one)s",
            "update reports set id = %(other)s where id = %(one)s",
            "update reports set id = id + 1 where id >= %(one)s",
            "delete from reports where id = %(one)s",
            "with gone as (delete from reports where id = %(one)s returning body)"
            " update reports set body = gone.body from gone where id = %(other)s",
            "delete from reports where id = %(other)s;"
            f" update reports set id = {other} where id = {one}",
        )
    )
    if ";" in statement:
        first, second = statement.split(";")
        with connection.transaction():
            connection.execute(first, values)
            connection.execute(second)
        return
    try:
        connection.execute(statement, values)
    except psycopg.errors.UniqueViolation:
        return  # the key is taken: nothing has changed
