"""One claim: claim, log the attempt, read, chunk, embed, write, commit.

The claim's transaction is open from the first step to the last and its row lock is the lease.
While the model runs it touches nothing of the user's: the source is read on a second connection.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import numpy as np
import psycopg

from pgqueue_embed.claim.embed import Device, DocumentChunker, EmbeddingResult, embed_records
from pgqueue_embed.claim.hand_on import hand_on
from pgqueue_embed.claim.lateness import charge_late, is_hash_readable, is_late, read_in_time
from pgqueue_embed.claim.reuse import ReusingEmbedder, reusable_keys
from pgqueue_embed.claim.size import ClaimSize, Rate
from pgqueue_embed.claim.suspects import give_up_reason, isolate, suspects
from pgqueue_embed.claim.sweep import SWEPT_RECORDS, sweep_slice, sweeps
from pgqueue_embed.claim.truncate import truncating
from pgqueue_embed.claim.write import Findings, Written, write
from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.ledger.commits import Commit, record_commit
from pgqueue_embed.ledger.verdicts import PUT_BACK, UNREAD, Finding, Found, Verdict
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claim_cursor import ClaimCursor
from pgqueue_embed.queue.claims import (
    Claim,
    claim_items,
    delete_attempts,
    finish_items,
    log_attempts,
)
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS
from pgqueue_embed.queue.lease import claim_transaction, renew
from pgqueue_embed.queue.source_comparison import COMPARED_RECORDS, compare_slice, comparisons
from pgqueue_embed.queue.work_items import WorkItem, add_items, alike
from pgqueue_embed.source.ambiguous import hash_of_rows
from pgqueue_embed.source.read import SourceRecord
from pgqueue_embed.source.trust import check_trust_often

# A process died over one of its records: the one event of a claim that is of interest to people.
SET_APART = "suspect set apart"


@dataclass(frozen=True, kw_only=True)
class Session:
    """What one worker loop works with.

    `connection` holds the claim, `side` is a second one in autocommit. `checkpoint` is called
    wherever the claim makes progress and raises to abandon it. `late` are the ids of work items
    that ran out of time here once.
    """

    connection: Connection
    side: Connection
    codec: VectorCodec
    worker_id: int
    lease_seconds: float
    retry_delay_seconds: float
    checkpoint: Callable[[], None]
    late: set[int] = field(default_factory=set)


@dataclass(frozen=True, kw_only=True)
class ClaimOutcome:
    """One finished claim: what its commit did and what it took.

    `event` is what it did instead of embedding; there is no `rate` then.
    """

    commit: Commit
    rate: Rate | None
    event: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Reading:
    """The records of a claim as read: those with text to embed, and findings on the others.

    `left_over` are the keys, by item, that lie beyond the bytes of this claim.
    """

    to_embed: Sequence[tuple[SourceRecord, bool]]
    findings: Sequence[Finding]
    left_over: dict[WorkItem, list[str]]
    seconds: float

    @property
    def text_bytes(self) -> int:
        return sum(len((record.document or "").encode()) for record, _ in self.to_embed)


def process_claim(
    session: Session,
    pipeline: Pipeline,
    *,
    chunker: DocumentChunker,
    device: Device,
    size: ClaimSize,
    alone: bool = False,
    cursor: ClaimCursor | None = None,
) -> ClaimOutcome | None:
    """Claim work of `pipeline`, embed it and commit it; returns None when there is none to have.

    Raises LeaseLost when the server took the claim back, PipelineFault when a table or column is
    gone, and whatever the session's checkpoint raises; then nothing is written or charged.
    """
    started = time.monotonic()
    with (
        _attempts(session) as attempt_ids,
        claim_transaction(session.connection, lease_seconds=session.lease_seconds),
    ):
        # One suspect at a time: of two, which one killed the process would be unknown.
        limit = 1 if alone else size.items
        claim = claim_items(
            session.connection, pipeline.id, limit=limit, alone=alone, cursor=cursor
        )
        if claim is None:
            return None
        if suspects(claim):
            isolate(session.connection, claim)
            return ClaimOutcome(commit=Commit(), rate=None, event=SET_APART)
        if comparisons(claim):
            most = max(int(COMPARED_RECORDS * size.share), 1)
            compare_slice(session.connection, session.side, pipeline, claim, slice_records=most)
            return ClaimOutcome(
                commit=Commit(), rate=None, event="compared the source with the ledger"
            )
        if sweeps(claim):
            most = max(int(SWEPT_RECORDS * size.share), 1)
            sweep_slice(session.connection, session.side, pipeline, claim, slice_records=most)
            return ClaimOutcome(commit=Commit(), rate=None, event="looked for deleted records")
        attempt_ids += log_attempts(session.side, claim, session.worker_id)
        reading = _read(session, pipeline, claim, size)
        embedding = _embed(session, pipeline, reading, chunker, device)
        with check_trust_often(session.side, pipeline).kept(session.connection):
            commit = _write(session, pipeline, claim, reading, embedding)
    return ClaimOutcome(
        commit=commit, rate=_rate(claim, reading, embedding, time.monotonic() - started)
    )


@contextmanager
def _attempts(session: Session) -> Iterator[list[int]]:
    """Delete the attempts logged in the block if anything goes wrong in it, short of a crash.

    After the claim is rolled back, whose transaction may have locked their rows. Those of items
    that ran out of time again are charged like a crash. Without a connection, all stay as orphans,
    which count for nothing.
    """
    attempt_ids: list[int] = []
    try:
        yield attempt_ids
    except BaseException as error:
        with suppress(psycopg.Error):
            if is_late(error):
                charge_late(session.side, attempt_ids, session.late, first_line(error))
            delete_attempts(session.side, attempt_ids)
        raise


def _progress(session: Session) -> None:
    session.checkpoint()
    renew(session.connection)


def _owners(claim: Claim) -> dict[str, WorkItem]:
    """Return the item of each distinct key: of several, one that wants it embedded again."""
    owner: dict[str, WorkItem] = {}
    for item in claim.items:
        for key in item.keys:
            if key not in owner or (
                item.handling.embed_again and not owner[key].handling.embed_again
            ):
                owner[key] = item
    return owner


def _read(session: Session, pipeline: Pipeline, claim: Claim, size: ClaimSize) -> _Reading:
    started = time.monotonic()
    owner = _owners(claim)
    give_up_reasons = {
        item.keys[0]: reason for item in claim.items if (reason := give_up_reason(item))
    }
    findings = _unreadable(session, pipeline, owner, give_up_reasons)
    for finding in findings:
        del owner[finding.key]
    keys = list(owner)[: size.records]
    again = [owner[key].handling.embed_again for key in keys]
    records = read_in_time(session.side, pipeline, keys, again, limit_bytes=size.limit_bytes)
    found = {record.key: record for record in records}
    ambiguous = _ambiguous(pipeline, records)
    left_over: dict[WorkItem, list[str]] = {}
    for key in list(owner)[size.records :]:
        left_over.setdefault(owner.pop(key), []).append(key)
    to_embed: list[tuple[SourceRecord, bool]] = []
    for key, item in owner.items():
        record = found.get(key)
        if key in ambiguous:
            findings.append(ambiguous[key])
        elif record is not None and record.beyond_limit:
            left_over.setdefault(item, []).append(key)
        elif record is not None and not record.unchanged and key not in give_up_reasons:
            to_embed.append((record, item.handling.embed_again))
        else:
            findings.append(_finding_unread(key, item, record, give_up_reasons.get(key)))
    _progress(session)
    return _Reading(
        to_embed=to_embed,
        findings=findings,
        left_over=left_over,
        seconds=time.monotonic() - started,
    )


def _ambiguous(pipeline: Pipeline, records: Sequence[SourceRecord]) -> dict[str, Finding]:
    """Return what is found of keys that have several rows: which one is meant is unknown."""
    hashes: dict[str, list[bytes]] = {}
    for record in records:
        hashes.setdefault(record.key, []).append(record.document_hash)
    return {
        key: Finding(
            key=key,
            found=Found.FAILED,
            document_hash=hash_of_rows(several),
            error=f"{pipeline.source} has {len(several)} rows with this key; make it unique",
            hopeless=True,
        )
        for key, several in hashes.items()
        if len(several) > 1
    }


def _unreadable(
    session: Session,
    pipeline: Pipeline,
    owner: Mapping[str, WorkItem],
    give_up_reasons: Mapping[str, str],
) -> list[Finding]:
    """Return the findings on records to be given up on, whose hash takes too long to read."""
    return [
        Finding(
            key=key,
            found=Found.FAILED,
            embed_again=owner[key].handling.embed_again,
            document_hash=UNREAD,
            error=reason,
            hopeless=True,
        )
        for key, reason in give_up_reasons.items()
        if owner[key].handling.died_of is not None
        and not is_hash_readable(session.side, pipeline, key, lease_seconds=session.lease_seconds)
    ]


def _finding_unread(
    key: str, item: WorkItem, record: SourceRecord | None, reason: str | None
) -> Finding:
    if record is None:
        return Finding(key=key, found=Found.DELETED, embed_again=item.handling.embed_again)
    return Finding(
        key=key,
        found=Found.FAILED if reason else Found.UNCHANGED,
        embed_again=item.handling.embed_again,
        document_hash=record.document_hash,
        error=reason,
        hopeless=reason is not None,
    )


def _embed(
    session: Session,
    pipeline: Pipeline,
    reading: _Reading,
    chunker: DocumentChunker,
    device: Device,
) -> EmbeddingResult:
    keys = reusable_keys(pipeline, reading.to_embed)
    return embed_records(
        reading.to_embed,
        chunker=chunker,
        embedder=ReusingEmbedder(truncating(pipeline, device), session.side, pipeline, keys),
        verify=device.verify,
        on_progress=lambda: _progress(session),
    )


def _write(
    session: Session,
    pipeline: Pipeline,
    claim: Claim,
    reading: _Reading,
    embedding: EmbeddingResult,
) -> Commit:
    """Write the findings and everything that belongs into the same commit."""
    started = time.monotonic()
    findings = Findings(
        records=_with_evidence(claim, [*reading.findings, *embedding.findings]),
        chunks=embedding.chunks,
        vectors=_stacked(embedding, pipeline.dimensions),
        worker_id=session.worker_id,
    )
    written = write(
        session.connection,
        session.codec,
        pipeline,
        findings,
        priority=claim.priority,
        lease_seconds=session.lease_seconds,
        retry_delay_base_seconds=session.retry_delay_seconds,
        checkpoint=session.checkpoint,
    )
    finish_items(session.connection, claim)
    hand_on(session.connection, pipeline, written.settled)
    _put_back(session.connection, claim, reading.left_over)
    commit = _commit(written, reading, embedding, time.monotonic() - started)
    record_commit(session.connection, pipeline.id, session.worker_id, commit)
    return commit


def _told(claim: Claim) -> set[str]:
    """Return the keys that one of the items allows to be deleted, whichever items have them too."""
    return {key for item in claim.items if item.handling.allow_deletes for key in item.keys}


def _with_evidence(claim: Claim, findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with what their items say about records that are not there."""
    told = _told(claim)
    return [
        replace(finding, allow_deletes=True) if finding.key in told else finding
        for finding in findings
    ]


