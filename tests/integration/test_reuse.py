"""A changed record keeps the vectors of the chunks that it had before, and never a wrong one."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import pytest
from psycopg import sql

from pgqueue_embed.claim import embed, reuse
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import DeviceThread
from pgqueue_embed.errors import PipelineFault
from pgqueue_embed.ledger.commits import ROLL_UP
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import make_source, real_reports, set_text, texts
from tests.support.fakes import FakeDevice, fake_chunker, unit_vector
from tests.support.light_worker import LightModel
from tests.support.models import bundled_model
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.prepared import filled_by
from tests.support.working import drain, open_session, work_once

# Each paragraph is a chunk of 16 tokens at most, and leaves no room for an overlap.
PARAGRAPHS = [f"Paragraph {n} says that pump {n} was found to be in order." for n in range(12)]
LONG_TEXT = "\n\n".join(PARAGRAPHS)
ADDED = "What was added here is a paragraph that nobody has seen before."


def finished(connection: Connection, session: Session, **fields: Any) -> Pipeline:
    make_source(connection, [LONG_TEXT])
    pipeline = make_pipeline(connection, **{"overlap_tokens": 0, **fields})
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline, chunker=fake_chunker(overlap_tokens=0))
    assert chunk_texts(connection) == PARAGRAPHS
    return pipeline


PREPARED = {"reports": filled_by(finished)}


@pytest.fixture
def reports(connection: Connection) -> Pipeline:
    """A finished pipeline over one long text."""
    return load_pipeline(connection, "reports")


def chunk_texts(connection: Connection) -> list[str]:
    rows = connection.execute("select text_chunk from reports_chunks order by chunk_index")
    return [text for (text,) in rows]


def change(
    connection: Connection,
    session: Session,
    pipeline: Pipeline,
    text: str,
    device: FakeDevice | None = None,
    *,
    everything: bool = False,
) -> list[str]:
    """Change the text and embed it; returns the texts of the chunks that were computed."""
    set_text(connection, REPORTS, 1, text)
    enqueue(connection, pipeline, Selection(everything=everything))
    device = device or FakeDevice()
    drain(session, pipeline, device, chunker=fake_chunker(overlap_tokens=0))
    return device.embedded_texts


def assert_true(connection: Connection) -> None:
    """Fail unless every vector is the one that the model has for the chunk's text."""
    rows = connection.execute("select text_chunk, embedding::real[] from reports_chunks").fetchall()
    for text, vector in rows:
        assert np.allclose(vector, unit_vector(text), atol=1e-6)
    assert_converged(connection, "reports")


def reused(connection: Connection) -> int:
    (count,) = connection.execute("select sum(reused) from pgembed.batches").fetchone() or (0,)
    return int(count)


def with_paragraph(place: int) -> str:
    return "\n\n".join([*PARAGRAPHS[:place], ADDED, *PARAGRAPHS[place:]])


@pytest.mark.on_both_servers
@pytest.mark.parametrize("place", [0, 6, 12], ids=["front", "middle", "end"])
def test_only_the_added_paragraph_is_computed(
    connection: Connection, session: Session, reports: Pipeline, place: int
) -> None:
    assert change(connection, session, reports, with_paragraph(place)) == [ADDED]
    assert reused(connection) == 12
    assert len(chunk_texts(connection)) == 13
    assert_true(connection)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["front", "middle", "end"])
def test_a_sentence_added_to_a_real_text_costs_some_chunks_of_many(
    connection: Connection, session: Session, share: float
) -> None:
    documents = ["\n\n".join(real_reports()[start : start + 20]) for start in range(0, 200, 20)]
    make_source(connection, documents)
    pipeline = make_pipeline(connection, chunk_tokens=128, overlap_tokens=20)
    chunker = fake_chunker(max_tokens=128, overlap_tokens=20)
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline, chunker=chunker)
    before = set(chunk_texts(connection))
    for key, document in enumerate(documents, start=1):
        sentences = document.split(". ")
        sentences.insert(int(len(sentences) * share), "A sentence was added here")
        set_text(connection, REPORTS, key, ". ".join(sentences))
    enqueue(connection, pipeline, Selection())
    device = FakeDevice()
    drain(session, pipeline, device, chunker=chunker)
    after = chunk_texts(connection)
    assert sorted(device.embedded_texts) == sorted(text for text in after if text not in before)
    assert len(device.embedded_texts) < 4 * len(documents) < len(after) / 5
    assert_true(connection)


