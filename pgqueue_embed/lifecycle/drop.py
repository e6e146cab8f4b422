"""Removing a pipeline with its queue, ledger and history."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import dependents
from pgqueue_embed.db.locks import in_short_waits
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.catalog import is_paused, pause_pipeline, resume_pipeline
from pgqueue_embed.pipeline.generations import successor_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import capture
from pgqueue_embed.source.trust import trusting
from pgqueue_embed.target import target_of
from pgqueue_embed.untrusted.shell import command


def drop_pipeline(connection: Connection, pipeline: Pipeline, *, delete_vectors: bool) -> None:
    """Remove the pipeline with its queue, ledger and history, and its target if asked, or nothing.

    Waits for the claims that workers hold. A next generation of it goes too, vectors and all. A
    target that was there before the pipeline is emptied, not dropped.

    Raises UsageError for what the role may not remove, or others use.
    """
    successor = successor_of(connection, pipeline)
    generations = [pipeline] if successor is None else [successor, pipeline]
    with _paused(connection, generations), connection.transaction():
        for each in generations:
            _remove(connection, each)
        # From here on users' writes wait, and what they had queued before is there.
        for each in generations:
            capture.remove(connection, each)
            _delete_work(connection, each)
            if delete_vectors or each is not pipeline:
                _drop_target(connection, each)


@contextmanager
def _paused(connection: Connection, pipelines: Sequence[Pipeline]) -> Iterator[None]:
    """Keep workers from claiming more of `pipelines`; those that stay after all go on as before."""
    active = [each for each in pipelines if not is_paused(connection, each)]
    for each in active:
        pause_pipeline(
            connection,
            each,
            f"it is being dropped; if that was cut short, drop it again, or go on:"
            f" {command('resume', each.name)}",
        )
    try:
        yield
    except BaseException:
        with suppress(psycopg.Error):
            for each in active:
                resume_pipeline(connection, each)
        raise


def _remove(connection: Connection, pipeline: Pipeline) -> None:
    # The cursors first: without them nothing is queued any more by a scan.
    _delete_rows(connection, "scans", pipeline)
    _delete_rows(connection, "adoptions", pipeline)
    _delete_work(connection, pipeline)
    # Behind the queue, as a switch locks it. Waits for everybody else who has queued something
    # and is not committed, and makes whoever comes later find no pipeline.
    connection.execute("select from pgembed.pipelines where id = %s for update", (pipeline.id,))
    _delete_rows(connection, "scans", pipeline)
    _delete_work(connection, pipeline)
    _delete_rows(connection, "records", pipeline)
    # Dead letters that were put back meanwhile have been waited for with their records.
    _delete_work(connection, pipeline)
    _delete_rows(connection, "batches", pipeline)
    _delete_rows(connection, "minutes", pipeline)
    connection.execute("delete from pgembed.pipelines where id = %s", (pipeline.id,))
    # Events have its name, which another may get; the pause of this removal is one of them.
    connection.execute("delete from pgembed.event_log where pipeline = %s", (pipeline.name,))


def _drop_target(connection: Connection, pipeline: Pipeline) -> None:
    target = target_of(pipeline)
    # A column that was there before is emptied by an UPDATE, which runs triggers of its table.
    is_emptied = pipeline.spec.into_column is not None and not pipeline.target_is_made
    try:
        with trusting(connection, pipeline.spec) if is_emptied else nullcontext():
            in_short_waits(connection, lambda: target.drop(connection), table=pipeline.target)
    except psycopg.errors.DependentObjectsStillExist as error:
        raise UsageError(f"{target} is used: {dependents(error)}; drop that first") from None


def _delete_work(connection: Connection, pipeline: Pipeline) -> None:
    # The commit of a claim that this waits for may have put records back.
    while _has_work(connection, pipeline):
        _delete_rows(connection, "work", pipeline)


def _has_work(connection: Connection, pipeline: Pipeline) -> bool:
    found = connection.value(
        "select exists (select 1 from pgembed.work where pipeline_id = %s)", (pipeline.id,)
    )
    return bool(found)


def _delete_rows(connection: Connection, table: str, pipeline: Pipeline) -> None:
    query = sql.SQL("delete from {} where pipeline_id = %s")
    connection.execute(query.format(sql.Identifier("pgembed", table)), (pipeline.id,))
