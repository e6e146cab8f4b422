"""Indexes of smaller vectors: size, time of the build, and what searches by them find.

Of real vectors, those of reports by the default model; what is right is computed by NumPy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from benchmarks.bench import Bench
from benchmarks.ceiling import distinct_chunks
from benchmarks.corpora import maude
from benchmarks.database import drop_database, fake_identity, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, Reach, percentile
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.embedding import EmbeddingModel, resolve_model
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL, Pipeline
from pgqueue_embed.target import ChunkRows, target_of
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.corpus import make_source

PART = "search"
K = 10
QUERIES = 300
BATCH = 32
STATEMENT_ROWS = 1_000

# Of the size of an index of whole vectors, and the recall after ordering by the whole ones.
LARGEST_SHARE = {"halfvec": 0.55, "binary": 0.2}
LEAST_RECALL = 0.985


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    size_bytes: int
    build_seconds: float
    recall: float
    search_seconds: list[float]


def measure(bench: Bench) -> Iterator[Measured]:
    """Build each kind of index on the vectors of real chunks, and search by it."""
    documents = maude().sample(bench.sizes.maude_records).documents
    bench.say(f"embedding the chunks of {len(documents):,} reports")
    vectors = embed(documents)
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            make_source(connection, [])
            pipeline = make_pipeline(connection, fake_identity(vectors.shape[1]))
            fill(connection, pipeline, vectors)
            # As in a large table, where nothing but the index is quick.
            connection.execute("set enable_seqscan = off")
            connection.execute("set enable_sort = off")
            outcomes = {}
            for quantize in ("none", "halfvec", "binary"):
                bench.say(f"an index of {quantize} over {len(vectors):,} vectors")
                outcomes[quantize] = _outcome(connection, pipeline, vectors, quantize)
    finally:
        drop_database(bench.server, conninfo)
    yield _measured(outcomes, f"MAUDE: {len(vectors):,} x {vectors.shape[1]}")


def embed(documents: Sequence[str]) -> NDArray[np.float32]:
    """Return the vectors of the chunks of documents, of shape (chunks, 384)."""
    model = EmbeddingModel.load(resolve_model(DEFAULT_MODEL), device="cpu", precision="fp32")
    chunks = distinct_chunks(model, documents)
    chunks.sort(key=model.sequence_tokens)
    batches = [chunks[first : first + BATCH] for first in range(0, len(chunks), BATCH)]
    with model.session():
        return np.concatenate([model.forward(batch) for batch in batches])


def fill(connection: Connection, pipeline: Pipeline, vectors: NDArray[np.float32]) -> None:
    """Fill the pipeline's target with a chunk a record, whose key is the place of its vector."""
    codec = VectorCodec(connection)
    for first in range(0, len(vectors), STATEMENT_ROWS):
        part = vectors[first : first + STATEMENT_ROWS]
        keys = [str(number) for number in range(first, first + len(part))]
        chunks = ChunkRows(
            keys=keys,
            document_hashes=[b""] * len(keys),
            chunk_indexes=[0] * len(keys),
            texts=["text"] * len(keys),
            start_chars=[0] * len(keys),
            end_chars=[4] * len(keys),
            tokens=[1] * len(keys),
            vectors=part,
        )
        target_of(pipeline).replace(connection, codec, keys, [chunks])
    connection.execute("vacuum analyze public.reports_vectors")


def _outcome(
    connection: Connection, pipeline: Pipeline, vectors: NDArray[np.float32], quantize: str
) -> _Outcome:
    options = IndexOptions(quantize=quantize)
    started = time.perf_counter()
    name = build_index(connection, pipeline, plan(connection, pipeline, options))
    took = time.perf_counter() - started
    index = sql.Identifier("public", name)
    size = connection.value("select pg_relation_size(%s::regclass)", (f'public."{name}"',))
    shares, times = [], []
    for number in np.random.default_rng(0).permutation(len(vectors))[:QUERIES]:
        share, seconds = _search(connection, pipeline, vectors, int(number))
        shares.append(share)
        times.append(seconds)
    connection.execute(sql.SQL("drop index {}").format(index))
    return _Outcome(
        size_bytes=int(size),
        build_seconds=took,
        recall=float(np.mean(shares)),
        search_seconds=times,
    )


def _search(
    connection: Connection, pipeline: Pipeline, vectors: NDArray[np.float32], number: int
) -> tuple[float, float]:
    """Return the share that was found of the K nearest chunks but itself, and the seconds."""
    request = SearchRequest(limit=K + 1, threshold=-1.0)
    started = time.perf_counter()
    hits = search(connection, pipeline, vectors[number], request)
    took = time.perf_counter() - started
    similarities = vectors @ vectors[number]
    similarities[number] = -np.inf
    least = np.partition(similarities, -K)[-K] - 1e-6
    right = sum(similarities[int(hit.key)] >= least for hit in hits)
    return min(right, K) / K, took


def _measured(outcomes: dict[str, _Outcome], corpus: str) -> Measured:
    def figure(name: str, unit: str, value: float) -> Figure:
        return Figure(part=PART, name=name, corpus=corpus, unit=unit, values=[value])

    found = Measured()
    for quantize, each in outcomes.items():
        name = f"index of {quantize}"
        found.figures += [
            figure(f"{name}, size", "MB", each.size_bytes / 1024**2),
            figure(f"{name}, build", "s", each.build_seconds),
            figure(f"{name}, recall@{K}", "", each.recall),
            figure(f"{name}, search p50", "ms", 1e3 * percentile(each.search_seconds, 50)),
            figure(f"{name}, search p95", "ms", 1e3 * percentile(each.search_seconds, 95)),
        ]
    for quantize, share in LARGEST_SHARE.items():
        each = outcomes[quantize]
        found.reaches += [
            Reach(
                name=f"index of {quantize}, size against whole vectors",
                measured=each.size_bytes / outcomes["none"].size_bytes,
                target=share,
                at_most=True,
            ),
            Reach(
                name=f"index of {quantize}, recall@{K} after ordering by the whole vectors",
                measured=each.recall,
                target=LEAST_RECALL,
                unit="",
            ),
        ]
    return found
