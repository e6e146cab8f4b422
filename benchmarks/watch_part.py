"""The cost of a look at everything, over a month's history: the statements of the snapshot."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil

from benchmarks.bench import Bench
from benchmarks.database import drop_database, new_database
from benchmarks.figures import Figure, Measured, Reach, interleaved
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.monitoring.details import read_details
from pgqueue_embed.monitoring.snapshot import Snapshot, read_snapshot
from pgqueue_embed.queue.dead_letters import read_failures, read_groups
from pgqueue_embed.web import make_site
from pgqueue_embed.web.live import Look
from pgqueue_embed.web.pages import MOVING, moving_values
from pgqueue_embed.web.site import render
from tests.support.corpus import make_source
from tests.support.pipelines import make_pipeline

PART = "watch"
UNIT = "ms of processor time"
PIPELINES = 200
DEAD = 200_000
MOST_MILLISECONDS = 200.0

# They are short, beside the filling.
ROUNDS = 5

# The server's time is told in hundredths of a second.
LOOKS = 20

# Those that ran in the last week, stopped every few seconds, and five that run.
WORKERS = """
insert into pgembed.workers
    (host, pid, device, precision, model, version, concurrency, pipeline_ids, stop_reason,
    stopped_at, heartbeat_at)
select
    'mac-' || n %% 16, n, 'mps', 'fp16', 'stub', '0', 2, array(select id from pgembed.pipelines),
    case when n > 5 then 'drained' end,
    case when n > 5 then clock_timestamp() - n * interval '6 seconds' end,
    clock_timestamp() - case when n > 5 then n * interval '6 seconds' else interval '1 second' end
from generate_series(1, 100000) as n
"""

INDEX = "create index on {target} using hnsw (embedding public.vector_cosine_ops)"

# The sum of a month, each minute of a day, and a commit of each of five workers every 8 seconds.
HISTORY = """
insert into pgembed.batches (pipeline_id, committed_at, records, embedded, chunks, rolled_up)
select id, clock_timestamp() - interval '61 minutes', %(records)s, %(records)s, 1, true
from pgembed.pipelines
union all
select 1, clock_timestamp(), 0, 0, 0, false;

insert into pgembed.minutes
select
    id, date_trunc('minute', clock_timestamp()) - n * interval '1 minute',
    5, 1000, 0, 0, 2000, 200000, 0.5, 0.5, 60, 3, 0
from pgembed.pipelines, generate_series(60, 1439) as n;

insert into pgembed.batches
    (pipeline_id, worker_id, committed_at, records, embedded, chunks, read_seconds, chunk_seconds,
    embed_seconds, write_seconds)
select
    1 + n %% 200, 1 + n %% 5, clock_timestamp() - n * interval '1.6 seconds', 400, 400, 800,
    0.3, 0.2, 7, 0.8
from generate_series(0, 2250) as n;

insert into pgembed.event_log (happened_at, kind, host, pid)
select clock_timestamp() - n * interval '6 seconds', 'stopped', 'mac', n
from generate_series(1, 100000) as n;

insert into pgembed.work (pipeline_id, keys, records)
select id, array(select (256 * n + i)::text from generate_series(1, 256) as i), 256
from pgembed.pipelines, generate_series(1, 30) as n
"""

LEDGER = """
insert into pgembed.records
    (pipeline_id, key, state, generation, document_hash, chunks, embedded_at)
select 1, n::text, 'embedded', 1, sha256(int8send(n)), 2, clock_timestamp()
from generate_series(1, %(records)s) as n;

update pgembed.records
set state = 'dead', chunks = 0, dead_at = clock_timestamp(), last_error = case
        when n %% 3 = 0 then 'violates check constraint "no' || n %% 7 || '"'
        else 'out of memory at ' || n
    end
from generate_series(1, %(dead)s) as n
where pipeline_id = 1 and key = n::text;

update pgembed.batches set dead = %(dead)s where pipeline_id = 1 and rolled_up
"""


def measure(bench: Bench) -> Iterator[Measured]:
    """Fill a database as after a month of work on 200 pipelines, and look at it."""
    records = bench.sizes.watch_records
    conninfo = new_database(bench.server)
    try:
        bench.say(f"filling a history of {PIPELINES} pipelines and {records:,} records")
        with connect(conninfo) as connection:
            _fill(connection, records)
            snapshot = partial(read_snapshot, connection)
            looks: dict[str, Callable[[], object]] = {
                "all pipelines": snapshot,
                "one pipeline": partial(snapshot, "p001"),
                "one with 200,000 dead letters": partial(snapshot, "p000"),
                "a day by the minute": partial(_history, connection),
                "a closer look at one": partial(read_details, connection, "p001"),
                "its dead letters": partial(_dead_letters, connection),
                "the overview as a page": partial(_page, snapshot(), "overview", None),
                "a pipeline as a page": partial(_page, snapshot(), "pipeline", "p001"),
            }
            for look in looks.values():
                look()
            costs = {name: partial(_cost, connection, look) for name, look in looks.items()}
            outcomes = interleaved(ROUNDS, costs)
    finally:
        drop_database(bench.server, conninfo)
    yield _measured(outcomes, records)


def _fill(connection: Connection, records: int) -> None:
    for number in range(PIPELINES):
        source = make_source(connection, table=f"source_{number}")
        target = make_pipeline(connection, source, name=f"p{number:03}").target
        connection.execute(INDEX.format(target=target))
    values = {"records": records, "dead": DEAD}
    connection.execute("alter table pgembed.workers disable trigger user")
    for statement in (WORKERS, *HISTORY.split(";"), *LEDGER.split(";")):
        connection.execute(statement, values)
    connection.execute("alter table pgembed.workers enable trigger user")
    connection.execute("vacuum analyze")


def _history(connection: Connection) -> None:
    connection.execute("select * from pgembed.history where pipeline = 'p001'").fetchall()


def _dead_letters(connection: Connection) -> None:
    groups = read_groups(connection, "p000", limit=50)
    read_failures(connection, "p000", limit=20, kind=groups[0]["error"])


def _page(snapshot: Snapshot, page: str, name: str | None) -> None:
    site = make_site("dbname=reports")
    render(MOVING[page], moving_values(site, Look(snapshot, None, 1), name))


def _cost(connection: Connection, look: Callable[[], object]) -> float:
    """Return the milliseconds of processor time of one look, the server's and ours."""
    server = psutil.Process(connection.info.backend_pid)
    began = _processor_seconds(server)
    for _ in range(LOOKS):
        look()
    return 1000 * (_processor_seconds(server) - began) / LOOKS


def _processor_seconds(server: psutil.Process) -> float:
    times = server.cpu_times()
    return float(times.user + times.system) + time.process_time()


def _measured(outcomes: dict[str, list[float]], records: int) -> Measured:
    corpus = f"{PIPELINES} pipelines, {records:,} records"
    figures = [
        Figure(part=PART, name=name, corpus=corpus, unit=UNIT, values=milliseconds)
        for name, milliseconds in outcomes.items()
    ]
    reaches = [
        Reach(
            name=f"a look: {figure.name}",
            measured=figure.median,
            target=MOST_MILLISECONDS,
            unit=UNIT,
            at_most=True,
        )
        for figure in figures
    ]
    return Measured(figures=figures, reaches=reaches)
