"""The cost of a claim in counts: lower a bound when the code does better, never raise it lightly.

Times depend on the machine; round trips, statements, tokenisations and shapes do not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pgqueue_embed.chunking import Chunk, Chunker, encoding
from pgqueue_embed.chunking.characters import text_classes
from pgqueue_embed.claim.process import Session
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.embedding import DeviceThread, EmbeddingModel, resolve_model
from pgqueue_embed.embedding.light_network import LightNetwork
from pgqueue_embed.embedding.rows import Vectors
from pgqueue_embed.embedding.shapes import limits_for
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL, Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import real_reports, texts
from tests.support.counting import CountingConnection, CountingReader, counting_connection
from tests.support.fakes import tokenizer
from tests.support.models import bundled_model
from tests.support.oracle import assert_converged
from tests.support.pipelines import queue_documents
from tests.support.working import open_session, work_once

# BEGIN, its settings, the claim; a renewal after reading, after chunking and after the one device
# batch; two settings of the write; its two savepoints, made and released; the statements of the
# commit, and COMMIT.
CLAIM_ROUND_TRIPS = 23
# The attempt is logged, the tables are looked at for code that must not run, the records are read.
SIDE_ROUND_TRIPS = 3
# Mutex, what is current, delete, insert, deferred constraints, ledger; items, what is handed on to
# the next generation, history.
COMMIT_STATEMENTS = 9
# BEGIN, its settings, the claim, COMMIT.
EMPTY_CLAIM_ROUND_TRIPS = 5

# Of (rows, length), for 2,000 reports in claims of 1 to 2,000 chunks.
METAL_SHAPES = 14
# Of the tokens that a CPU computes, in the same claims.
CPU_PADDING = 0.02
# Of the tokens that opening a model computes on the CPU, before any is of use to anybody.
OPENING_PADDING = 0.2
# Computed for each precision that is compared with fp32 on the CPU, which needs a few short ones.
FEWEST_CANARY_TOKENS = 1_000


@pytest.fixture
def session(conninfo: str) -> Iterator[Session]:
    """A worker's session on connections that count."""
    with ExitStack() as stack:
        opened = stack.enter_context(open_session(conninfo))
        connection = stack.enter_context(counting_connection(conninfo))
        side = stack.enter_context(counting_connection(conninfo))
        codec = VectorCodec(connection)
        yield replace(opened, connection=connection, side=side, codec=codec)


def counted(connection: Connection) -> CountingConnection:
    assert isinstance(connection, CountingConnection)
    return connection


def work_on(session: Session, pipeline: Pipeline, items: int) -> None:
    """Process one claim with the counters at nothing."""
    for connection in (session.connection, session.side):
        counted(connection).forget()
    assert work_once(session, pipeline, size=ClaimSize(items=items, limit_bytes=1 << 24))


class TestClaim:
    """What the database is asked for one claim."""

    @pytest.mark.parametrize("items", [1, 16])
    def test_round_trips_of_a_claim_do_not_grow_with_its_records(
        self, connection: Connection, session: Session, items: int
    ) -> None:
        pipeline = queue_documents(connection, texts(600, chunks=3))
        work_on(session, pipeline, items)
        assert counted(session.connection).round_trips <= CLAIM_ROUND_TRIPS
        assert counted(session.side).round_trips <= SIDE_ROUND_TRIPS

    def test_statements_of_a_commit(self, connection: Connection, session: Session) -> None:
        pipeline = queue_documents(connection, texts(100, chunks=3))
        work_on(session, pipeline, 16)
        statements = counted(session.connection).statements
        first = next(n for n, text in enumerate(statements) if "pgembed.records" in text)
        assert len(statements[first:]) <= COMMIT_STATEMENTS, statements
        assert_converged(connection, "reports")

    def test_a_claim_of_changed_records_asks_once_for_the_vectors_that_they_keep(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, texts(300, chunks=3))
        work_on(session, pipeline, 300)
        connection.execute("update reports set body = body || ' Changed.'")
        enqueue(connection, pipeline, Selection())
        work_on(session, pipeline, 300)
        assert counted(session.connection).round_trips <= CLAIM_ROUND_TRIPS
        assert counted(session.side).round_trips <= SIDE_ROUND_TRIPS + 1

    def test_round_trips_of_a_claim_that_finds_nothing(
        self, connection: Connection, session: Session
    ) -> None:
        pipeline = queue_documents(connection, [])
        counted(session.connection).forget()
        assert work_once(session, pipeline) is None
        assert counted(session.connection).round_trips <= EMPTY_CLAIM_ROUND_TRIPS


