"""Words beside vectors: what hybrid searches find of four judged sets, and how long words take.

The sets are made of the reports themselves, so that nobody's opinion is in them: identifiers that
one report has, halves of a sentence of one, brand names and generic names of up to thirty. Where a
server with pg_textsearch is at hand, it searches them, too.
"""

from __future__ import annotations

import csv
import gzip
import random
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from benchmarks.bench import Bench
from benchmarks.corpora import MAUDE
from benchmarks.database import drop_database, fake_identity, make_pipeline, new_database
from benchmarks.figures import Figure, Measured
from pgqueue_embed.chunking import Chunk, Chunker
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.embedding import EmbeddingModel, ModelUse, resolve_model
from pgqueue_embed.embedding.light_encoder import LightEncoder, open_light_encoder
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL, Pipeline
from pgqueue_embed.target import ChunkRows, target_of
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.lexical_index import build_lexical_index
from pgqueue_embed.vector_search.measures import by_query, estimates
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.weighing import rank
from tests.support.corpus import make_source
from tests.support.textsearch import has_textsearch, textsearch_server

PART = "hybrid"
RECORDS = 1_000
BATCH = 32
COPIES = 50

# Words of a query by its id, and the keys of the records that answer it.
Queries = Mapping[str, tuple[str, set[str]]]

Encode = Callable[[str], NDArray[np.float32]]

QUESTIONS = ("unit-7-1200", "battery overheated", "the stent fractured while it was deployed")


def measure(bench: Bench) -> Iterator[Measured]:
    """Search the judged sets by vectors, and by both; then a larger table by words."""
    rows = read_rows()[: min(RECORDS, bench.sizes.maude_records)]
    resolved = resolve_model(DEFAULT_MODEL)
    model = EmbeddingModel.load(resolved, device="cpu", precision="fp32")
    owners, chunks = cut(model, [row["foi_text"] for row in rows])
    bench.say(f"embedding {len(chunks):,} chunks")
    vectors = embed(model, chunks)
    encode = cache(partial(_encoded, open_light_encoder(resolved, ModelUse()), model))
    sets = judged_sets(rows)
    conninfo = new_database(bench.server)
    try:
        with connect(conninfo) as connection:
            pipeline = _indexed(connection, owners, chunks, vectors)
            for name, queries in sets.items():
                bench.say(name)
                yield _quality(connection, pipeline, encode, name, queries)
            bench.say(f"copying the chunks {COPIES} times")
            copy(connection)
            yield _time(connection, pipeline, bench.rounds)
    finally:
        drop_database(bench.server, conninfo)
    if has_textsearch():
        with textsearch_server() as place, connect(place) as connection:
            connection.execute("create extension pg_textsearch schema public")
            pipeline = _indexed(connection, owners, chunks, vectors)
            for name, queries in sets.items():
                bench.say(f"{name}, by pg_textsearch")
                yield _quality(connection, pipeline, encode, f"{name}, pg_textsearch", queries)


def _indexed(
    connection: Connection,
    owners: Sequence[int],
    chunks: Sequence[Chunk],
    vectors: NDArray[np.float32],
) -> Pipeline:
    """Make a pipeline with `chunks`, whose words are indexed."""
    make_source(connection, [])
    pipeline = make_pipeline(connection, fake_identity(vectors.shape[1]))
    fill(connection, pipeline, owners, chunks, vectors)
    build_lexical_index(connection, pipeline)
    return pipeline


def _encoded(light: LightEncoder | None, model: EmbeddingModel, words: str) -> NDArray[np.float32]:
    """Return the vector of a query as `pgembed search` computes it."""
    vector = light.encode(words) if light else None
    return model.encode_query(words) if vector is None else vector


