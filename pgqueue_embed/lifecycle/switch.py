"""Switching to the next generation: one transaction in which names, queue and vectors change hands.

It happens once: both generations' rows are locked, so that neither settles anything, and looked at
anew. The next one takes the place of the old one only if it has settled whatever that has; what
still waits for the old one, waits for it then. Until its commit nothing has happened, and after it
nothing but cleaning up is left to do, which `finish` does as often as it takes. Readers of the
target table wait for the moment of the switch, and a claim of the old generation that writes later
finds its pipeline gone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import nullcontext

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import dependents, first_line
from pgqueue_embed.db.locks import LOCK_SECONDS, in_short_waits, set_lock_timeout
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.alter import catch_up
from pgqueue_embed.lifecycle.cleanup import finish
from pgqueue_embed.lifecycle.completeness import (
    NotComplete,
    NotCovered,
    check_complete,
    check_covered,
    check_failures,
    pending_records,
)
from pgqueue_embed.lifecycle.replace import replacement_of
from pgqueue_embed.pipeline.catalog import MEND_AND_RESUME, is_current, load_pipeline
from pgqueue_embed.pipeline.generations import successor_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue import capture
from pgqueue_embed.queue.claims import no_claims
from pgqueue_embed.queue.housekeeping import move_work_to_successors
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.index import plan_of_copies
from pgqueue_embed.vector_search.index_build import build_settings
from pgqueue_embed.vector_search.index_upkeep import note_checked

# A claim of the old generation is waited for as long as one may take on a slow machine, and longer
# than a lease: meanwhile workers have all their time for the next one.
CLAIM_SECONDS = 300.0

# Workers need so long for what was queued last; longer is for whoever asks for it.
SETTLE_SECONDS = 20.0

# What the last claims of the old generation have handed on is waited for while it gets less;
# between two commits of the next generation lies a claim of a slow machine.
STALL_SECONDS = 120.0
POLL_SECONDS = 0.2

# While the old generation settles records, the next one has some to embed at almost any moment.
# With so few left, the old one is kept from claiming until they are done.
LAST_RECORDS = 10_000


def switch(
    connection: Connection,
    pipeline: Pipeline,
    *,
    force: bool = False,
    patience_seconds: float = 0.0,
    on_step: Callable[[str], None] = lambda _: None,
) -> Pipeline:
    """Put the next generation in the place of `pipeline`, and return it under its new name.

    Raises NotComplete if records wait after `patience_seconds` still, UsageError when there is no
    next generation, when records failed in it that the old one has (not with `force`), or when
    something of the old table cannot be carried over.
    """
    successor = successor_of(connection, pipeline)
    if successor is None:
        raise UsageError(f"{pipeline.name} has no next generation to switch to")
    try:
        _wait_until_last_records(connection, successor, patience_seconds, on_step)
        on_step("looking for what has changed meanwhile")
        if catch_up(connection, pipeline, successor):
            # A record that is being claimed is queued once more, however often one looks.
            patience_seconds = max(patience_seconds, SETTLE_SECONDS)
        _make_ready(connection, pipeline, successor, force=force, on_step=on_step)
        _exchange_when_complete(
            connection, pipeline, successor, patience_seconds, force=force, on_step=on_step
        )
    except TARGET_REPLACED:
        if is_current(connection, successor):
            raise
        raise UsageError(_TOO_LATE.format(pipeline.name)) from None
    switched = load_pipeline(connection, pipeline.name)
    finish(connection, switched)
    return switched


# What the server says of a target that another switch takes away while it is looked at; its
# functions that describe an index say "could not open relation".
TARGET_REPLACED = (
    psycopg.errors.UndefinedTable,
    psycopg.errors.UndefinedColumn,
    psycopg.errors.InternalError_,
)

_TOO_LATE = "{} has just been switched, or that was given up, by another session"


def _make_ready(
    connection: Connection,
    pipeline: Pipeline,
    successor: Pipeline,
    *,
    force: bool,
    on_step: Callable[[str], None],
) -> None:
    """Do everything that can be done while both generations are in use."""
    if not force:
        check_failures(connection, pipeline, successor, retried_too=False)
    replacement = replacement_of(pipeline, successor)
    replacement.check(connection)
    on_step("building the indexes that the old vectors have")
    plan = plan_of_copies(connection, pipeline, successor)
    with nullcontext() if plan is None else build_settings(connection, plan):
        replacement.copy_indexes(connection)
    if plan is not None:
        note_checked(connection, successor)


def _wait_until_last_records(
    connection: Connection,
    successor: Pipeline,
    patience_seconds: float,
    on_step: Callable[[str], None],
) -> None:
    """Wait until at most LAST_RECORDS are left; raises NotComplete if any are when time is up."""
    deadline = time.monotonic() + patience_seconds
    while time.monotonic() < deadline:
        pending = pending_records(connection, successor)
        if pending <= LAST_RECORDS:
            return
        on_step(f"{pending:,} records to embed yet")
        time.sleep(POLL_SECONDS)
    check_complete(connection, successor)


def _wait_for_handed_on(
    connection: Connection, successor: Pipeline, on_step: Callable[[str], None]
) -> None:
    """Wait until nothing is left; raises NotComplete if what is left has stopped getting less."""
    least, deadline = math.inf, 0.0
    while pending := pending_records(connection, successor):
        if pending < least:
            least, deadline = pending, time.monotonic() + STALL_SECONDS
        if time.monotonic() >= deadline:
            break
        on_step(f"{pending:,} records to embed yet")
        time.sleep(POLL_SECONDS)
    check_complete(connection, successor)


def _exchange_when_complete(
    connection: Connection,
    pipeline: Pipeline,
    successor: Pipeline,
    patience_seconds: float,
    *,
    force: bool,
    on_step: Callable[[str], None],
) -> None:
    """Try to exchange the generations until the next one is complete, or patience has run out."""
    deadline = time.monotonic() + patience_seconds
    while True:
        left_seconds = deadline - time.monotonic()
        _wait_until_last_records(connection, successor, left_seconds, on_step)
        on_step("switching")
        began = time.monotonic()
        try:
            return _try_to_exchange(connection, pipeline, successor, force=force, on_step=on_step)
        except NotComplete as error:
            if isinstance(error, NotCovered):
                catch_up(connection, pipeline, successor)
            now = time.monotonic()
            if now > deadline:
                raise
            # As long as the old generation was kept from its queue, so that it has its turn.
            time.sleep(min(now - began, deadline - now))


def _try_to_exchange(
    connection: Connection,
    pipeline: Pipeline,
    successor: Pipeline,
    *,
    force: bool,
    on_step: Callable[[str], None],
) -> None:
    target = target_of(pipeline)
    try:
        in_short_waits(
            connection,
            lambda: _exchange(connection, pipeline, successor, force=force, on_step=on_step),
            table=f"{pipeline.target} or {pipeline.source}",
        )
    except psycopg.errors.InsufficientPrivilege as error:
        raise UsageError(
            f"this role may not switch ({first_line(error)}); do it as the owner of"
            f" {pipeline.target} and of schema pgembed"
        ) from None
    except psycopg.errors.DependentObjectsStillExist as error:
        raise UsageError(
            f"{target} cannot be replaced: {dependents(error)};"
            " drop it, and make it again after the switch"
        ) from None


def _exchange(
    connection: Connection,
    pipeline: Pipeline,
    successor: Pipeline,
    *,
    force: bool,
    on_step: Callable[[str], None],
) -> None:
    set_lock_timeout(connection, CLAIM_SECONDS)
    connection.execute(LOCK_CURSOR, (pipeline.id,))
    # Workers have their time for the next generation, whatever is queued for the old one meanwhile.
    no_claims(connection, pipeline.id)
    _wait_for_handed_on(connection, successor, on_step)
    set_lock_timeout(connection, LOCK_SECONDS)
    _lock(connection, pipeline, successor)
    check_complete(connection, successor)
    check_covered(connection, pipeline, successor)
    if not force:
        check_failures(connection, pipeline, successor, retried_too=True)
    _lock_targets(connection, pipeline, successor)
    # Waits for those who write to the source: what they have queued can be moved then.
    capture.drop_functions(connection, pipeline)
    replacement_of(pipeline, successor).exchange(connection)
    _exchange_rows(connection, pipeline, successor)


# An enqueue has its turn first and the source second; so have we, whose target may be the source.
LOCK_CURSOR = "select from pgembed.scans where pipeline_id = %s for update"

LOCK_ROWS = """
select id, successor_of
from pgembed.pipelines
where id = any(%s)
order by id
for update
"""


def _lock(connection: Connection, pipeline: Pipeline, successor: Pipeline) -> None:
    """Lock both generations, so that neither settles anything, and see that they are there."""
    rows = connection.execute(LOCK_ROWS, ([pipeline.id, successor.id],)).fetchall()
    if (successor.id, pipeline.id) not in rows or len(rows) != 2:
        raise UsageError(_TOO_LATE.format(pipeline.name))


def _lock_targets(connection: Connection, pipeline: Pipeline, successor: Pipeline) -> None:
    """Keep readers off for the moment that is left."""
    tables = sql.SQL(", ").join(each.target.identifier for each in (pipeline, successor))
    connection.execute(sql.SQL("lock table {} in access exclusive mode").format(tables))


# Deleted and updated in one, so that the name is free when it is taken. A fault of the old tables
# is not one of the new ones; what a person has paused stays so.
REPLACE_ROW = """
with replaced as (
    delete from pgembed.pipelines
    where id = %(pipeline_id)s
    returning *, position(%(mend)s in state_reason) > 0 as is_at_fault
)
update pgembed.pipelines as successor
set name = replaced.name,
    target_table = replaced.target_table,
    into_column = replaced.into_column,
    target_is_made = replaced.target_is_made,
    target_columns = successor.target_columns || jsonb_build_object(
        'embedding', replaced.target_columns -> 'embedding'
    ),
    state = case when replaced.is_at_fault then successor.state else replaced.state end,
    state_reason = case
        when replaced.is_at_fault then successor.state_reason else replaced.state_reason
    end,
    view = replaced.view,
    priority = replaced.priority,
    max_attempts = replaced.max_attempts,
    -- Measured on the old vectors, and true of new ones of the same model: the index is copied.
    ef_search = case when keeps_effort then replaced.ef_search else successor.ef_search end,
    ef_search_scan = case
        when keeps_effort then replaced.ef_search_scan else successor.ef_search_scan
    end,
    ef_search_parameters = case
        when keeps_effort then replaced.ef_search_parameters else successor.ef_search_parameters
    end,
    ef_search_k = case when keeps_effort then replaced.ef_search_k else successor.ef_search_k end,
    ef_search_recall = case
        when keeps_effort then replaced.ef_search_recall else successor.ef_search_recall
    end,
    -- Found with the old vectors, and true of new ones of the same model.
    lexical_weight = case
        when before.model_fingerprint = replaced.model_fingerprint
        then coalesce(before.lexical_weight, replaced.lexical_weight)
        else before.lexical_weight
    end
from replaced
join pgembed.pipelines as before on before.id = %(successor_id)s
cross join lateral (
    select before.ef_search is null
        and (before.model_fingerprint, before.dimensions)
            = (replaced.model_fingerprint, replaced.dimensions)
) as compared (keeps_effort)
where successor.id = %(successor_id)s
"""


def _exchange_rows(connection: Connection, pipeline: Pipeline, successor: Pipeline) -> None:
    ids = {"pipeline_id": pipeline.id, "successor_id": successor.id}
    connection.execute("delete from pgembed.scans where pipeline_id = %(pipeline_id)s", ids)
    connection.execute(REPLACE_ROW, {**ids, "mend": MEND_AND_RESUME})
    # The new one skips what it has done already. What is locked is left to `finish`.
    move_work_to_successors(connection, wait=False)
