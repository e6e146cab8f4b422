"""The whole examination, in the order in which one problem hides the next."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from pgqueue_embed.db import applications
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.doctor import database, pipeline
from pgqueue_embed.doctor.check import Check, Mark, failed, guarded_checks, warning
from pgqueue_embed.doctor.machine import Models, check_machine
from pgqueue_embed.embedding import AS_ITS_FILES_SAY, ModelUse
from pgqueue_embed.errors import DatabaseUnavailable
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL, Pipeline


def examine(
    conninfo: str,
    *,
    model_name: str | None = None,
    use: ModelUse = AS_ITS_FILES_SAY,
    pipeline_name: str | None = None,
) -> Iterator[Check]:
    """Yield one check after the other, going on after a failure where that makes sense.

    `model_name` is a model to try on this machine as `use` says, `pipeline_name` the one pipeline
    to look at. Without any pipeline, the default model is tried. Raises UsageError for an unknown
    pipeline.
    """
    yield from guarded_checks("machine", check_machine)
    models = Models()
    pipelines: list[Pipeline] = []
    try:
        connection = connect(conninfo, application_name=applications.DOCTOR)
    except DatabaseUnavailable as error:
        fix = "check address, user and password (--dsn, PGEMBED_DSN, ~/.pgpass), and the server"
        yield failed("connection", str(error), fix)
    else:
        with connection:
            if (yield from _database_is_ready(connection, conninfo)):
                pipelines = load_pipelines(connection, [pipeline_name] if pipeline_name else [])
                yield from _examine_pipelines(connection, models, pipelines)
    tried = model_name or (None if pipelines else DEFAULT_MODEL)
    if tried:
        yield from guarded_checks(tried, lambda: models.check_model(tried, use))


def _database_is_ready(connection: Connection, conninfo: str) -> Generator[Check, None, bool]:
    yield from guarded_checks("connection", lambda: database.check_connection(connection, conninfo))
    yield from guarded_checks("private server", lambda: database.check_account(conninfo))
    yield from guarded_checks("PostgreSQL", lambda: database.check_server(connection))
    yield from guarded_checks("pgvector", lambda: database.check_extension(connection))
    schema = list(guarded_checks("schema", lambda: database.check_migrations(connection)))
    yield from schema
    if any(check.mark is Mark.FAILED for check in schema):
        return False
    rights = list(guarded_checks("rights", lambda: database.check_rights(connection)))
    yield from rights
    return connection.execute(READABLE).fetchone() == (True,)


READABLE = "select has_table_privilege('pgembed.pipelines', 'select')"


def _examine_pipelines(
    connection: Connection, models: Models, pipelines: Sequence[Pipeline]
) -> Iterator[Check]:
    if not pipelines:
        fix = "make one: pgembed create NAME --source-table TABLE"
        yield warning("pipelines", "there is none yet", fix)
    for each in pipelines:
        yield from _examine_pipeline(connection, models, each)


def _examine_pipeline(
    connection: Connection, models: Models, examined: Pipeline
) -> Iterator[Check]:
    name = examined.name
    tables = list(guarded_checks(name, lambda: pipeline.check_tables(connection, examined)))
    yield from tables
    yield from guarded_checks(name, lambda: pipeline.check_capture(connection, examined))
    yield from guarded_checks(name, lambda: pipeline.check_indexes(connection, examined))
    yield from guarded_checks(name, lambda: pipeline.check_words(connection, examined))
    yield from guarded_checks(name, lambda: models.check_pipeline(examined))
    model = models.of_pipeline(examined)
    # What is wrong with the tables has been told.
    if model is not None and not any(check.mark is Mark.FAILED for check in tables):
        tokenizer = model.tokenizer
        yield from guarded_checks(
            name, lambda: pipeline.check_text(connection, examined, tokenizer)
        )