def _stacked(embedding: EmbeddingResult, dimensions: int) -> np.ndarray:
    if not embedding.vectors:
        return np.empty((0, dimensions), dtype=np.float32)
    if len(embedding.vectors) == 1:
        return embedding.vectors[0]
    return np.concatenate(embedding.vectors)


def _put_back(connection: Connection, claim: Claim, left_over: dict[WorkItem, list[str]]) -> None:
    told = _told(claim)
    for likes in alike(left_over):
        keys = [key for item in likes for key in left_over[item]]
        for allow_deletes in (False, True):
            some = [key for key in keys if (key in told) == allow_deletes]
            handling = replace(likes[0].handling, allow_deletes=allow_deletes)
            add_items(connection, claim.pipeline_id, some, handling)


def _commit(
    written: Written, reading: _Reading, embedding: EmbeddingResult, write_seconds: float
) -> Commit:
    verdicts = written.verdicts
    return Commit(
        records=sum(count for verdict, count in verdicts.items() if verdict not in PUT_BACK),
        embedded=written.states["embedded"],
        empty=written.states["empty"],
        dead=written.states["dead"],
        unchanged=verdicts[Verdict.KEEP],
        failed=verdicts[Verdict.RETRY] + verdicts[Verdict.GIVE_UP],
        chunks=written.chunks,
        tokens=embedding.tokens,
        unknown_tokens=embedding.unknown_tokens,
        cache_hits=embedding.cache_hits,
        reused=embedding.reused,
        fp32_chunks=embedding.fp32_chunks,
        read_seconds=reading.seconds,
        chunk_seconds=embedding.chunk_seconds,
        embed_seconds=embedding.embed_seconds,
        write_seconds=write_seconds,
        lock_seconds=written.lock_seconds,
    )


def _rate(claim: Claim, reading: _Reading, embedding: EmbeddingResult, seconds: float) -> Rate:
    left_over = sum(item.weight for item in reading.left_over)
    weight = sum(item.weight for item in claim.items) - left_over
    waited_seconds = max(0.0, embedding.embed_seconds - embedding.device_seconds)
    return Rate(
        items=max(math.ceil(weight / MAX_ITEM_RECORDS), 1),
        text_bytes=reading.text_bytes,
        own_seconds=seconds - waited_seconds,
        seconds=seconds,
    )