class TestTokenising:
    """One pass over every document."""

    def test_document_is_tokenised_once(self) -> None:
        chunker = Chunker(tokenizer(), max_tokens=128, overlap_tokens=20)
        counting = CountingReader(chunker._reader)
        chunker._reader = counting
        documents = real_reports()
        chunker.chunk(documents)
        assert counting.texts == documents

    def test_only_documents_that_are_cut_have_their_cuts_rated(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chunker = Chunker(tokenizer(), max_tokens=128, overlap_tokens=20)
        rated: list[int] = []

        def rate(text: str, positions: NDArray[np.int64]) -> NDArray[np.uint8]:
            rated.append(len(positions))
            return text_classes(text, positions)

        monkeypatch.setattr(encoding, "text_classes", rate)
        chunked = chunker.chunk(real_reports())
        assert sum(rated) == sum(each.tokens for each in chunked if each.tokens > 128)

    def test_model_reads_the_ids_of_chunks_and_no_text(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = bundled_model()
        assert model.facts.feeding == "ids"
        (document,) = Chunker(tokenizer(), max_tokens=16, overlap_tokens=2).chunk(texts(1))
        monkeypatch.setattr(model, "tokenizer", None)
        monkeypatch.setattr(model._documents, "tokenizer", None)
        assert len(model.forward(document.chunks)) == len(document.chunks)


class ShapeModel:
    """Fulfils batch_runner.Model, computes nothing and notes the shapes that it is given."""

    name = "shapes"
    precision = "fp32"
    dimensions = 8
    chunks_in_fp32 = 0
    passes_at_once = 1

    def __init__(self, device: str) -> None:
        self.device = device
        self.limits = limits_for(device)
        self.shapes: set[tuple[int, int]] = set()
        self.batch_tokens = 0
        self.padding = 0

    @contextmanager
    def session(self) -> Iterator[None]:
        yield

    def sequence_tokens(self, chunk: Chunk) -> int:
        return len(chunk.token_ids) + 2

    def launch(
        self, chunks: Sequence[Chunk], *, length: int | None = None
    ) -> Callable[[], Vectors]:
        assert length is not None
        self.shapes.add((len(chunks), length))
        self.padding += len(chunks) * length - sum(map(self.sequence_tokens, chunks))
        self.batch_tokens += len(chunks) * length
        vectors = np.ones((len(chunks), self.dimensions), np.float32)
        return lambda: vectors

    def verify(self, rows: int, length: int) -> None:
        self.shapes.add((rows, length))


def embed_reports(device: str) -> ShapeModel:
    """Embed real reports in claims of many sizes, and return the model with what it saw."""
    model = ShapeModel(device)
    chunker = Chunker(tokenizer(), max_tokens=128, overlap_tokens=20)
    chunks = [chunk for each in chunker.chunk(real_reports()) for chunk in each.chunks]
    with closing(DeviceThread(lambda: model)) as thread:
        first, size = 0, 1
        while first < len(chunks):
            thread.embed(chunks[first : first + size])
            first, size = first + size, size * 2 + 1
    return model


class TestShapes:
    """Metal compiles a graph for every shape and keeps it."""

    def test_metal_sees_few_shapes(self) -> None:
        assert len(embed_reports("mps").shapes) <= METAL_SHAPES

    def test_model_is_opened_with_little_padding(self, monkeypatch: pytest.MonkeyPatch) -> None:
        computed: list[NDArray[np.int64]] = []
        vectors = LightNetwork.vectors

        def noted(network: LightNetwork, features: dict[str, Any], task: str) -> Any:
            ids = features["input_ids"].numpy()
            computed.append(features.get("attention_mask", np.ones_like(ids)))
            return vectors(network, features, task)

        monkeypatch.setattr(LightNetwork, "vectors", noted)
        resolved = resolve_model(DEFAULT_MODEL)
        EmbeddingModel.reference(resolved)
        assert sum(np.asarray(mask).size for mask in computed) < FEWEST_CANARY_TOKENS
        EmbeddingModel.load(resolved, device="cpu", precision="bf16")
        padding = np.concatenate([np.asarray(mask).ravel() == 0 for mask in computed])
        assert len(padding) > FEWEST_CANARY_TOKENS
        assert padding.mean() <= OPENING_PADDING

    def test_cpu_computes_little_padding(self) -> None:
        model = embed_reports("cpu")
        assert model.padding / model.batch_tokens <= CPU_PADDING
