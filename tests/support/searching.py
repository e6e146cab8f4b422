"""Four thousand chunks to search in, whose nearest are known by brute force."""

from __future__ import annotations

from functools import partial

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.hit import Hit
from pgqueue_embed.vector_search.index import plan
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from pgqueue_embed.vector_search.query import search
from pgqueue_embed.vector_search.request import SearchRequest
from tests.support.pipelines import make_pipeline
from tests.support.prepared import filled_by

ROWS = 2_000
CHUNKS = 2 * ROWS
QUERY = np.eye(1, 8, dtype=np.float32)[0]

SOURCE = """
create table public.reports as
select n as id, 'text of ' || n as body, n % 50 as kind, date '2026-01-01' + n as made
from generate_series(1, {rows}) as n;
alter table public.reports add primary key (id);
create index on public.reports (kind)
"""

# Two chunks a record, in directions that depend on both, and not on what a condition looks at.
FILL = """
insert into {target} (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens,
    embedding)
select id, id || '-' || chunk, chunk, 'chunk ' || chunk || ' of ' || id, 10, 20, 2,
    array[cosd(angle), sind(angle), 0, 0, 0, 0, 0, 0]
from (
    select id, chunk, 180.0 * ((id * 7919 + chunk * 1009) %% 10007) / 10007 as angle
    from public.reports cross join generate_series(0, 1) as chunk
) as angles
"""

GIVES_UP = "hnsw that gives up"
INDEXES = ("exact", "hnsw", GIVES_UP, "ivfflat")

# Of 2,000 rows: none, 2, 40, 1,000.
CONDITIONS = ("kind = 5000", "id % 1000 = 7", "kind = 7", "id % 2 = 0")


def brute_force(connection: Connection, where: str) -> list[tuple[int, int, float]]:
    """Return (id, chunk, similarity) of all that a condition lets in, best first."""
    rows = connection.execute(
        "select reports.id, chunk_index, embedding::real[] from reports join reports_chunks"
        f" on fulltext_id = reports.id where reports.id in (select id from reports where {where})"
    )
    found = [(key, index, float(np.dot(QUERY, vector))) for key, index, vector in rows]
    return sorted(found, key=lambda each: -each[2])


def ask(conninfo: str, pipeline: Pipeline, **asked: object) -> list[Hit]:
    request = SearchRequest(**{"threshold": -1.0, **asked})  # type: ignore[arg-type]
    with connect(conninfo) as own:
        return search(own, pipeline, QUERY, request)


def scores(hits: list[Hit]) -> NDArray[np.float64]:
    return np.array([hit.score for hit in hits])


# What tests search in


def make_reports(connection: Connection) -> Pipeline:
    """Make a source with columns to ask for and a pipeline over it, two chunks a record."""
    connection.execute(SOURCE.format(rows=ROWS))
    pipeline = make_pipeline(connection, copy_columns=("kind",))
    connection.execute(sql.SQL(FILL).format(target=pipeline.target.identifier), ())
    return pipeline


def make_indexed(connection: Connection, _session: Session, kind: str) -> None:
    """Make the same with one of INDEXES."""
    pipeline = make_reports(connection)
    if kind != "exact":
        options = IndexOptions(method=kind.split()[0])
        build_index(connection, pipeline, plan(connection, pipeline, options))


# A file's PREPARED for the fixtures `indexed` and `reports`.
SEARCHED = {
    "indexed": {kind: filled_by(partial(make_indexed, kind=kind)) for kind in INDEXES},
    "reports": filled_by(partial(make_indexed, kind="exact")),
}
