"""The write: under the mutex of every record, compared with what is current, in one commit."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.refusals import WAITS_FOR_OTHERS, refusals
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.errors import LeaseLost, PipelineFault
from pgqueue_embed.ledger import records as ledger
from pgqueue_embed.ledger.verdicts import (
    PUT_BACK,
    UNREAD,
    Current,
    Finding,
    Found,
    Verdict,
    decide,
    state_after,
)
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.retry_delay import retry_delay_seconds
from pgqueue_embed.queue.work_items import Handling, add_items
from pgqueue_embed.source.read import with_key
from pgqueue_embed.target import ChunkRows, target_of

# Below deadlock_timeout (1 s by default), so that we lose a deadlock and never the user.
LOCK_TIMEOUT_MILLISECONDS = 400

# A user's DDL may hold the source for long; after this the claim is given back and done again.
MAX_LOCK_WAIT_SECONDS = 600.0

# The parameters of a statement exist several times over on their way: a long document's chunks
# are written in portions of some 20 MB.
STATEMENT_CHUNKS = 8_192

# A write error of so many records at once is not a record's: the target itself is at fault.
COMMON_FAULT_RECORDS = 8


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What a claim found: one finding a record, with the chunks and vectors they point into.

    `vectors` is float32 of shape (chunks, dimensions), in the order of `chunks`; `worker_id` that
    of the process that found all this.
    """

    records: Sequence[Finding]
    chunks: Sequence[Chunk]
    vectors: NDArray[np.float32]
    worker_id: int


@dataclass(frozen=True, kw_only=True)
class Written:
    """What a write did: the signed change of each state, and how many records met each verdict.

    The state of a record without one is None. `settled` are the findings on those that are not put
    back into the queue. For `lock_seconds` others held what it had to lock.
    """

    states: Counter[str | None]
    verdicts: Counter[Verdict]
    settled: Sequence[Finding]
    chunks: int
    lock_seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """The findings with the verdict on each, by key."""

    findings: dict[str, Finding]
    current: dict[str, Current]
    verdicts: dict[str, Verdict]

    def having(self, *verdicts: Verdict) -> list[Finding]:
        return [self.findings[key] for key, verdict in self.verdicts.items() if verdict in verdicts]

    def keys(self, *verdicts: Verdict) -> list[str]:
        return [finding.key for finding in self.having(*verdicts)]


def write(
    connection: Connection,
    codec: VectorCodec,
    pipeline: Pipeline,
    findings: Findings,
    *,
    priority: int,
    lease_seconds: float,
    retry_delay_base_seconds: float,
    checkpoint: Callable[[], None],
) -> Written:
    """Write `findings` in the open transaction of their claim, whose items have `priority`.

    Waits for locks in short tries with the vectors in hand, and calls `checkpoint` between them.
    Raises PipelineFault when source or target cannot be used at all, LeaseLost when it has waited
    too long.
    """
    _allow_long_write(connection, lease_seconds)
    began = time.monotonic()
    while True:
        tried = time.monotonic()
        try:
            with connection.transaction():
                connection.execute(_opening(pipeline))
                written = _write_once(
                    connection, codec, pipeline, findings, priority, retry_delay_base_seconds
                )
            return replace(written, lock_seconds=tried - began)
        except PipelineFault as error:
            keys = [finding.key for finding in findings.records]
            raise with_key(connection, pipeline, error, keys) from None
        except WAITS_FOR_OTHERS as error:
            if tried - began > MAX_LOCK_WAIT_SECONDS:
                raise LeaseLost(f"waited in vain to write: {first_line(error)}") from None
            checkpoint()
            time.sleep(0.05 + 0.2 * random.random())


def _opening(pipeline: Pipeline) -> sql.Composed:
    # Shared by workers, and held alone by a switch of generations, during which neither of them
    # settles anything.
    return sql.SQL(
        """
        set local lock_timeout = {milliseconds};
        select from pgembed.pipelines where id = {pipeline_id} for key share
        """
    ).format(
        milliseconds=sql.Literal(LOCK_TIMEOUT_MILLISECONDS), pipeline_id=sql.Literal(pipeline.id)
    )


