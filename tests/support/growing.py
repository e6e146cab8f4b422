"""Work whose cost grows with what it is given, and once grew with the square of that."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.monitoring.snapshot import read_snapshot
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec_checks import NEXT_NAME
from pgqueue_embed.queue import dead_letters
from pgqueue_embed.queue.claims import claim_items, claimable_pipelines
from pgqueue_embed.queue.enqueue import Selection, enqueue
from pgqueue_embed.queue.lease import claim_transaction
from pgqueue_embed.target import target_of
from tests.support.corpus import make_source
from tests.support.pipelines import make_pipeline

POLLS = 20
DIMENSIONS = 64


@dataclass(frozen=True, kw_only=True)
class Case:
    """One piece of work: `fill` prepares an empty database for `size`, `run` is measured."""

    name: str
    unit: str
    fill: Callable[[Connection, Pipeline, int], None]
    run: Callable[[Connection, Pipeline], None]


SOURCE = """
insert into public.reports (id, body)
select n, 'report ' || n from generate_series(1, %(records)s) as n
"""

LEDGER = """
insert into pgembed.records (pipeline_id, key, state, generation, chunks, document_hash)
select
    %(pipeline_id)s, id::text, 'embedded', 1, 1, sha256(convert_to(body, 'UTF8'))
from public.reports
"""

DIE = """
update pgembed.records
set state = 'dead', chunks = 0, dead_at = clock_timestamp(), last_error = 'of old'
"""


def _embedded(connection: Connection, pipeline: Pipeline, records: int) -> None:
    """Fill source and ledger as when all is embedded, and nothing has failed yet."""
    values = {"pipeline_id": pipeline.id, "records": records}
    for statement in (SOURCE, LEDGER):
        connection.execute(statement, values)
    connection.execute("vacuum analyze public.reports, pgembed.records, pgembed.work")


def _dead(connection: Connection, pipeline: Pipeline, records: int) -> None:
    _embedded(connection, pipeline, records)
    connection.execute(DIE)


def _retry_all(connection: Connection, pipeline: Pipeline) -> None:
    assert dead_letters.retry(connection, pipeline) > 0


def _retry_kind(connection: Connection, pipeline: Pipeline) -> None:
    assert dead_letters.retry(connection, pipeline, kind="of old") > 0


def _retry_in_sql(connection: Connection, pipeline: Pipeline) -> None:
    connection.execute("select pgembed.retry(%s)", (pipeline.name,))


# Every other record was changed, or deleted, by a statement of its own, and a trigger has said so.
CHANGE = """
with changed as (
    update public.reports set body = body || ', again' where id %% 2 = 0 returning id
)
insert into pgembed.work (pipeline_id, keys, records, priority, known)
select %(pipeline_id)s, array[id::text], 1, 0, true from changed
"""

DELETE = """
with deleted as (
    delete from public.reports where id %% 2 = 0 returning id
)
insert into pgembed.work (pipeline_id, keys, records, priority, known, allow_deletes)
select %(pipeline_id)s, array[id::text], 1, 0, true, true from deleted
"""


def _beside(statement: str) -> Callable[[Connection, Pipeline, int], None]:
    def fill(connection: Connection, pipeline: Pipeline, records: int) -> None:
        _embedded(connection, pipeline, records)
        connection.execute(statement, {"pipeline_id": pipeline.id})
        connection.execute("vacuum analyze public.reports, pgembed.work")

    return fill


def _new(connection: Connection, pipeline: Pipeline, records: int) -> None:
    connection.execute(SOURCE, {"records": records})
    connection.execute("vacuum analyze public.reports, pgembed.work")


def _enqueue_first(connection: Connection, pipeline: Pipeline) -> None:
    assert enqueue(connection, pipeline, Selection()) > 0


def _enqueue(connection: Connection, pipeline: Pipeline) -> None:
    assert enqueue(connection, pipeline, Selection()) == 0, "it waits already"


DELAYED = """
insert into pgembed.work (pipeline_id, keys, records, retrying, known, available_at)
select %s, array[n::text], 1, true, true, clock_timestamp() + interval '1 hour'
from generate_series(1, %s) as n
"""


def _delayed(connection: Connection, pipeline: Pipeline, records: int) -> None:
    connection.execute(DELAYED, (pipeline.id, records))
    connection.execute("vacuum analyze pgembed.work")


def _poll(connection: Connection, pipeline: Pipeline) -> None:
    for _ in range(POLLS):
        assert claimable_pipelines(connection, [pipeline.id], alone=False) == []
        with claim_transaction(connection, lease_seconds=60):
            assert claim_items(connection, pipeline.id, limit=16) is None


# Machines whose workers are started anew all the time, and the commits of their last minute.
WORKERS = """
insert into pgembed.workers
    (host, pid, device, precision, model, version, concurrency, pipeline_ids)