def read_rows() -> list[dict[str, str]]:
    """Return the reports with their columns."""
    with gzip.open(MAUDE, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def cut(model: EmbeddingModel, documents: Sequence[str]) -> tuple[list[int], list[Chunk]]:
    """Return the chunks of `documents`, and the position of the document of each."""
    chunker = Chunker(model.tokenizer, max_tokens=128, overlap_tokens=20)
    found = [
        (at, chunk) for at, of_one in enumerate(chunker.chunk(documents)) for chunk in of_one.chunks
    ]
    return [at for at, _ in found], [chunk for _, chunk in found]


def embed(model: EmbeddingModel, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
    """Return the vectors of `chunks`, shape (chunks, dimensions)."""
    order = sorted(range(len(chunks)), key=lambda at: len(chunks[at].token_ids))
    vectors = np.empty((len(chunks), model.dimensions), np.float32)
    for first in range(0, len(order), BATCH):
        batch = order[first : first + BATCH]
        vectors[batch] = model.forward([chunks[at] for at in batch])
    return vectors


def fill(
    connection: Connection,
    pipeline: Pipeline,
    owners: Sequence[int],
    chunks: Sequence[Chunk],
    vectors: NDArray[np.float32],
) -> None:
    """Write the chunks; a record's key is the position of its document."""
    rows = ChunkRows(
        keys=[str(each) for each in owners],
        document_hashes=[b""] * len(chunks),
        chunk_indexes=[chunk.index for chunk in chunks],
        texts=[chunk.text for chunk in chunks],
        start_chars=[chunk.start for chunk in chunks],
        end_chars=[chunk.end for chunk in chunks],
        tokens=[len(chunk.token_ids) for chunk in chunks],
        vectors=vectors,
    )
    target_of(pipeline).replace(connection, VectorCodec(connection), rows.keys, [rows])


def judged_sets(rows: Sequence[Mapping[str, str]]) -> dict[str, Queries]:
    """Return the queries of each set with their answers, always the same ones."""
    source = random.Random(0)
    return {
        "identifiers": _identifiers(source, rows),
        "half sentences": _half_sentences(source, rows),
        "brand names": _values(source, rows, "brand_name"),
        "generic names": _values(source, rows, "generic_name"),
    }


def _drawn(source: random.Random, found: Mapping[str, set[str]], count: int) -> Queries:
    words = list(found)
    source.shuffle(words)
    return {str(at): (each, found[each]) for at, each in enumerate(words[:count])}


def _identifiers(source: random.Random, rows: Sequence[Mapping[str, str]]) -> Queries:
    having: dict[str, set[str]] = defaultdict(set)
    for at, row in enumerate(rows):
        for each in re.findall(r"\b(?=[A-Z0-9-]*\d)[A-Z0-9][A-Z0-9-]{5,}\b", row["foi_text"]):
            having[each].add(str(at))
    of_one = {
        each: keys
        for each, keys in having.items()
        if len(keys) == 1 and sum(character.isdigit() for character in each) >= 4
    }
    return _drawn(source, of_one, 100)


def _values(source: random.Random, rows: Sequence[Mapping[str, str]], column: str) -> Queries:
    having: dict[str, set[str]] = defaultdict(set)
    for at, row in enumerate(rows):
        if row[column].strip():
            having[row[column].strip()].add(str(at))
    return _drawn(source, {k: keys for k, keys in having.items() if 2 <= len(keys) <= 30}, 100)


def _half_sentences(source: random.Random, rows: Sequence[Mapping[str, str]]) -> Queries:
    found: dict[str, set[str]] = {}
    for at, row in enumerate(rows):
        sentences = [each.split() for each in re.split(r"(?<=[.!?])\s+", row["foi_text"])]
        usable = [each for each in sentences if 8 <= len(each) <= 30]
        if usable:
            words = source.choice(usable)
            kept = sorted(source.sample(range(len(words)), max(4, len(words) // 2)))
            found[" ".join(words[each] for each in kept)] = {str(at)}
    return _drawn(source, found, 150)


def _quality(
    connection: Connection, pipeline: Pipeline, encode: Encode, name: str, queries: Queries
) -> Measured:
    """Return nDCG@10 by vectors, and by both with the usual weight."""

    def find(words: str, request: SearchRequest) -> list[Hit]:
        return search(connection, pipeline, encode(words), request)

    rankings = rank(find, {each: words for each, (words, _) in queries.items()})
    judged = {each: dict.fromkeys(keys, 1.0) for each, (_, keys) in queries.items()}
    vectors, hybrid = (
        by_query(rankings.fused(list(queries), weight), judged)[:, :1] for weight in (0.0, 0.5)
    )
    *_, difference = estimates(np.concatenate([vectors, hybrid, hybrid - vectors], axis=1), 0)
    return Measured(
        figures=[
            Figure(
                part=PART,
                name=f"{name}, {kind}",
                corpus=f"{len(queries)} queries",
                unit="nDCG@10",
                values=[float(values.mean())],
                note=note,
            )
            for kind, values, note in (
                ("vectors", vectors, ""),
                (
                    "hybrid",
                    hybrid,
                    f"{difference.mean:+.3f}, {difference.low:+.3f} to {difference.high:+.3f}",
                ),
            )
        ]
    )


COPY = """
insert into public.reports_vectors
    (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens, embedding)
select
    fulltext_id + 1000000 * copy, chunk_id || '-' || copy, chunk_index,
    text_chunk || ' unit-' || copy || '-' || id, start_char, end_char, tokens, embedding
from public.reports_vectors
cross join generate_series(1, %s) as copy
"""


def copy(connection: Connection) -> None:
    """Add copies of all chunks, each with an identifier of its own."""
    connection.execute(COPY, (COPIES,))
    connection.execute("vacuum analyze public.reports_vectors")


def _time(connection: Connection, pipeline: Pipeline, rounds: int) -> Measured:
    """Return how long words take by themselves: a hybrid search less one by vectors alone."""
    vector = np.full(pipeline.dimensions, pipeline.dimensions**-0.5, np.float32)
    chunks = connection.value("select count(*) from public.reports_vectors")
    size = connection.value("select pg_indexes_size('public.reports_vectors')") / chunks

    def seconds(words: str | None) -> float:
        started = time.perf_counter()
        search(connection, pipeline, vector, SearchRequest(limit=10, threshold=-1.0, words=words))
        return time.perf_counter() - started

    seconds(None)
    return Measured(
        figures=[
            Figure(
                part=PART,
                name=f"words: {words}",
                corpus=f"{chunks:,} chunks",
                unit="ms",
                values=[1000 * (seconds(words) - seconds(None)) for _ in range(rounds)],
                note=f"all indexes: {size:,.0f} bytes a chunk",
            )
            for words in QUESTIONS
        ]
    )
