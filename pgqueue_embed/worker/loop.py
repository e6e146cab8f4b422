"""One worker loop: claim after claim on its own connections, until there is a reason to stop."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import psycopg

from pgqueue_embed.claim.embed import Device, DocumentChunker
from pgqueue_embed.claim.lateness import READ_SHARE
from pgqueue_embed.claim.process import SET_APART, ClaimOutcome, Session, process_claim
from pgqueue_embed.claim.size import FIRST_CLAIM
from pgqueue_embed.db import applications
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import is_given_back
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection, OutOfTime, connect
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.errors import LeaseLost, PgembedError, PipelineFault, RoleFault, SetupError
from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.catalog import is_current, pause_at_fault
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claims import claimable_pipelines, forget_lost_attempts, is_drained
from pgqueue_embed.worker.claim_history import ClaimHistory
from pgqueue_embed.worker.delays import poll_delay_seconds, reconnect_delay_seconds
from pgqueue_embed.worker.registry import another_role_serves
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.shutdown import Abandoned, Shutdown
from pgqueue_embed.worker.stop_reasons import ANOTHER_MODEL, DRAINED, FAILED, MAX_RECORDS
from pgqueue_embed.worker.traces import Traces, traced
from pgqueue_embed.worker.turns import Turns
from pgqueue_embed.worker.unserved import Unserved

# A session that lasted so long was good, even if there was nothing to do.
GOOD_SESSION_SECONDS = 60.0


class Served(Protocol):
    """The pipelines that a loop may work on; see models.ServedPipelines."""

    @property
    def unserved(self) -> Unserved:
        """Those that this process leaves to others."""
        ...

    def pipelines(self) -> list[Pipeline]:
        """Return those of the loaded model, as they are now."""
        ...

    def chunker(self, pipeline: Pipeline) -> DocumentChunker:
        """Return what cuts the documents of `pipeline`."""
        ...

    def other_model_waits(self, idle: bool) -> bool:
        """Return whether another model's work waits and this one has had its turn."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What the loops of one worker process have in common."""

    conninfo: str
    settings: WorkerSettings
    worker_id: int
    device: Device
    served: Served
    shutdown: Shutdown
    turns: Turns
    history: ClaimHistory
    traces: Traces | None = None

    @classmethod
    def of(
        cls,
        conninfo: str,
        settings: WorkerSettings,
        *,
        worker_id: int,
        device: Device,
        served: Served,
        shutdown: Shutdown | None = None,
        traces: Traces | None = None,
    ) -> Shared:
        """Return it for loops that have not begun."""
        target_seconds = min(settings.claim_seconds, settings.lease_seconds / 2)
        return cls(
            conninfo=conninfo,
            settings=settings,
            worker_id=worker_id,
            device=device,
            served=served,
            shutdown=shutdown or Shutdown(),
            turns=Turns(claim_seconds=settings.claim_seconds),
            history=ClaimHistory(target_seconds=target_seconds),
            traces=traces,
        )


def run_loop(shared: Shared) -> None:
    """Work until the shared stop is set, reconnecting with back-off while the database is away."""
    log = get_logger(worker=shared.worker_id)
    failures = 0
    while not shared.shutdown.asked.is_set():
        began, done = time.monotonic(), shared.history.records_done
        try:
            with _session(shared) as session, _explained(session):
                _work(shared, session)
        except Abandoned:
            return
        except (PgembedError, psycopg.Error) as error:
            if not is_given_back(error):
                shared.shutdown.finish(FAILED, _as_failure(error))
                return
            if shared.shutdown.at_once.is_set():
                return
            shared.history.gave_back(first_line(error))
            log.warning("claim given back", reason=first_line(error))
            # Connecting is no success: a full disk lets us in, and every claim is lost at its end.
            if (
                shared.history.records_done > done
                or time.monotonic() - began > GOOD_SESSION_SECONDS
            ):
                failures = 0
            shared.shutdown.asked.wait(reconnect_delay_seconds(failures, jitter=random.random()))
            failures += 1


def _as_failure(error: Exception) -> PgembedError:
    """Return what ends the worker, for a person: a refused statement is one of our own."""
    if isinstance(error, PgembedError):
        return error
    return SetupError(
        f"the database refuses what every worker needs: {first_line(error)}; run pgembed doctor"
    )


@contextmanager
def _explained(session: Session) -> Iterator[None]:
    """Raise MigrationError instead, if a statement fails because the schema was migrated."""
    try:
        yield
    except psycopg.ProgrammingError:
        check_schema(session.side)
        raise


@contextmanager
def _session(shared: Shared) -> Iterator[Session]:
    lease_seconds = shared.settings.lease_seconds
    with (
        connect(
            shared.conninfo, application_name=applications.CLAIM, patience_seconds=lease_seconds
        ) as connection,
        connect(
            shared.conninfo,
            application_name=applications.SIDE,
            patience_seconds=lease_seconds * READ_SHARE,
        ) as side,
    ):
        forget_lost_attempts(side, shared.worker_id)
        with shared.shutdown.interruptible(side):
            yield Session(
                connection=connection,
                side=side,
                codec=VectorCodec(connection),
                worker_id=shared.worker_id,
                lease_seconds=lease_seconds,
                retry_delay_seconds=shared.settings.retry_delay_seconds,
                checkpoint=shared.shutdown.checkpoint,
                late=shared.history.late,
            )


