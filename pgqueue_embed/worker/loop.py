"""One worker loop: claim after claim on its own connections, until there is a reason to stop."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

import psycopg

from pgqueue_embed.claim.embed import Device, DocumentChunker
from pgqueue_embed.claim.lateness import READ_SHARE
from pgqueue_embed.claim.process import ClaimOutcome, Session, process_claim
from pgqueue_embed.claim.size import (
    FIRST_CLAIM,
    ClaimSize,
    next_claim_size,
    recovered_claim,
    smaller_claim,
)
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.faults import is_given_back
from pgqueue_embed.db.migrate import check_schema
from pgqueue_embed.db.session import Connection, OutOfTime, connect
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.errors import LeaseLost, PgembedError, PipelineFault, RoleFault, SetupError
from pgqueue_embed.log import get_logger
from pgqueue_embed.pipeline.catalog import is_current, pause_at_fault
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claim_cursor import ClaimCursor
from pgqueue_embed.queue.claims import claimable_pipelines, forget_lost_attempts, is_drained
from pgqueue_embed.worker.delays import poll_delay_seconds, reconnect_delay_seconds
from pgqueue_embed.worker.fair_share import FairShare
from pgqueue_embed.worker.gate import Gate
from pgqueue_embed.worker.registry import another_role_serves
from pgqueue_embed.worker.settings import WorkerSettings
from pgqueue_embed.worker.stop_reasons import ANOTHER_MODEL, DRAINED, FAILED, MAX_RECORDS
from pgqueue_embed.worker.unserved import Unserved

# Suspects are rare; a busy loop looks for them this often, an idle one at every poll.
SUSPECT_POLL_SECONDS = 2.0


# A session that lasted so long was good, even if there was nothing to do.
GOOD_SESSION_SECONDS = 60.0


class Abandoned(PgembedError):
    """The claim in hand is given up because the worker must leave at once."""


@dataclass(kw_only=True)
class Turn:
    """What a pipeline is charged for its claim in hand."""

    seconds: float = 0.0


@dataclass(kw_only=True)
class Shared:
    """What the loops of one worker process have in common.

    `serviceable` returns the pipelines that the loaded model may work on, `other_model_waits`
    whether this one has had its turn (it is told whether this loop is idle). `stop` asks the loops
    to leave after the claim in hand, `abandon` to leave it too. `ending` is why the work ends,
    `on_stall` ends the process when the device hangs, and `sides` are the connections of the loops
    that may wait for a user's lock. `unserved` are pipelines that this process leaves to others.
    """

    conninfo: str
    settings: WorkerSettings
    worker_id: int
    device: Device
    device_name: str
    served: Callable[[], list[Pipeline]]
    chunker: Callable[[Pipeline], DocumentChunker]
    other_model_waits: Callable[[bool], bool] = lambda idle: False
    stop: threading.Event = field(default_factory=threading.Event)
    abandon: threading.Event = field(default_factory=threading.Event)
    gate: Gate = field(default_factory=Gate)
    sizes: dict[int, ClaimSize] = field(default_factory=dict)
    cursors: dict[int, ClaimCursor] = field(default_factory=dict)
    on_stall: Callable[[], None] = lambda: None
    sides: set[Connection] = field(default_factory=set)
    late: set[int] = field(default_factory=set)
    unserved: Unserved = field(default_factory=Unserved)
    records_done: int = 0
    fp32_chunks: int = 0
    share: FairShare = field(default_factory=FairShare)
    next_suspect_poll: float = 0.0
    ending: str | None = None
    failure: PgembedError | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def finish(self, ending: str, failure: PgembedError | None = None) -> None:
        """Ask every loop to leave; the first reason given stays."""
        with self.lock:
            if self.ending is None:
                self.ending, self.failure = ending, failure
        self.stop.set()

    def account(self, pipeline: Pipeline, done: ClaimOutcome, size: ClaimSize | None) -> None:
        """Learn from a finished claim of `size` how large the next one should be.

        None for one that ran alone, which tells nothing of others.
        """
        with self.lock:
            self.records_done += done.batch.records
            self.fp32_chunks += done.batch.fp32_chunks
            if size is not None:
                self.sizes[pipeline.id] = self._next_size(size, done)
        limit = self.settings.max_records
        if limit is not None and self.records_done >= limit:
            self.finish(MAX_RECORDS)

    def shrink(self, pipeline: Pipeline, size: ClaimSize | None) -> None:
        """Make the next claim smaller than one of `size` that ran out of time, as in `account`."""
        if size is not None:
            with self.lock:
                self.sizes[pipeline.id] = smaller_claim(size)

    def _next_size(self, size: ClaimSize, done: ClaimOutcome) -> ClaimSize:
        if done.rate is None or not done.batch.chunks:
            return recovered_claim(size)
        target_seconds = min(self.settings.claim_seconds, self.settings.lease_seconds / 2)
        return next_claim_size(size, done.rate, target_seconds=target_seconds)

    def cursor(self, pipeline: Pipeline) -> ClaimCursor:
        """Return where the loops have got to in the queue of `pipeline`."""
        with self.lock:
            return self.cursors.setdefault(pipeline.id, ClaimCursor())

    def suspects_due(self, *, idle: bool) -> bool:
        """Return whether it is time to look for items that must run alone."""
        with self.lock:
            due = idle or time.monotonic() >= self.next_suspect_poll
            if due:
                self.next_suspect_poll = time.monotonic() + SUSPECT_POLL_SECONDS
        return due

    def checkpoint(self) -> None:
        """Raise Abandoned once the worker must leave at once."""
        if self.abandon.is_set():
            raise Abandoned("left at once; the claim in hand was rolled back")

    def interrupt(self) -> None:
        """Cancel what the loops read: behind a user's lock they would not see a checkpoint."""
        for side in list(self.sides):
            side.request_cancel()


