"""What a switch of generations looks for in ledger and queue, and what it takes over of them."""

from __future__ import annotations

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle import switch as switching
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.switch import NotCovered, switch
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import texts
from tests.support.fakes import fake_chunker
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.working import drain, embed_documents

pytestmark = pytest.mark.usefixtures("fake_next_model", "quick_switch")


@pytest.fixture
def old(connection: Connection, session: Session) -> Pipeline:
    """A pipeline of six records, embedded."""
    return embed_documents(connection, session, texts(6))


@pytest.fixture
def new(connection: Connection, session: Session, old: Pipeline) -> Pipeline:
    """Its next generation, complete."""
    successor = alter(connection, old, Changes(chunk_tokens=8, overlap_tokens=0))
    assert successor is not None
    catch_up(connection, old, successor)
    drain(session, successor, chunker=fake_chunker(8, 0))
    return successor


@pytest.mark.parametrize(
    "undo",
    [
        "delete from pgembed.records where pipeline_id = %s and key = '3'",
        # As a claim leaves it that has put a record back which changed before its first verdict.
        "update pgembed.records set state = null, document_hash = null, chunks = 0,"
        " embedded_at = null where pipeline_id = %s and key = '3'",
    ],
    ids=["unknown", "without a verdict"],
)
def test_record_that_only_the_old_generation_has_settled_is_not_covered(
    connection: Connection, old: Pipeline, new: Pipeline, undo: str
) -> None:
    switching._check_covered(connection, old, new)
    connection.execute(undo, (new.id,))
    with pytest.raises(NotCovered, match="lacks 1 records that reports has"):
        switching._check_covered(connection, old, new)
    connection.execute("delete from reports where id = 3")
    switching._check_covered(connection, old, new)


# Keys that the ledger holds by their beginning and a hash.
LONG_KEYS = {
    "text": ("id text primary key, number int default 0", ("id",)),
    "composite": ("id text, number int, primary key (number, id)", ("number", "id")),
}


@pytest.mark.parametrize("columns, id_fields", LONG_KEYS.values(), ids=LONG_KEYS)
def test_records_of_long_keys_are_looked_for_and_counted_as_others_are(
    connection: Connection, session: Session, columns: str, id_fields: tuple[str, ...]
) -> None:
    connection.execute(f"create table reports ({columns}, body text)")
    connection.execute(
        "insert into reports"
        " select repeat(md5(i::text), 20), i, 'Report ' || i from generate_series(1, 6) as i"
    )
    source = Table(schema="public", name="reports")
    old = make_pipeline(connection, source, id_fields=id_fields)
    enqueue(connection, old, Selection())
    drain(session, old)
    new = alter(connection, old, Changes(chunk_tokens=8, overlap_tokens=0))
    assert new is not None
    catch_up(connection, old, new)
    drain(session, new, chunker=fake_chunker(8, 0))
    enqueue(connection, old, Selection(everything=True))
    drain(session, old)
    totals = "select distinct total from pgembed.progress"
    assert connection.execute(totals).fetchall() == [(6,)]
    connection.execute(
        "delete from pgembed.records where pipeline_id = %s and long_key like %s",
        (new.id, f"%{'c4ca4238a0b923820dcc509a6f75849b' * 20}%"),
    )
    with pytest.raises(NotCovered, match="lacks 1 records that reports has"):
        switching._check_covered(connection, old, new)
    connection.execute("delete from reports where id = repeat(md5('1'), 20)")
    switching._check_covered(connection, old, new)


@pytest.mark.parametrize("column", ["sweep_after", "compare_after"])
def test_look_through_the_ledger_begins_again_for_the_new_generation(
    connection: Connection, session: Session, old: Pipeline, new: Pipeline, column: str
) -> None:
    connection.execute(
        f"insert into pgembed.work (pipeline_id, keys, records, priority, known, {column})"
        " values (%s, '{}', 0, 0, true, '4')",
        (old.id,),
    )
    switched = switch(connection, old)
    assert switched.id == new.id
    waiting = f"select pipeline_id, {column} from pgembed.work where {column} is not null"
    assert connection.execute(waiting).fetchall() == [(new.id, "")]
    drain(session, switched, chunker=fake_chunker(8, 0))
    assert_converged(connection, "reports")
