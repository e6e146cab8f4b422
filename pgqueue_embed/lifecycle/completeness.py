"""The records that a next generation lacks before it may take the place of the present one."""

from __future__ import annotations

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import NotFound, UsageError
from pgqueue_embed.pipeline.catalog import why_paused
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.read import source_names
from pgqueue_embed.untrusted.shell import command


class NotComplete(UsageError):
    """The next generation has records to embed yet; switch again later."""


class NotCovered(NotComplete):
    """It lacks records that the old one has, and that are not queued for it."""


# Changes that came just now wait for both generations. Bulk loading, retries, and what the old one
# has settled (see hand_on.hand_on) must be over.
PENDING = """
select
    (
        select coalesce(sum(records), 0)
        from pgembed.work
        where work.pipeline_id = pipelines.id and priority > 0
    ),
    case when state = 'paused' then state_reason end
from pgembed.pipelines
where id = %s
"""


def pending_records(connection: Connection, successor: Pipeline) -> int:
    """Return how many records the next generation has to embed before it is complete.

    Raises UsageError if there are some and it is paused: they would be waited for in vain. And
    NotFound if there is no such generation any more, which is no complete one.
    """
    row = connection.execute(PENDING, (successor.id,)).fetchone()
    if row is None:
        raise NotFound(f"{successor.name} has just been switched to, or given up, elsewhere")
    pending, paused = row
    if pending and paused is not None:
        raise UsageError(
            f"{successor.name} has {pending:,} records to embed yet, and is paused:"
            f" {why_paused(successor.name, paused)}; switch then"
        )
    return int(pending)


def check_complete(connection: Connection, successor: Pipeline) -> None:
    """Raise NotComplete if `successor` has records to embed before it is complete."""
    pending = pending_records(connection, successor)
    if pending:
        raise _not_complete(successor, pending)


def _not_complete(successor: Pipeline, pending: int) -> NotComplete:
    return NotComplete(
        f"{successor.name} has {pending:,} records to embed yet; see how far it is with"
        " pgembed status, and switch when it is complete, or with --wait as soon as it is"
    )


# Those that the old generation has settled and the next one has not, though its source has them.
MISSING = """
with missing as materialized (
    select coalesce(known.long_key, known.key) as key
    from pgembed.records as known
    where known.pipeline_id = %(pipeline_id)s
        and known.state is not null
        and not exists (
            select
            from pgembed.records as covered
            where covered.pipeline_id = %(successor_id)s
                and covered.key = known.key
                and covered.state is not null
        )
)
select count(*)
from missing as listed
where exists (select from {source} as source where {source_key} = {listed_key})
"""


def check_covered(connection: Connection, pipeline: Pipeline, successor: Pipeline) -> None:
    """Raise NotCovered unless the ledger of `successor` has whatever that of `pipeline` has.

    It may lack what a claim settled that had looked for a successor before that was made, and what
    waits as a change without having been embedded before.
    """
    ids = {"pipeline_id": pipeline.id, "successor_id": successor.id}
    query = sql.SQL(MISSING).format(**source_names(successor))
    missing = connection.value(query, ids)
    if missing:
        raise NotCovered(
            f"{successor.name} lacks {missing:,} records that {pipeline.name} has; they are queued"
            " for it now: switch when it is complete, or with --wait as soon as it is"
        )


# Dead letters of the next generation that the old one has vectors of, or found empty; and how many
# of these the next one will try again, since they have changed or a person wants it.
FAILED = """
with failed as (
    select coalesce(failed.long_key, failed.key) as key
    from pgembed.records as failed
    join pgembed.records as known
        on known.pipeline_id = %(pipeline_id)s
        and known.key = failed.key
        and known.state in ('embedded', 'empty')
    where failed.pipeline_id = %(successor_id)s and failed.dead_at is not null
),
waiting as (
    select unnest(keys) as key from pgembed.work where pipeline_id = %(successor_id)s
)
select count(*), count(*) filter (where key in (select key from waiting))
from failed
"""


def check_failures(
    connection: Connection, pipeline: Pipeline, successor: Pipeline, *, retried_too: bool
) -> None:
    """Raise UsageError if records failed in `successor` that `pipeline` has.

    For those that are to be tried again, NotComplete with `retried_too`.
    """
    ids = {"pipeline_id": pipeline.id, "successor_id": successor.id}
    [(failed, waiting)] = connection.execute(FAILED, ids).fetchall()
    if failed > waiting:
        raise UsageError(
            f"{failed - waiting:,} records failed in {successor.name} that {pipeline.name} has; see"
            f" {command('failures', successor.name)}, or switch in spite of them with --force"
        )
    if waiting and retried_too:
        raise _not_complete(successor, waiting)