def run_loop(shared: Shared) -> None:
    """Work until the shared stop is set, reconnecting with back-off while the database is away."""
    log = get_logger(worker=shared.worker_id)
    failures = 0
    while not shared.stop.is_set():
        began, done = time.monotonic(), shared.records_done
        try:
            with _session(shared) as session, _explained(session):
                _work(shared, session)
        except Abandoned:
            return
        except (PgembedError, psycopg.Error) as error:
            if not is_given_back(error):
                shared.finish(FAILED, _as_failure(error))
                return
            if shared.abandon.is_set():
                return
            log.warning("claim given back", reason=first_line(error))
            # Connecting is no success: a full disk lets us in, and every claim is lost at its end.
            if shared.records_done > done or time.monotonic() - began > GOOD_SESSION_SECONDS:
                failures = 0
            shared.stop.wait(reconnect_delay_seconds(failures, jitter=random.random()))
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
            shared.conninfo, application_name="pgembed claim", patience_seconds=lease_seconds
        ) as connection,
        connect(
            shared.conninfo,
            application_name="pgembed side",
            patience_seconds=lease_seconds * READ_SHARE,
        ) as side,
    ):
        forget_lost_attempts(side, shared.worker_id)
        shared.sides.add(side)
        try:
            yield Session(
                connection=connection,
                side=side,
                codec=VectorCodec(connection),
                worker_id=shared.worker_id,
                lease_seconds=lease_seconds,
                retry_delay_seconds=shared.settings.retry_delay_seconds,
                checkpoint=shared.checkpoint,
                late=shared.late,
            )
        finally:
            shared.sides.discard(side)


def _work(shared: Shared, session: Session) -> None:
    idle_polls = 0
    while not shared.stop.is_set():
        pipelines = {
            pipeline.id: pipeline
            for pipeline in shared.served()
            if not shared.unserved.holds(pipeline.id)
        }
        idle = idle_polls > 0
        if shared.other_model_waits(idle):
            shared.finish(ANOTHER_MODEL)
        elif _claim_once(shared, session, pipelines, idle=idle):
            idle_polls = 0
        elif shared.settings.drain and is_drained(session.side, list(pipelines)):
            waits = shared.other_model_waits(True)
            shared.finish(ANOTHER_MODEL if waits else DRAINED)
        else:
            idle_polls += 1
            shared.stop.wait(_idle_delay(shared, idle_polls))


def _idle_delay(shared: Shared, idle_polls: int) -> float:
    delay = poll_delay_seconds(idle_polls, jitter=random.random())
    # A draining worker waits for the last claims of others and for retries: look more often.
    return min(delay, 0.5) if shared.settings.drain else delay