def test_what_is_taken_away_or_moved_is_not_computed(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    assert change(connection, session, reports, "\n\n".join(PARAGRAPHS[::-1][2:])) == []
    assert reused(connection) == 10
    assert_true(connection)


def test_new_records_ask_for_nothing(
    connection: Connection, session: Session, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reuse, "STORED", "this would be an error")
    set_text(connection, REPORTS, 2, with_paragraph(3))
    enqueue(connection, reports, Selection())
    drain(session, reports)
    assert reused(connection) == 0


def test_a_claim_reads_what_its_own_records_had_and_no_more(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    set_text(connection, REPORTS, 2, ADDED)
    enqueue(connection, reports, Selection())
    drain(session, reports)
    device = FakeDevice()
    set_text(connection, REPORTS, 2, f"{ADDED}\n\n{PARAGRAPHS[0]}")
    enqueue(connection, reports, Selection())
    drain(session, reports, device, chunker=fake_chunker(overlap_tokens=0))
    assert device.embedded_texts == [PARAGRAPHS[0]]  # which is a chunk of record 1 alone
    assert_true(connection)


@pytest.mark.parametrize("element", [0, 0.5])
def test_a_stored_vector_that_is_not_of_length_one_is_computed_again(
    connection: Connection, session: Session, reports: Pipeline, element: float
) -> None:
    connection.execute(
        "update reports_chunks set embedding = array_fill(%s::real, array[8])::vector"
        " where chunk_index = 3",
        (element,),
    )
    computed = change(connection, session, reports, with_paragraph(12))
    assert sorted(computed) == sorted([PARAGRAPHS[3], ADDED])
    assert_true(connection)


def test_what_is_to_be_embedded_again_is_computed(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    computed = change(connection, session, reports, with_paragraph(12), everything=True)
    assert computed == [*PARAGRAPHS, ADDED]
    assert reused(connection) == 0


class RepairedModel(LightModel):
    """Gives the opposite of every vector until it is repaired."""

    repaired = False

    def launch(self, chunks, *, length=None):  # type: ignore[no-untyped-def]
        read = super().launch(chunks, length=length)
        return read if self.repaired else lambda: -read()


@pytest.mark.parametrize("queued_first", [True, False], ids=["all", "all and changed ones"])
def test_what_a_device_computed_wrong_is_not_taken_from_the_cache_of_its_process(
    connection: Connection, session: Session, queued_first: bool
) -> None:
    source = make_source(connection, [LONG_TEXT, LONG_TEXT, *texts(48)])
    pipeline = make_pipeline(connection, overlap_tokens=0)
    model = RepairedModel()
    with closing(DeviceThread(lambda: model)) as device:
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline, device)
        model.repaired = True
        if not queued_first:
            set_text(connection, source, 3, LONG_TEXT + " Changed.")
            enqueue(connection, pipeline, Selection())
        enqueue(connection, pipeline, Selection(everything=True))
        drain(session, pipeline, device)
        # What was computed anew is what later records get from the cache.
        set_text(connection, source, 4, LONG_TEXT)
        enqueue(connection, pipeline, Selection())
        drain(session, pipeline, device)
    assert_true(connection)


def test_chunks_that_somebody_deleted_are_the_only_ones_computed(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("delete from reports_chunks where chunk_index = 5")
    connection.execute("select pgembed.enqueue('reports', '{1}')")
    device = FakeDevice()
    drain(session, reports, device, chunker=fake_chunker(overlap_tokens=0))
    assert device.embedded_texts == [PARAGRAPHS[5]]
    assert_true(connection)


def test_vectors_of_another_generation_are_not_used(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    connection.execute("update pgembed.records set generation = 0")
    assert change(connection, session, reports, with_paragraph(12)) == [*PARAGRAPHS, ADDED]


def test_a_chunk_template_reuses_nothing(connection: Connection, session: Session) -> None:
    make_source(connection, [LONG_TEXT])
    connection.execute("alter table reports add title text default 'Pump'")
    pipeline = make_pipeline(connection, chunk_template="<$title>: $chunk", overlap_tokens=0)
    enqueue(connection, pipeline, Selection())
    chunker = fake_chunker(max_tokens=24, overlap_tokens=0)
    drain(session, pipeline, chunker=chunker)
    # The hash of the text stays, and every vector changes.
    connection.execute("update reports set title = ''")
    enqueue(connection, pipeline, Selection())
    device = FakeDevice()
    drain(session, pipeline, device, chunker=chunker)
    assert len(device.embedded_texts) == len(chunk_texts(connection))
    assert reused(connection) == 0


def test_halves_are_kept_as_they_are(connection: Connection, session: Session) -> None:
    pipeline = finished(connection, session, vector_type="halfvec")
    query = "select text_chunk, embedding::text from reports_chunks where text_chunk = any(%s)"
    before = sorted(connection.execute(query, (PARAGRAPHS,)))
    assert change(connection, session, pipeline, with_paragraph(0)) == [ADDED]
    assert sorted(connection.execute(query, (PARAGRAPHS,))) == before
    assert_converged(connection, "reports")


def test_a_long_document_is_looked_up_in_portions(
    connection: Connection, session: Session, reports: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed, "PORTION_CHUNKS", 5)
    assert change(connection, session, reports, with_paragraph(6)) == [ADDED]
    assert reused(connection) == 12
    assert_true(connection)


def test_a_record_that_fails_leaves_its_neighbours_their_vectors(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    set_text(connection, REPORTS, 2, "A POISON text.")
    computed = change(connection, session, reports, with_paragraph(12))
    assert set(computed) == {ADDED}
    rows = connection.execute("select key from pgembed.dead_letters").fetchall()
    assert rows == [("2",)]


def test_a_change_between_the_hint_and_the_mutex_is_not_lost(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    later = with_paragraph(3)

    def strike() -> None:
        set_text(connection, REPORTS, 1, later)

    assert change(connection, session, reports, with_paragraph(12), FakeDevice(during=strike))
    assert chunk_texts(connection)[3] == ADDED
    assert_true(connection)


def test_another_workers_commit_between_the_hint_and_the_mutex_does_no_harm(
    conninfo: str, connection: Connection, session: Session, reports: Pipeline
) -> None:
    def overtake() -> None:
        connection.execute("delete from reports_chunks")
        enqueue(connection, reports, Selection(everything=True))
        with open_session(conninfo, worker_id=2) as other:
            work_once(other, reports, chunker=fake_chunker(overlap_tokens=0))

    device = FakeDevice(during=overtake)
    change(connection, session, reports, with_paragraph(12), device)
    assert_true(connection)


def test_a_target_that_is_gone_is_the_pipelines_fault(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    device = reuse.ReusingEmbedder(FakeDevice(), session.side, reports, ["1"])
    (document,) = fake_chunker().chunk([LONG_TEXT])
    connection.execute(sql.SQL("drop table {}").format(reports.target.identifier))
    with pytest.raises(PipelineFault, match="reports_chunks"):
        device.embed(document.chunks, on_progress=lambda: None)


def test_vectors_that_are_kept_are_those_that_the_model_would_give(
    connection: Connection, session: Session
) -> None:
    make_source(connection, [LONG_TEXT])
    pipeline = make_pipeline(connection, dimensions=384, overlap_tokens=0)
    chunker = fake_chunker(overlap_tokens=0)
    query = "select embedding::real[] from reports_chunks order by chunk_index"
    stored = []
    with closing(DeviceThread(bundled_model, cache_bytes=0)) as device:
        assert device.model.dimensions == pipeline.dimensions  # loaded before a lease runs
        for text, everything in ((LONG_TEXT, False), (with_paragraph(6), False), (None, True)):
            if text is not None:
                set_text(connection, REPORTS, 1, text)
            enqueue(connection, pipeline, Selection(everything=everything))
            drain(session, pipeline, device, chunker=chunker)
            stored.append(np.array([vector for (vector,) in connection.execute(query)]))
    assert reused(connection) == 12
    assert np.allclose(stored[1], stored[2], atol=1e-5)


def test_the_count_survives_a_roll_up(
    connection: Connection, session: Session, reports: Pipeline
) -> None:
    change(connection, session, reports, with_paragraph(12))
    connection.execute("update pgembed.batches set committed_at = now() - interval '2 hours'")
    connection.execute(ROLL_UP, {"pipeline_id": reports.id})
    assert connection.execute("select reused from pgembed.batches").fetchall() == [(12,)]
