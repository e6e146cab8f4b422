"""Bringing the database to the pipelines that a file declares: everything is checked before."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pgqueue_embed.configuration.plan import Plan, PlannedPipeline
from pgqueue_embed.db import applications
from pgqueue_embed.db.locks import APPLY_LOCK
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.lifecycle.alter import Alteration, carry_out, prepare_alteration
from pgqueue_embed.lifecycle.cleanup import finish
from pgqueue_embed.lifecycle.create import Created, Prepared, make, prepare
from pgqueue_embed.lifecycle.sync import start_capture, stop_capture
from pgqueue_embed.pipeline.pipeline import Pipeline


@contextmanager
def taking_turns(conninfo: str, *, on_wait: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Keep others from applying a file to this database; calls `on_wait` while one does."""
    with connect(conninfo, application_name=applications.APPLY) as lock, lock.transaction():
        free = lock.value("select pg_try_advisory_xact_lock(%s)", (APPLY_LOCK,))
        if not free:
            on_wait()
            lock.execute("select pg_advisory_xact_lock(%s)", (APPLY_LOCK,))
        yield


# A comparison with what was prepared for it: a new pipeline, an altered one, or neither where
# nothing but capture is turned on or off.
Step = tuple[PlannedPipeline, Prepared | Alteration | None]


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What came of one comparison.

    `created` is the new pipeline; `successor` the next generation of one that was altered, which
    has nothing queued yet: see `alter.catch_up`. Where capture was turned on, what changed before
    is not queued either: see `sync.queue_missed`.
    """

    comparison: PlannedPipeline
    created: Created | None = None
    successor: Pipeline | None = None


def apply(connection: Connection, plan: Plan) -> list[Applied]:
    """Make and alter what the plan says, all of it or nothing; returns what was done.

    Raises as `check` does, and for what the role may not make.
    """
    steps = check(connection, plan)
    for comparison, _ in steps:
        if comparison.pipeline is not None:
            finish(connection, comparison.pipeline)
    with connection.transaction():
        return [_carried_out(connection, *step) for step in steps]


def check(connection: Connection, plan: Plan) -> list[Step]:
    """Check tables and models of all that is to be done, and do nothing; returns the steps.

    Raises UsageError for what is wrong with tables or settings, ModelError for a model that is not
    to be had; both say where in the file.
    """
    return [_checked(connection, each) for each in plan.comparisons if not each.is_settled]


def _checked(connection: Connection, comparison: PlannedPipeline) -> Step:
    declared = comparison.declared
    with declared.place.explaining():
        if comparison.pipeline is None:
            return comparison, prepare(connection, declared.spec, declared.model)
        if not comparison.changes.given:
            return comparison, None
        return comparison, prepare_alteration(connection, comparison.pipeline, comparison.changes)


def _carried_out(
    connection: Connection, comparison: PlannedPipeline, step: Prepared | Alteration | None
) -> Applied:
    declared, pipeline = comparison.declared, comparison.pipeline
    with declared.place.explaining():
        if isinstance(step, Prepared):
            created = make(connection, step, sync=declared.sync)
            return Applied(comparison=comparison, created=created)
        successor = carry_out(connection, step) if step else None
        if pipeline is not None and comparison.must_turn_sync:
            turn = start_capture if declared.sync else stop_capture
            turn(connection, pipeline)
        return Applied(comparison=comparison, successor=successor)