select 'mac-' || n, 100 + n, 'mps', 'fp16', 'stub', '0', 2, array[%(pipeline_id)s]::bigint[]
from generate_series(1, %(workers)s) as n
"""

BATCHES = """
insert into pgembed.batches (pipeline_id, worker_id, records, embedded, chunks, tokens)
select %(pipeline_id)s, 1 + n %% %(workers)s, 256, 256, 512, 50000
from generate_series(1, 10 * %(workers)s) as n
"""

RECORDS_OF_A_WORKER = 200


def _fleet(connection: Connection, pipeline: Pipeline, records: int) -> None:
    values = {"pipeline_id": pipeline.id, "workers": records // RECORDS_OF_A_WORKER}
    for statement in (WORKERS, BATCHES):
        connection.execute(statement, values)
    connection.execute("vacuum analyze pgembed.workers, pgembed.batches")


def _status(connection: Connection, pipeline: Pipeline) -> None:
    for _ in range(POLLS):
        read_snapshot(connection, pipeline.name)


CASES = (
    Case(name="pgembed retry of all", unit="dead letters", fill=_dead, run=_retry_all),
    Case(name="pgembed retry of one kind", unit="dead letters", fill=_dead, run=_retry_kind),
    Case(name="select pgembed.retry", unit="dead letters", fill=_dead, run=_retry_in_sql),
    Case(
        name=f"{POLLS} looks at the status",
        unit=f"records, a worker for {RECORDS_OF_A_WORKER}",
        fill=_fleet,
        run=_status,
    ),
    Case(name="first enqueue", unit="records", fill=_new, run=_enqueue_first),
    Case(
        name="enqueue beside changes that wait",
        unit="records, half of them changed",
        fill=_beside(CHANGE),
        run=_enqueue,
    ),
    Case(
        name="enqueue beside deletions that wait",
        unit="records, half of them deleted",
        fill=_beside(DELETE),
        run=_enqueue,
    ),
    Case(
        name=f"{POLLS} idle polls beside delayed retries",
        unit="delayed retries",
        fill=_delayed,
        run=_poll,
    ),
)


CHUNKS = """
insert into {target}
    (fulltext_id, chunk_id, chunk_index, text_chunk, start_char, end_char, tokens, embedding)
select id, id || '_0', 0, body, 0, length(body), 1, vector::public.vector
from public.reports
-- Of the record, so that each has another one.
cross join lateral (
    select array_agg(random() - 0.5 + 0 * id * step) from generate_series(1, {dimensions}) as step
) as drawn (vector)
"""


def two_generations(connection: Connection, records: int) -> Pipeline:
    """Make a pipeline and a next generation of it, complete both, with vectors drawn at random."""
    source = make_source(connection)
    connection.execute(SOURCE, {"records": records})
    pipeline = make_pipeline(connection, source, dimensions=DIMENSIONS)
    target = target_of(pipeline).next_place["target"]
    successor = make_pipeline(
        connection, source, name=pipeline.name + NEXT_NAME, target=target, dimensions=DIMENSIONS
    )
    for each in (pipeline, successor):
        connection.execute(LEDGER, {"pipeline_id": each.id})
        chunks = sql.SQL(CHUNKS).format(target=each.target.identifier, dimensions=DIMENSIONS)
        connection.execute(chunks)
    of = "update pgembed.pipelines set successor_of = %s where id = %s"
    connection.execute(of, (pipeline.id, successor.id))
    connection.execute("vacuum analyze")
    return pipeline
