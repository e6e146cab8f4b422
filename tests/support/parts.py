"""A target table in parts."""

from __future__ import annotations

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.vector_search.index import (
    plan,
)
from pgqueue_embed.vector_search.index_build import build_index
from pgqueue_embed.vector_search.index_plan import IndexOptions
from tests.support.corpus import texts
from tests.support.prepared import filled_by
from tests.support.working import embed_documents


def make_reports(connection: Connection, session: Session) -> None:
    """Embed 30 records into three parts, with an index to be."""
    embed_documents(connection, session, texts(30), partition_by="hash:3", index_method="hnsw")


REPORTS_IN_PARTS = filled_by(make_reports)


def build(connection: Connection, pipeline: Pipeline) -> None:
    build_index(connection, pipeline, plan(connection, pipeline, IndexOptions()))


def of_parts(connection: Connection) -> list[tuple[int, str, bool]]:
    """Return the indexes of parts that are of no whole: oid, part and whether it can be used."""
    return connection.execute(
        "select to_regclass('public.' || quote_ident(index_name))::oid::bigint, part, is_valid"
        " from pgembed.vector_indexes where part is not null order by part"
    ).fetchall()