def _allow_long_write(connection: Connection, lease_seconds: float) -> None:
    """Bound the write by ten leases, the parts of it in which no other timeout runs included.

    A client that stops in the middle of sending a statement is not idle for the server; only
    transaction_timeout (PostgreSQL 17) ends it.
    """
    milliseconds = int(lease_seconds * 10_000)
    connection.patience_seconds = lease_seconds * 10
    settings = ["statement_timeout"]
    if connection.info.server_version >= 170_000:
        settings.append("transaction_timeout")
    connection.execute(";".join(f"set local {each} = {milliseconds}" for each in settings))


def _write_once(
    connection: Connection,
    codec: VectorCodec,
    pipeline: Pipeline,
    findings: Findings,
    priority: int,
    retry_delay_base_seconds: float,
) -> Written:
    keys = [finding.key for finding in findings.records]
    ledger.lock_records(connection, pipeline, keys)
    current = _read_current(connection, pipeline, findings.records)
    judged = _judge(pipeline, {finding.key: finding for finding in findings.records}, current)
    refused = _replace(connection, codec, pipeline, findings, judged.having(Verdict.REPLACE))
    if refused:
        wanted = len(judged.having(Verdict.REPLACE))
        # A row that is locked by being written may have changed until then.
        current |= ledger.read_current(connection, pipeline, list(refused))
        judged = _judge(pipeline, {**judged.findings, **_failed(refused, judged)}, current)
        _check_common_fault(refused, judged, wanted)
    judged = _clear(connection, pipeline, judged)
    _settle(connection, pipeline, judged, findings.worker_id)
    _queue_again(connection, pipeline, judged, priority, retry_delay_base_seconds)
    return _account(judged)


def _read_current(
    connection: Connection, pipeline: Pipeline, findings: Sequence[Finding]
) -> dict[str, Current]:
    """Return how each record stands now; one that could not be read is not waited for again."""
    unread = [finding.key for finding in findings if finding.document_hash == UNREAD]
    if not unread:
        return ledger.read_current(connection, pipeline, [each.key for each in findings])
    read = [finding.key for finding in findings if finding.document_hash != UNREAD]
    current = ledger.read_current(connection, pipeline, unread, unread=True)
    return current | ledger.read_current(connection, pipeline, read) if read else current


def _judge(
    pipeline: Pipeline, findings: dict[str, Finding], current: dict[str, Current]
) -> _Judged:
    verdicts = {
        key: decide(
            finding,
            current[key],
            generation=pipeline.generation,
            max_attempts=pipeline.spec.max_attempts,
        )
        for key, finding in findings.items()
    }
    return _Judged(findings=findings, current=current, verdicts=verdicts)


def _replace(
    connection: Connection,
    codec: VectorCodec,
    pipeline: Pipeline,
    findings: Findings,
    records: Sequence[Finding],
) -> dict[str, str]:
    """Replace the chunks of `records`; returns the error of each record that the target refuses."""
    by_key = {record.key: record for record in records}

    def replace_some(keys: Sequence[str]) -> dict[str, str]:
        rows = _rows(findings, [by_key[key] for key in keys])
        return target_of(pipeline).replace(connection, codec, keys, rows)

    return refusals(connection, f"writing to {pipeline.target}", list(by_key), replace_some)


def _rows(findings: Findings, records: Sequence[Finding]) -> Iterator[ChunkRows]:
    """Yield the chunks of `records` in portions that one statement carries."""
    picked = [
        (record, index)
        for record in records
        for index in range(record.first_chunk, record.first_chunk + record.chunks)
    ]
    for start in range(0, len(picked), STATEMENT_CHUNKS):
        yield _portion(findings, picked[start : start + STATEMENT_CHUNKS])


def _portion(findings: Findings, picked: Sequence[tuple[Finding, int]]) -> ChunkRows:
    chunks = [findings.chunks[index] for _, index in picked]
    return ChunkRows(
        keys=[record.key for record, _ in picked],
        document_hashes=[record.document_hash or b"" for record, _ in picked],
        chunk_indexes=[chunk.index for chunk in chunks],
        texts=[chunk.text for chunk in chunks],
        start_chars=[chunk.start for chunk in chunks],
        end_chars=[chunk.end for chunk in chunks],
        tokens=[len(chunk.token_ids) for chunk in chunks],
        vectors=findings.vectors[[index for _, index in picked]],
    )


