"""A first enqueue compares nothing, and queues the very items that a comparison would have."""

from __future__ import annotations

import random

import pytest

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import capture
from pgqueue_embed.queue import enqueue as scan
from pgqueue_embed.queue.enqueue import Selection, Slice, enqueue
from pgqueue_embed.queue.work_items import BULK, CHANGES, Handling, add_items
from tests.support.corpus import make_source, set_text, texts
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.working import drain, work_once

RECORDS = 60
SLICE = 13
WORLDS = 24
SELECTIONS = (
    Selection(),
    Selection(everything=True),
    Selection(limit=20),
    Selection(where="id % 3 = 0"),
)
ITEMS = """
select keys, records, priority, known, embed_again, allow_deletes from pgembed.work order by id
"""

# Where nothing is queued, the statement returns no row, and the slice is compared.
NEVER_FIRST = "select where %(pipeline_id)s is null"


@pytest.fixture
def pipeline(connection: Connection) -> Pipeline:
    make_source(connection, texts(RECORDS))
    return make_pipeline(connection)


def ledger_of(connection: Connection, pipeline: Pipeline, keys: list[str]) -> None:
    connection.execute(
        """
        insert into pgembed.records (pipeline_id, key, state, generation, chunks, document_hash)
        select %s, id::text, 'embedded', 1, 1, sha256(convert_to(body, 'UTF8'))
        from public.reports
        where id::text = any(%s)
        """,
        (pipeline.id, keys),
    )


def fill(connection: Connection, pipeline: Pipeline, seed: int) -> None:
    """Leave in the queue and the ledger what others may have left there, in all combinations."""
    randomly = random.Random(seed)

    def keys(most: int) -> list[str]:
        # Near where a slice may begin.
        end = SLICE * randomly.randint(0, RECORDS // SLICE) + randomly.randint(0, 3)
        return [str(key) for key in range(end - randomly.randint(1, most), end)]

    def scattered(most: int) -> list[str]:
        return [str(randomly.randint(1, RECORDS)) for _ in range(most)]

    connection.execute("truncate pgembed.work, pgembed.records, pgembed.scans")
    for _ in range((0, 1, 3)[seed % 3]):
        add_items(connection, pipeline.id, keys(9), Handling(priority=BULK))
    if seed // 3 % 2:
        add_items(connection, pipeline.id, scattered(3), Handling(priority=CHANGES))
    if seed // 6 % 2:
        ledger_of(connection, pipeline, keys(20))


def items_after(
    connection: Connection, pipeline: Pipeline, seed: int, selection: Selection
) -> list[tuple[object, ...]]:
    fill(connection, pipeline, seed)
    enqueue(connection, pipeline, selection, slice_records=SLICE)
    return connection.execute(ITEMS).fetchall()


@pytest.mark.parametrize("selection", SELECTIONS, ids=Selection.as_text)
def test_first_enqueue_queues_what_a_comparison_would(
    connection: Connection,
    pipeline: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    selection: Selection,
) -> None:
    queued = [items_after(connection, pipeline, seed, selection) for seed in range(WORLDS)]
    monkeypatch.setattr(scan, "QUEUE_FIRST_SLICE", NEVER_FIRST)
    compared = [items_after(connection, pipeline, seed, selection) for seed in range(WORLDS)]
    for seed, (first, second) in enumerate(zip(queued, compared, strict=True)):
        assert first == second, f"seed {seed}"


def test_first_enqueue_compares_nothing(
    connection: Connection, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scan, "QUEUE_SLICE", "this is no statement")
    assert enqueue(connection, pipeline, Selection(), slice_records=SLICE) == RECORDS


def test_slices_behind_the_first_commit_of_a_worker_are_compared(
    connection: Connection, session: Session, conninfo: str, pipeline: Pipeline
) -> None:
    """A worker begins, and a captured change of a record ahead comes, between two slices."""
    capture.install(connection, pipeline)
    slices: list[Slice] = []

    def meanwhile(done: Slice) -> None:
        slices.append(done)
        if len(slices) == 1:
            with connect(conninfo) as writer:
                set_text(writer, REPORTS, RECORDS, "another text")
        if len(slices) == 3:
            work_once(session, pipeline)

    queued = enqueue(connection, pipeline, Selection(), slice_records=SLICE, on_slice=meanwhile)
    assert queued == RECORDS - 1
    drain(session, pipeline)
    assert_converged(connection, "reports")
