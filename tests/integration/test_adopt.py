"""Adopting a table of vectors that is there: what is right stays, everything else is queued."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import Any

import numpy as np
import pytest

from pgqueue_embed.adopt import (
    adopt_records,
    attach_table,
    check_agreement,
    compare_sample,
    make_judge,
    resumable,
    scan,
    slices,
    survey,
)
from pgqueue_embed.adopt.judge import Judge
from pgqueue_embed.adopt.slices import next_slice
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.errors import PipelineFault, UsageError
from pgqueue_embed.lifecycle.alter import Changes, alter
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import deleted
from pgqueue_embed.queue.adoptions import Counts
from pgqueue_embed.queue.enqueue import Selection, Slice, enqueue
from tests.support.adopted_rows import embedded_texts, own_rows, sentence_rows
from tests.support.adopting import VECTORS, FakeModel, adopt, candidate_of, make_vectors
from tests.support.corpus import make_source, set_text, texts
from tests.support.fakes import DIMENSIONS, unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline
from tests.support.rows import one_row, one_value
from tests.support.working import drain, open_session, work_once


def candidate_judge(pipeline: Pipeline) -> Judge:
    return make_judge(FakeModel(), pipeline)


@pytest.mark.on_both_servers
def test_former_table_of_a_dropped_pipeline_is_adopted_as_it_is(
    conninfo: str, connection: Connection
) -> None:
    source = make_source(connection, [*texts(30, chunks=3), None, " "])
    pipeline = make_pipeline(connection, source, target=VECTORS)
    enqueue(connection, pipeline, Selection())
    embedded_texts(conninfo, pipeline)
    drop_pipeline(connection, pipeline, delete_vectors=False)
    before = one_value(connection, "select array_agg(v.xmin::text) from vectors v")
    pipeline, counts = adopt(connection, source)
    (rows, after) = one_row(connection, "select count(*), array_agg(v.xmin::text) from vectors v")
    assert counts == Counts(adopted=30, empty=2, chunks=rows)
    assert after == before, "a row that has everything was written"
    assert enqueue(connection, pipeline, Selection()) == 0
    assert_converged(connection, "reports")


@pytest.mark.on_both_servers
@pytest.mark.parametrize("rows_of", [own_rows, sentence_rows], ids=["own cuts", "other cuts"])
def test_verbatim_chunks_that_cover_their_texts_are_adopted_whatever_the_cuts(
    conninfo: str, connection: Connection, rows_of: object
) -> None:
    documents = texts(40, chunks=4)
    source = make_source(connection, documents)
    make_vectors(connection, rows_of(documents))  # type: ignore[operator]
    _, counts = adopt(connection, source)
    assert (counts.adopted, counts.queued) == (40, 0)
    assert_converged(connection, "reports")


def test_everything_that_is_not_right_is_queued_and_put_right(
    conninfo: str, connection: Connection
) -> None:
    documents = texts(12)
    source = make_source(connection, [*documents, None])
    rows = [row for row in own_rows(documents) if row[0] != 1]
    zero = np.zeros(DIMENSIONS, np.float32)
    rows = [(key, text, zero if key == 2 else own) for key, text, own in rows]
    rows = [(key, text + "x" if key == 3 else text, own) for key, text, own in rows]
    rows += [(13, "no text any more", None), (99, "a record that is gone", None)]
    make_vectors(connection, rows)
    connection.execute(
        "delete from vectors where ctid = (select max(ctid) from vectors v where fulltext_id = 4)"
    )
    pipeline, counts = adopt(connection, source, doubtful=["5"])
    assert counts == Counts(
        adopted=7, chunks=counts.chunks, missing=1, wrong_vectors=2, text_differs=3, gone=1
    )
    progress = "select total, done, pending from pgembed.progress"
    assert connection.execute(progress).fetchone() == (14, 7, 7)
    again = embedded_texts(conninfo, pipeline)
    assert {text for key, text, _ in own_rows(documents) if key in (1, 2, 3, 4, 5)} == set(again)
    assert_converged(connection, "reports")


def test_chunks_of_too_many_records_that_are_gone_stay_until_a_person_allows_it(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deleted, "UNASKED_RECORDS", 3)
    source = make_source(connection)
    documents = texts(5)
    make_vectors(connection, own_rows(documents))
    pipeline, counts = adopt(connection, source)
    assert counts.gone == 5
    chunks = "select count(distinct fulltext_id) from vectors"
    with open_session(conninfo) as session:
        drain(session, pipeline)
        assert connection.execute(chunks).fetchone() == (5,)
        with pytest.raises(PipelineFault, match="--allow-deletes"):
            enqueue(connection, pipeline, Selection())
        enqueue(connection, pipeline, Selection(), allow_deletes=True)
        drain(session, pipeline)
    assert connection.execute(chunks).fetchone() == (0,)


def test_direction_counts_and_length_is_put_right(conninfo: str, connection: Connection) -> None:
    documents = texts(5)
    source = make_source(connection, documents)
    rows = [(key, text, 5 * unit_vector(text)) for key, text, _ in own_rows(documents)]
    make_vectors(connection, rows)
    _, counts = adopt(connection, source)
    assert (counts.adopted, counts.queued) == (5, 0)
    assert_converged(connection, "reports")


def test_survey_finds_what_an_adoption_finds_and_changes_nothing(connection: Connection) -> None:
    documents = texts(10)
    source = make_source(connection, documents)
    make_vectors(connection, [*own_rows(documents)[2:], (99, "gone", None)])
    found = survey(connection, candidate_of(connection, source))
    columns = (
        "select count(*) from pg_attribute where attrelid = 'vectors'::regclass and attnum > 0"
    )
    assert connection.execute(columns).fetchone() == (3,)
    assert connection.execute("select count(*) from pgembed.pipelines").fetchone() == (0,)
    assert found.is_whole
    assert found.counts == adopt(connection, source)[1]


# Interruptions and company


class Interrupted(Exception):
    """Ends an adoption in its midst."""


def test_interrupted_adoption_goes_on_where_it_stopped(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_RECORDS", 5)
    documents = texts(20)
    source = make_source(connection, documents)
    make_vectors(connection, [*own_rows(documents)[3:], (99, "gone", None)])
    seen: list[int] = []

    def interrupt(done: Slice) -> None:
        seen.append(done.scanned)
        if len(seen) == 2:
            raise Interrupted

    with pytest.raises(Interrupted):
        adopt(connection, source, on_slice=interrupt)
    pipeline = load_pipeline(connection, "reports")
    for refused in (
        lambda: enqueue(connection, pipeline, Selection()),
        lambda: alter(connection, pipeline, Changes(chunk_tokens=8)),
    ):
        with pytest.raises(UsageError, match="go on with: pgembed adopt reports"):
            refused()
    resumed = resumable(connection, "reports", None)
    assert resumed is not None
    judge = candidate_judge(resumed)
    counts = adopt_records(connection, resumed, judge, on_slice=lambda d: seen.append(d.scanned))
    assert seen == [5, 5, 5, 5, 0, 0]
    assert counts.adopted + counts.missing + counts.text_differs == 20
    assert counts.gone == 1
    with pytest.raises(UsageError, match="is adopted already"):
        resumable(connection, "reports", None)
    embedded_texts(conninfo, resumed)
    assert_converged(connection, "reports")


def test_two_that_adopt_at_once_count_every_record_once(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_RECORDS", 7)
    documents = texts(60)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    candidate = candidate_of(connection, source)
    pipeline = attach_table(connection, candidate, ())

    def go_through() -> Counts:
        with connect(conninfo) as own:
            return adopt_records(own, pipeline, candidate_judge(pipeline))

    with ThreadPoolExecutor(3) as pool:
        found = [each.result() for each in [pool.submit(go_through) for _ in range(3)]]
    assert {each.adopted for each in found} == {60}
    assert_converged(connection, "reports")


def test_worker_and_writer_beside_an_adoption_leave_nothing_stale(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slices, "SLICE_RECORDS", 6)
    documents = texts(36)
    source = make_source(connection, documents)
    rows = [row for row in own_rows(documents) if int(str(row[0])) % 3]
    make_vectors(connection, rows)
    numbers = count(1)

    def meddle(_done: Slice) -> None:
        """Change a text that was adopted, one that was not, and let a worker have its way."""
        number = next(numbers)
        set_text(connection, source, number, f"Changed {number}.")
        set_text(connection, source, 37 - number, f"Changed {37 - number}.")
        with open_session(conninfo) as session:
            work_once(session, load_pipeline(connection, "reports"))

    pipeline, _ = adopt(connection, source, on_slice=meddle)
    enqueue(connection, pipeline, Selection())
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")


def test_text_or_row_that_changes_between_reading_and_writing_is_queued(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = texts(6)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    read = next_slice

    def read_and_change(*arguments: Any, **named: Any) -> Any:
        judged = read(*arguments, **named)
        connection.execute("update reports set body = body || ' And more.' where id = 1")
        connection.execute("delete from reports where id = 2")
        connection.execute("update vectors set text_chunk = 'meddled' where fulltext_id = 3")
        return judged

    monkeypatch.setattr(scan, "next_slice", read_and_change)
    pipeline, counts = adopt(connection, source)
    assert (counts.adopted, counts.text_differs) == (3, 3)
    embedded_texts(conninfo, pipeline)
    assert_converged(connection, "reports")


# The comparison


def test_vectors_of_the_model_agree_and_those_of_another_are_refused(
    connection: Connection,
) -> None:
    documents = texts(20)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    candidate = candidate_of(connection, source)
    agreement = compare_sample(connection, candidate)
    check_agreement(candidate, agreement)
    assert agreement.share == 1.0
    connection.execute("update vectors set embedding = '[1,0,0,0,0,0,0,0]'")
    with pytest.raises(UsageError, match="another model, pooling or prompt made them"):
        check_agreement(candidate, compare_sample(connection, candidate))
    connection.execute("update vectors set text_chunk = 'something else'")
    with pytest.raises(UsageError, match=r"with another text.*nothing would be adopted"):
        check_agreement(candidate, compare_sample(connection, candidate))
    connection.execute("truncate vectors")
    with pytest.raises(UsageError, match="has no chunks to adopt"):
        compare_sample(connection, candidate)


def test_one_wrong_vector_in_a_hundred_is_found_out_and_embedded_again(
    conninfo: str, connection: Connection
) -> None:
    documents = texts(150)
    source = make_source(connection, documents)
    make_vectors(connection, own_rows(documents))
    connection.execute(
        "update vectors set embedding = '[1,0,0,0,0,0,0,0]' where fulltext_id = 7 and ctid ="
        " (select min(ctid) from vectors v where v.fulltext_id = 7)"
    )
    candidate = candidate_of(connection, source)
    agreement = compare_sample(connection, candidate, sample_chunks=1_000)
    check_agreement(candidate, agreement)
    assert agreement.doubtful == ("7",)
    pipeline, counts = adopt(connection, source, doubtful=agreement.doubtful)
    assert (counts.adopted, counts.wrong_vectors) == (149, 1)
    again = embedded_texts(conninfo, pipeline)
    assert again == [text for key, text, _ in own_rows(documents) if key == 7]
    assert_converged(connection, "reports")