def _check_common_fault(refused: Mapping[str, str], judged: _Judged, wanted: int) -> None:
    """Raise PipelineFault if so many records as were `wanted` at once are refused, and at fault."""
    at_fault = [key for key in judged.keys(Verdict.RETRY, Verdict.GIVE_UP) if key in refused]
    if len(at_fault) >= COMMON_FAULT_RECORDS and len(at_fault) == wanted:
        raise PipelineFault(refused[at_fault[0]])


def _failed(
    refused: Mapping[str, str], judged: _Judged, *, stuck: bool = False
) -> dict[str, Finding]:
    return {
        key: replace(judged.findings[key], found=Found.FAILED, chunks=0, error=error, stuck=stuck)
        for key, error in refused.items()
    }


def _clear(connection: Connection, pipeline: Pipeline, judged: _Judged) -> _Judged:
    """Delete the chunks of records that are to have none; those that are stuck have failed."""

    def clear_some(keys: Sequence[str]) -> dict[str, str]:
        target_of(pipeline).clear(connection, keys)
        return {}

    keys = judged.keys(Verdict.FORGET, Verdict.MARK_EMPTY, Verdict.GIVE_UP)
    refused = refusals(connection, f"deleting from {pipeline.target}", keys, clear_some)
    if refused:
        stuck = _failed(refused, judged, stuck=True)
        judged = _judge(pipeline, {**judged.findings, **stuck}, judged.current)
        _check_common_fault(refused, judged, len(keys))
    ledger.forget(connection, pipeline, judged.keys(Verdict.FORGET))
    return judged


def _settle(connection: Connection, pipeline: Pipeline, judged: _Judged, worker_id: int) -> None:
    for verdict, state in ((Verdict.REPLACE, "embedded"), (Verdict.MARK_EMPTY, "empty")):
        ledger.settle(connection, pipeline, judged.having(verdict), state, worker_id=worker_id)
    # A text that failed may have been changed back to the one that is embedded.
    kept = judged.keys(Verdict.KEEP)
    ledger.clear_failures(
        connection, pipeline, [key for key in kept if judged.current[key].attempts]
    )
    failed = judged.having(Verdict.RETRY, Verdict.GIVE_UP)
    ledger.charge(connection, pipeline, failed, judged.current)
    ledger.mark_dead(connection, pipeline, judged.keys(Verdict.GIVE_UP))


def _queue_again(
    connection: Connection,
    pipeline: Pipeline,
    judged: _Judged,
    priority: int,
    retry_delay_base_seconds: float,
) -> None:
    """Put changed records back at once, and each failed one by itself after its delay.

    A changed one keeps its priority: a switch of generations waits for what is not a change.
    """
    changed: dict[Handling, list[str]] = {}
    for finding in judged.having(Verdict.REQUEUE):
        handling = Handling(
            priority=priority,
            known=judged.current[finding.key].state is not None,
            embed_again=finding.embed_again,
            allow_deletes=finding.allow_deletes,
        )
        changed.setdefault(handling, []).append(finding.key)
    for handling, keys in changed.items():
        add_items(connection, pipeline.id, keys, handling)
    for finding in judged.having(Verdict.RETRY):
        attempts = judged.current[finding.key].attempts_with(finding)
        add_items(
            connection,
            pipeline.id,
            [finding.key],
            Handling(
                known=judged.current[finding.key].state is not None,
                embed_again=finding.embed_again,
                retrying=True,
                allow_deletes=finding.allow_deletes,
            ),
            delay_seconds=retry_delay_seconds(
                attempts,
                base_seconds=retry_delay_base_seconds,
                jitter=random.random(),
            ),
        )


def _account(judged: _Judged) -> Written:
    states: Counter[str | None] = Counter()
    for key, verdict in judged.verdicts.items():
        before = judged.current[key].state
        after = state_after(verdict, before)
        if before != after:
            states[after] += 1
            states[before] -= 1
    return Written(
        states=states,
        verdicts=Counter(judged.verdicts.values()),
        settled=judged.having(*(each for each in Verdict if each not in PUT_BACK)),
        chunks=sum(finding.chunks for finding in judged.having(Verdict.REPLACE)),
    )
