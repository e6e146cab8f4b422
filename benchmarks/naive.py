"""The script that a person would write: fetch, split, encode, copy; one after the other."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import psycopg

BATCH_RECORDS = 256
CREATE = """
create table naive_vectors (
    id bigint generated always as identity primary key,
    fulltext_id bigint not null,
    chunk_index integer not null,
    text_chunk text not null,
    embedding vector(384) not null
)
"""
COPY = """
copy naive_vectors (fulltext_id, chunk_index, text_chunk, embedding) from stdin (format binary)
"""


class Script:
    """The model and the splitter, loaded once; `run` does the work for one database."""

    def __init__(self, model_path: str) -> None:
        from semantic_text_splitter import TextSplitter
        from sentence_transformers import SentenceTransformer
        from tokenizers import Tokenizer

        self.model = SentenceTransformer(model_path, device="cpu")
        self.tokenizer = Tokenizer.from_file(f"{model_path}/tokenizer.json")
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        self.splitter = TextSplitter.from_huggingface_tokenizer(self.tokenizer, 128, overlap=20)

    def run(self, conninfo: str) -> tuple[float, int, float]:
        """Embed ``public.reports``; returns records a second, chunks, chunks a second."""
        from pgvector.psycopg import register_vector

        with psycopg.connect(conninfo, autocommit=True) as connection:
            register_vector(connection)
            connection.execute(CREATE)
            started = time.perf_counter()
            reports = connection.execute("select id, body from reports order by id").fetchall()
            chunks = 0
            for first in range(0, len(reports), BATCH_RECORDS):
                chunks += self._embed(connection, reports[first : first + BATCH_RECORDS])
            seconds = time.perf_counter() - started
        return len(reports) / seconds, chunks, chunks / seconds

    def tokens(self, documents: Sequence[str]) -> int:
        """Return how many tokens the model reads of `documents`, special ones included."""
        chunks = [chunk for document in documents for chunk in self.splitter.chunks(document)]
        return sum(len(each.ids) for each in self.tokenizer.encode_batch(chunks))

    def _embed(self, connection: psycopg.Connection[Any], reports: list[tuple[int, str]]) -> int:
        rows = [
            (id_, index, text)
            for id_, body in reports
            for index, text in enumerate(self.splitter.chunks(body))
        ]
        vectors = self.model.encode([text for _, _, text in rows], show_progress_bar=False)
        with connection.cursor() as cursor, cursor.copy(COPY) as copy:
            copy.set_types(["int8", "int4", "text", "vector"])
            for row, vector in zip(rows, vectors, strict=True):
                copy.write_row((*row, vector))
        return len(rows)