def _claim_once(
    shared: Shared, session: Session, pipelines: dict[int, Pipeline], *, idle: bool
) -> bool:
    """Process one claim of any pipeline, suspects first; returns whether there was one."""
    if shared.suspects_due(idle=idle):
        suspected = claimable_pipelines(session.side, list(pipelines), alone=True)
        if suspected:
            with shared.gate.exclusive():
                if _claim_first(shared, session, pipelines, suspected, alone=True):
                    return True
    cursors = {each: shared.cursor(pipeline) for each, pipeline in pipelines.items()}
    claimable = claimable_pipelines(session.side, list(pipelines), alone=False, cursors=cursors)
    with shared.gate.shared() if claimable else nullcontext():
        return _claim_first(
            shared, session, pipelines, _in_turn(shared, pipelines, claimable), alone=False
        )


def _in_turn(
    shared: Shared, pipelines: Mapping[int, Pipeline], claimable: Sequence[int]
) -> list[int]:
    """Return the claimable pipelines by whose turn it is, so that none is starved."""
    with shared.lock:
        return shared.share.order({each: pipelines[each].priority for each in claimable})


@contextmanager
def _turn(shared: Shared, pipeline: Pipeline) -> Iterator[Turn]:
    """Charge a pipeline for the claim made inside the block, and while it lasts as expected.

    Else every loop that looks meanwhile would take the same pipeline. A claim that is given back
    counts as a whole turn at least: one that always is would starve the others.
    """
    turn, expected, began = Turn(), shared.settings.claim_seconds, time.monotonic()
    _charge(shared, pipeline, expected)
    try:
        yield turn
    except BaseException:
        turn.seconds = max(expected, time.monotonic() - began)
        raise
    finally:
        _charge(shared, pipeline, turn.seconds - expected)


def _charge(shared: Shared, pipeline: Pipeline, seconds: float) -> None:
    with shared.lock:
        shared.share.charge(pipeline.id, seconds, pipeline.priority)


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
    usual = None if alone else shared.sizes.get(pipeline.id, FIRST_CLAIM)
    try:
        with _turn(shared, pipeline) as turn:
            done = process_claim(
                session,
                pipeline,
                chunker=shared.chunker(pipeline),
                device=shared.device,
                size=usual or FIRST_CLAIM,
                alone=alone,
                cursor=shared.cursor(pipeline),
            )
            turn.seconds = done.rate.own_seconds if done and done.rate else 0.0
    except LeaseLost:
        shared.shrink(pipeline, usual)
        raise
    except OutOfTime as error:
        shared.shrink(pipeline, usual)
        if session.connection.closed or session.side.closed:
            raise
        get_logger().warning("claim given back", pipeline=pipeline.name, reason=first_line(error))
        return True
    except PipelineFault as error:
        check_schema(session.side)
        # Else a switch of generations has taken the target away, and not a person.
        if is_current(session.side, pipeline):
            _stop_serving(shared, session.side, pipeline, error)
        return False
    shared.unserved.remove(pipeline.id)
    if done is None:
        return False
    shared.account(pipeline, done, usual)
    _log_claim(pipeline, done)
    return True


def _stop_serving(
    shared: Shared, side: Connection, pipeline: Pipeline, error: PipelineFault
) -> None:
    """Pause a pipeline whose fault everybody meets; else leave it to workers of other roles."""
    if isinstance(error, RoleFault) or another_role_serves(side, pipeline.id, shared.worker_id):
        shared.unserved.add(pipeline.id, str(error))
        get_logger().error("pipeline left to others", pipeline=pipeline.name, reason=str(error))
    else:
        _pause(side, pipeline, error)


def _pause(side: Connection, pipeline: Pipeline, error: PipelineFault) -> None:
    pause_at_fault(side, pipeline, str(error))
    get_logger().error("pipeline paused", pipeline=pipeline.name, reason=str(error))


def _log_claim(pipeline: Pipeline, done: ClaimOutcome) -> None:
    if done.rate is None:
        get_logger().warning(done.event or "", pipeline=pipeline.name)
        return
    batch = done.batch
    get_logger().info(
        "batch committed",
        pipeline=pipeline.name,
        records=batch.records,
        chunks=batch.chunks,
        failed=batch.failed,
        seconds=round(done.rate.seconds, 2),
    )
