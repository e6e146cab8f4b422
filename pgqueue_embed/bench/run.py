"""A measurement from begin to end: what this machine is, its forward pass, whole workers."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import islice
from statistics import median
from typing import Any

from pgqueue_embed.bench.forward import Forward, Tell, from_json
from pgqueue_embed.bench.machine import Machine, describe_machine
from pgqueue_embed.bench.texts import documents
from pgqueue_embed.bench.throw_away import throw_away_database
from pgqueue_embed.db.extension import find_extension
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.embedding import resolve_model
from pgqueue_embed.embedding.batch_sizes import AS_GOOD
from pgqueue_embed.errors import SetupError
from pgqueue_embed.lifecycle.create import Prepared, make, prepare
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.worker.python_process import start_python
from pgqueue_embed.worker.settings import WorkerSettings

PROGRAM = "pgqueue_embed.bench.process"
CONCURRENCIES = (1, 2, 4)

# Of the seconds asked for, those of the forward pass; the others are the workers'.
FORWARD_SHARE = 0.4
# Of a worker's seconds; its usual claims would be of half of them.
CLAIM_SHARE = 0.1
FEWEST_RECORDS = 8
ROUND_TRIPS = 21

SOURCE = Table(schema="public", name="texts")


@dataclass(frozen=True, kw_only=True)
class Worked:
    """What one worker did with so many claims at once.

    `forward_share` is its rate's share of the forward pass alone, `busy_share` the share of its
    time in which the device computed.
    """

    concurrency: int
    records: int
    chunks: int
    seconds: float
    chunks_per_second: float
    forward_share: float
    busy_share: float
    is_best: bool = False


@dataclass(frozen=True, kw_only=True)
class MeasuredServer:
    """The PostgreSQL that workers wrote to, and how long it takes to say anything at all."""

    postgresql: str
    pgvector: str
    round_trip_ms: float
    is_private: bool


@dataclass(frozen=True, kw_only=True)
class Measured:
    """All that was measured; `seconds` is how long it took."""

    machine: Machine
    server: MeasuredServer
    forward: Forward
    workers: Sequence[Worked]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


def measure(
    conninfo: str,
    *,
    model: str,
    device: str = "auto",
    seconds: float = 120.0,
    tell: Tell = lambda _: None,
) -> Measured:
    """Measure for about so many seconds, the opening of models and the rest not counted.

    `tell` hears what is done. Raises UsageError or ModelError for a model or device that is not to
    be had, SetupError where no database can be made.
    """
    started = time.monotonic()
    machine = describe_machine()
    resolve_model(model)  # one that is not to be had is said before anything is made
    with throw_away_database(conninfo) as own:
        orders = {"model": model, "device": device, "seconds": FORWARD_SHARE * seconds}
        forward = from_json(_found(orders, tell))
        share = (1 - FORWARD_SHARE) * seconds / len(CONCURRENCIES)
        with connect(own) as connection:
            server = _server(connection, conninfo)
            records = _load(connection, forward, share)
            prepared = _prepared(connection, forward, model)
        worked = []
        for concurrency in CONCURRENCIES:
            tell(f"a worker with --concurrency {concurrency}: {records:,} records")
            worked.append(_work(own, prepared, forward, concurrency, device, share))
    return Measured(
        machine=machine,
        server=server,
        forward=forward,
        workers=with_best(worked),
        seconds=time.monotonic() - started,
    )


def with_best(worked: Sequence[Worked]) -> list[Worked]:
    """Return them with the best one marked: the fewest claims at once that are as good as any."""
    most = max(each.chunks_per_second for each in worked)
    best = next(each for each in worked if each.chunks_per_second >= AS_GOOD * most)
    return [replace(each, is_best=each is best) for each in worked]


def _server(connection: Connection, conninfo: str) -> MeasuredServer:
    times = []
    for _ in range(ROUND_TRIPS):
        began = time.perf_counter()
        connection.value("select 1")
        times.append(time.perf_counter() - began)
    extension = find_extension(connection)
    with connect(conninfo) as given:
        is_private = bool(given.place_if_private)
    return MeasuredServer(
        postgresql=str(connection.value("show server_version")).split()[0],
        pgvector=str(extension.version) if extension else "",
        round_trip_ms=round(1000 * median(times), 2),
        is_private=is_private,
    )


def _load(connection: Connection, forward: Forward, seconds: float) -> int:
    """Make the source, with as many records as take so long, and return how many these are."""
    wanted = seconds * forward.chunks_per_second / forward.chunks_per_document
    records = max(FEWEST_RECORDS, int(wanted))
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(
            "create table public.texts (id bigint generated always as identity primary key,"
            " body text not null)"
        )
        with cursor.copy("copy public.texts (body) from stdin") as copy:
            for text in islice(documents(seed=1), records):
                copy.write_row((text,))
    return records


def _prepared(connection: Connection, forward: Forward, model: str) -> Prepared:
    spec = PipelineSpec(
        name="bench",
        source=SOURCE,
        target=Table(schema="public", name="vectors"),
        text_fields=("body",),
        chunk_tokens=forward.chunk_tokens,
        overlap_tokens=forward.overlap_tokens,
    )
    return prepare(connection, spec, model)


def _work(
    own: str,
    prepared: Prepared,
    forward: Forward,
    concurrency: int,
    device: str,
    seconds: float,
) -> Worked:
    """Let a worker embed all in a pipeline of its own; its claims are the shorter for it."""
    name = f"bench_{concurrency}"
    target = Table(schema="public", name=f"vectors_{concurrency}")
    settings = WorkerSettings(
        concurrency=concurrency,
        device=device,
        drain=True,
        pipelines=(name,),
        claim_seconds=min(WorkerSettings.claim_seconds, max(0.5, CLAIM_SHARE * seconds)),
    )
    with connect(own) as connection:
        spec = replace(prepared.spec, name=name, target=target)
        pipeline = make(connection, replace(prepared, spec=spec)).pipeline
        enqueue(connection, pipeline, Selection())
        found = _found({"conninfo": own, "settings": settings.to_json()})
        records, chunks, took = connection.row(TAKEN, (pipeline.id,))
    if not chunks or not took:
        raise SetupError("the worker has embedded nothing; look why: pgembed doctor")
    rate = chunks / took
    return Worked(
        concurrency=concurrency,
        records=records,
        chunks=chunks,
        seconds=took,
        chunks_per_second=rate,
        forward_share=rate / forward.chunks_per_second,
        busy_share=min(1.0, found["device_seconds"] / took),
    )


# From the begin of the first claim to the last commit.
TAKEN = """
select
    coalesce(sum(records), 0)::bigint,
    coalesce(sum(chunks), 0)::bigint,
    extract(
        epoch from max(committed_at) - min(
            committed_at - make_interval(
                secs => read_seconds + chunk_seconds + embed_seconds + write_seconds
            )
        )
    )::double precision
from pgembed.batches
where pipeline_id = %s
"""


def _found(orders: Mapping[str, Any], tell: Tell = lambda _: None) -> dict[str, Any]:
    """Have a process of its own measure something, and return what it has found.

    Raises SetupError for what it says it failed with; it is gone when this returns.
    """
    process = start_python(
        PROGRAM, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    with process:
        try:
            for said in _said(process, orders):
                if "found" in said:
                    return dict(said["found"])
                if "failed" in said:
                    raise _failure(said)
                tell(said["doing"])
        finally:
            process.kill()
    raise SetupError("the process that measures has died; look why: pgembed doctor")


def _said(process: subprocess.Popen[bytes], orders: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Give the orders, and yield what the process says until it ends."""
    with suppress(BrokenPipeError):
        if process.stdin:
            process.stdin.write(json.dumps(orders).encode() + b"\n")
            process.stdin.flush()
    yield from map(json.loads, process.stdout or ())


def _failure(said: Mapping[str, Any]) -> SetupError:
    error = SetupError(said["failed"])
    error.exit_code = said["exit_code"]
    return error
