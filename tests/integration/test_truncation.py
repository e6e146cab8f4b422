"""Vectors cut to their first dimensions: in the table, in a search, and not below what is left."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pgqueue_embed import Database
from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import Embedded
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.lifecycle.switch import switch
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice, unit_vector
from tests.support.models import share_loaded_models
from tests.support.oracle import assert_converged
from tests.support.pipelines import make_pipeline, prepare_with_fake_model
from tests.support.working import drain


class LeadingZeros(FakeDevice):
    """Gives nothing in the first three dimensions for a text with EMPTY in it."""

    def embed(self, chunks, **options):  # type: ignore[no-untyped-def]
        vectors = super().embed(chunks, **options).vectors
        for row, chunk in enumerate(chunks):
            if "EMPTY" in chunk.text:
                vectors[row, :3] = 1e-6
                vectors[row] /= np.linalg.norm(vectors[row])
        return Embedded(vectors=vectors)


def first(text: str, dimensions: int = 3) -> NDArray[np.float32]:
    """Return what is kept of the fake model's vector of `text`."""
    kept = unit_vector(text)[:dimensions]
    return kept / np.linalg.norm(kept)


def embedded(connection: Connection, session: Session, **fields: Any) -> Pipeline:
    """Return a pipeline that keeps three of eight dimensions, with twenty records embedded."""
    source = make_source(connection, texts(20))
    pipeline = make_pipeline(connection, source, truncate_dim=3, **fields)
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline, FakeDevice())
    return pipeline


@pytest.mark.on_both_servers
@pytest.mark.parametrize("vector_type", ["vector", "halfvec"])
def test_first_dimensions_are_written_with_length_one(
    connection: Connection, session: Session, vector_type: str
) -> None:
    connection.execute("create schema elsewhere; alter extension vector set schema elsewhere")
    pipeline = embedded(connection, session, vector_type=vector_type)
    assert pipeline.dimensions == 3
    written = connection.execute("select text_chunk, embedding::text from reports_chunks")
    for text, vector in written:
        np.testing.assert_allclose(np.fromstring(vector[1:-1], sep=","), first(text), atol=1e-3)
    assert_converged(connection, "reports")


def test_search_ranks_by_the_cosine_of_what_is_kept(
    connection: Connection, session: Session
) -> None:
    pipeline = embedded(connection, session)
    query = first("a question")
    hits = search(connection, pipeline, query, SearchRequest(limit=100, threshold=-1))
    expected = [float(query @ first(hit.chunk or "")) for hit in hits]
    assert len(hits) > 20
    assert expected == sorted(expected, reverse=True)
    np.testing.assert_allclose([hit.score for hit in hits], expected, atol=1e-5)


def test_vector_with_nothing_in_what_is_kept_is_its_records_failure(
    connection: Connection, session: Session
) -> None:
    source = make_source(connection, [*texts(5), "EMPTY"])
    pipeline = make_pipeline(connection, source, truncate_dim=3, max_attempts=2)
    enqueue(connection, pipeline, Selection())
    drain(session, pipeline, LeadingZeros())
    dead = connection.execute("select key, last_error from pgembed.dead_letters").fetchall()
    assert [key for key, _ in dead] == ["6"]
    assert "nothing in its first 3 dimensions" in dead[0][1]
    assert_converged(connection, "reports")


def test_query_of_the_model_itself_is_cut_like_its_chunks(
    conninfo: str, connection: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    share_loaded_models(monkeypatch)
    make_source(connection, ["The pump stopped and an alarm was heard."])
    database = Database(conninfo)
    wanted: dict[str, Any] = {"source_table": "reports", "text_field": "body"}
    with pytest.raises(UsageError, match=r"truncate_dim 385: .* have 384 dimensions"):
        database.create("reports", **wanted, truncate_dim=385)
    whole = database.create("whole", **wanted)
    cut = database.create("cut", **wanted, target_table="cut", truncate_dim=64)
    vector = cut.encode("an alarm was heard")
    assert vector.shape == (64,)
    assert np.linalg.norm(vector) == pytest.approx(1)
    assert np.corrcoef(vector, whole.encode("an alarm was heard")[:64])[0, 1] > 0.9999
    (type_,) = connection.execute(
        "select format_type(atttypid, atttypmod) from pg_attribute"
        " where attrelid = 'cut'::regclass and attname = 'embedding'"
    ).fetchone() or ("",)
    assert type_ == "vector(64)"


def test_dimensions_change_by_a_new_generation(
    connection: Connection, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
    monkeypatch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _pipeline: None)
    pipeline = embedded(connection, session)
    for truncate_dim, dimensions in [(5, 5), (0, 8)]:
        successor = alter(connection, pipeline, Changes(truncate_dim=truncate_dim))
        assert successor is not None
        catch_up(connection, pipeline, successor)
        drain(session, successor, FakeDevice())
        pipeline = switch(connection, pipeline)
        assert (pipeline.spec.truncate_dim, pipeline.dimensions) == (
            truncate_dim or None,
            dimensions,
        )
        assert_converged(connection, "reports")


@pytest.mark.parametrize(
    ("wanted", "complaint"),
    [(0, "give at least 1 dimension"), (9, "the vectors of fake/sha256 have 8 dimensions")],
)
def test_dimensions_that_the_model_does_not_have_are_refused(
    connection: Connection, wanted: int, complaint: str
) -> None:
    source = make_source(connection, texts(1))
    with pytest.raises(UsageError, match=complaint):
        make_pipeline(connection, source, truncate_dim=wanted)
    assert load_pipelines(connection) == []
    (table,) = connection.execute("select to_regclass('reports_chunks')").fetchone() or (1,)
    assert table is None
