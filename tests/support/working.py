"""Working on a pipeline without a worker process: claims, one after the other, in this thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from pgqueue_embed.claim.embed import Device, DocumentChunker
from pgqueue_embed.claim.process import ClaimOutcome, Session, process_claim
from pgqueue_embed.claim.size import ClaimSize
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.db.vectors import VectorCodec
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.claims import is_drained
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.conditions import wait_until
from tests.support.fakes import FakeDevice, fake_chunker
from tests.support.pipelines import queue_documents

# The application name of both connections of a session.
WORKER_NAME = "pgembed worker"

SIZE = ClaimSize(items=4, limit_bytes=1 << 20)


@contextmanager
def open_session(
    conninfo: str,
    *,
    worker_id: int = 1,
    lease_seconds: float = 30.0,
    retry_delay_seconds: float = 0.0,
    checkpoint: Callable[[], None] = lambda: None,
) -> Iterator[Session]:
    """Open what a worker loop works with; failed records are tried again at once."""
    name = WORKER_NAME
    with (
        connect(conninfo, application_name=name) as connection,
        connect(conninfo, application_name=name) as side,
    ):
        yield Session(
            connection=connection,
            side=side,
            codec=VectorCodec(connection),
            worker_id=worker_id,
            lease_seconds=lease_seconds,
            retry_delay_seconds=retry_delay_seconds,
            checkpoint=checkpoint,
        )


def work_once(
    session: Session,
    pipeline: Pipeline,
    device: Device | None = None,
    *,
    size: ClaimSize = SIZE,
    alone: bool = False,
    chunker: DocumentChunker | None = None,
) -> ClaimOutcome | None:
    """Process one claim with a fake device and a small chunker."""
    return process_claim(
        session,
        pipeline,
        chunker=chunker or fake_chunker(),
        device=device or FakeDevice(dimensions=pipeline.dimensions),
        size=size,
        alone=alone,
    )


def drain(
    session: Session,
    pipeline: Pipeline,
    device: Device | None = None,
    *,
    size: ClaimSize = SIZE,
    chunker: DocumentChunker | None = None,
) -> list[ClaimOutcome]:
    """Process claims until nothing of the pipeline is pending, items set apart included."""
    done: list[ClaimOutcome] = []

    def is_finished() -> bool:
        for alone in (False, True):
            while (
                claim := work_once(
                    session, pipeline, device, size=size, alone=alone, chunker=chunker
                )
            ) is not None:
                done.append(claim)
        return is_drained(session.side, [pipeline.id])

    wait_until(is_finished, f"pipeline {pipeline.name} is drained")
    return done


def embed(
    connection: Connection,
    session: Session,
    pipeline: Pipeline,
    *,
    chunker: DocumentChunker | None = None,
) -> int:
    """Queue what is new, changed or gone, and embed it; returns how many records were queued."""
    queued = enqueue(connection, pipeline, Selection())
    drain(session, pipeline, chunker=chunker)
    return queued


def embed_documents(
    connection: Connection, session: Session, documents: Iterable[str | None], **fields: Any
) -> Pipeline:
    """Make a source of `documents`, keyed from 1, with a pipeline, and embed all of it."""
    pipeline = queue_documents(connection, documents, **fields)
    drain(session, pipeline)
    return pipeline
