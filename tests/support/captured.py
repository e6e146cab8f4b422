"""A pipeline with capture on."""

from __future__ import annotations

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install
from tests.support.corpus import make_source, texts
from tests.support.pipelines import REPORTS, make_pipeline
from tests.support.prepared import filled_by


def make_captured(connection: Connection, _session: Session) -> None:
    make_source(connection, texts(9))
    connection.execute("alter table public.reports add column other int default 0")
    made = make_pipeline(connection)
    install(connection, made)


def make_and_install(connection: Connection, source: Table = REPORTS, **fields: object) -> Pipeline:
    """Make a pipeline with capture on."""
    pipeline = make_pipeline(connection, source, **fields)  # type: ignore[arg-type]
    install(connection, pipeline)
    return pipeline


CAPTURED = filled_by(make_captured)