def _work(shared: Shared, session: Session) -> None:
    idle_polls = 0
    while not shared.shutdown.asked.is_set():
        _forget_reasons(shared.served.unserved, session.side)
        pipelines = {
            pipeline.id: pipeline
            for pipeline in shared.served.pipelines()
            if not shared.served.unserved.holds(pipeline.id)
        }
        idle = idle_polls > 0
        if shared.served.other_model_waits(idle):
            shared.shutdown.finish(ANOTHER_MODEL)
        elif _claim_once(shared, session, pipelines, idle=idle):
            idle_polls = 0
        elif shared.settings.drain and is_drained(session.side, list(pipelines)):
            waits = shared.served.other_model_waits(True)
            shared.shutdown.finish(ANOTHER_MODEL if waits else DRAINED)
        else:
            idle_polls += 1
            shared.shutdown.asked.wait(_idle_delay(shared, idle_polls))


def _forget_reasons(unserved: Unserved, side: Connection) -> None:
    """Forget why pipelines were left out that have no work to leave to others any more."""
    for pipeline_id in unserved.due():
        if is_drained(side, [pipeline_id]):
            unserved.remove(pipeline_id)


def _idle_delay(shared: Shared, idle_polls: int) -> float:
    delay = poll_delay_seconds(idle_polls, jitter=random.random())
    # A draining worker waits for the last claims of others and for retries: poll more often.
    return min(delay, 0.5) if shared.settings.drain else delay


def _claim_once(
    shared: Shared, session: Session, pipelines: dict[int, Pipeline], *, idle: bool
) -> bool:
    """Process one claim of any pipeline, suspects first; returns whether there was one."""
    if shared.turns.suspects_due(idle=idle):
        suspected = claimable_pipelines(session.side, list(pipelines), alone=True)
        if suspected:
            with shared.turns.gate.exclusive():
                if _claim_first(shared, session, pipelines, suspected, alone=True):
                    return True
    cursors = {each: shared.history.cursor(pipeline) for each, pipeline in pipelines.items()}
    claimable = claimable_pipelines(session.side, list(pipelines), alone=False, cursors=cursors)
    with shared.turns.gate.shared() if claimable else nullcontext():
        in_turn = shared.turns.order(pipelines, claimable)
        return _claim_first(shared, session, pipelines, in_turn, alone=False)


def _claim_first(
    shared: Shared,
    session: Session,
    pipelines: dict[int, Pipeline],
    pipeline_ids: list[int],
    *,
    alone: bool,
) -> bool:
    for pipeline_id in pipeline_ids:
        if _process(shared, session, pipelines[pipeline_id], alone=alone):
            return True
    return False


def _process(shared: Shared, session: Session, pipeline: Pipeline, *, alone: bool) -> bool:
    usual = None if alone else shared.history.size(pipeline)
    try:
        with shared.turns.turn(pipeline) as turn, traced(shared.traces, pipeline.name) as claim:
            done = claim.outcome = process_claim(
                session,
                pipeline,
                chunker=shared.served.chunker(pipeline),
                device=shared.device,
                size=usual or FIRST_CLAIM,
                alone=alone,
                cursor=shared.history.cursor(pipeline),
            )
            turn.seconds = done.rate.own_seconds if done and done.rate else 0.0
    except LeaseLost:
        shared.history.ran_out_of_time(pipeline, usual)
        raise
    except OutOfTime as error:
        shared.history.ran_out_of_time(pipeline, usual)
        if session.connection.closed or session.side.closed:
            raise
        shared.history.gave_back(first_line(error))
        get_logger().warning("claim given back", pipeline=pipeline.name, reason=first_line(error))
        return True
    except PipelineFault as error:
        check_schema(session.side)
        # Else a switch of generations has taken the target away, and not a person.
        if is_current(session.side, pipeline):
            _stop_serving(shared, session.side, pipeline, error)
        return False
    shared.served.unserved.remove(pipeline.id)
    if done is None:
        return False
    shared.history.finished(pipeline, done, usual)
    _finish_at_limit(shared)
    _log_claim(pipeline, done)
    return True


def _finish_at_limit(shared: Shared) -> None:
    limit = shared.settings.max_records
    if limit is not None and shared.history.records_done >= limit:
        shared.shutdown.finish(MAX_RECORDS)


def _stop_serving(
    shared: Shared, side: Connection, pipeline: Pipeline, error: PipelineFault
) -> None:
    """Pause a pipeline whose fault everybody meets; else leave it to workers of other roles."""
    if isinstance(error, RoleFault) or another_role_serves(side, pipeline.id, shared.worker_id):
        shared.served.unserved.add(pipeline.id, str(error))
        get_logger().error("pipeline left to others", pipeline=pipeline.name, reason=str(error))
    else:
        _pause(side, pipeline, error)


def _pause(side: Connection, pipeline: Pipeline, error: PipelineFault) -> None:
    pause_at_fault(side, pipeline, str(error))
    get_logger().error("pipeline paused", pipeline=pipeline.name, reason=str(error))


def _log_claim(pipeline: Pipeline, done: ClaimOutcome) -> None:
    if done.rate is None:
        log = get_logger().warning if done.event == SET_APART else get_logger().info
        log(done.event or "", pipeline=pipeline.name)
        return
    commit = done.commit
    get_logger().info(
        "batch committed",
        pipeline=pipeline.name,
        records=commit.records,
        chunks=commit.chunks,
        failed=commit.failed,
        seconds=round(done.rate.seconds, 2),
    )
