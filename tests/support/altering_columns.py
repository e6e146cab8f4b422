"""Vectors in a column that get a next generation."""

from __future__ import annotations

from pgqueue_embed.claim.process import Session
from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.alter import Changes
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support import altering
from tests.support.columns import assert_column_converged, into_column, whole_chunker
from tests.support.corpus import make_source, texts
from tests.support.fakes import FakeDevice
from tests.support.prepared import filled_by
from tests.support.working import drain

OTHER_MODEL = Changes(model="another/model")


# All that a person could see of the table's columns and what hangs on them.
SHAPE = """
select attname, format_type(atttypid, atttypmod), attacl::text, col_description(attrelid, attnum)
from pg_attribute
where attrelid = 'public.reports'::regclass and attnum > 0 and not attisdropped
union all
select relname, pg_get_indexdef(indexrelid), indisvalid::text, null
from pg_index join pg_class on pg_class.oid = indexrelid
where indrelid = 'public.reports'::regclass
order by 1
"""


def make_reports(connection: Connection, session: Session) -> None:
    """Make a pipeline into a column, whose records are embedded, one of them empty."""
    make_source(connection, [*texts(20), None])
    pipeline = into_column(connection)
    enqueue(connection, pipeline, Selection())
    embed(session, pipeline)


def embed(session: Session, pipeline: Pipeline) -> None:
    device = FakeDevice(dimensions=pipeline.dimensions)
    drain(session, pipeline, device, chunker=whole_chunker())


def begin(connection: Connection, pipeline: Pipeline, changes: Changes = OTHER_MODEL) -> Pipeline:
    """Make a next generation and queue its records."""
    return altering.begin(connection, pipeline, changes)


def shape(connection: Connection) -> list[tuple[object, ...]]:
    return connection.execute(SHAPE).fetchall()


def dimensions(connection: Connection) -> set[int]:
    """Return the dimensions of the vectors that one statement sees."""
    rows = connection.execute("select public.vector_dims(embedding) from public.reports")
    return {found for (found,) in rows if found is not None}


def assert_column_converged_in(connection: Connection, pipeline: Pipeline) -> None:
    """Do what `assert_column_converged` does for vectors of the pipeline's dimensions."""
    assert_column_converged(connection, pipeline, pipeline.dimensions)


COLUMN_EMBEDDED = filled_by(make_reports)
