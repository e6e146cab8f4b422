"""A database in the middle of its work: machines, failures, a history, hostile texts."""

from __future__ import annotations

import csv
import gzip
import re
from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import pytest
from numpy.typing import NDArray
from psycopg import sql

from pgqueue_embed.chunking import Chunk
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import Embedded
from pgqueue_embed.lifecycle.alter import Changes, alter, catch_up
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.enqueue import Selection, enqueue
from tests.support.corpus import MAUDE_SAMPLE
from tests.support.fakes import POISON, FakeDevice, fake_chunker
from tests.support.pipelines import make_pipeline, prepare_with_fake_model
from tests.support.working import drain, open_session

DIMENSIONS = 384

# Quotes, a slash, markup, Chinese: whatever somebody calls a pipeline.
ODD_NAME = "评论/O'Brien \"&<b>2026"
HOSTILE = "<script>document.title='owned'</script><img src=x onerror=alert(1)>\x1b[2J\u202etsol"
MEGABYTES = 1_200_000

REPORTS = 60

_HOSTILE_ROW = {"event_type": "D", "brand_name": HOSTILE}
_LONG = f"{HOSTILE} needle in a haystack. " + "An endless report. " * (MEGABYTES // 19)
HOSTILE_ROWS = (
    {"mdr_text_key": "7", **_HOSTILE_ROW, "foi_text": f"{POISON} {HOSTILE}"},
    {"mdr_text_key": "8", **_HOSTILE_ROW, "foi_text": f"{POISON} {_LONG}"},
    {"mdr_text_key": "9", **_HOSTILE_ROW, "foi_text": f"{HOSTILE} needle in a haystack"},
)
HOSTILE_ERROR = f"{HOSTILE} {'megabytes ' * 30_000}"
REFUSED = "the target table refused it:"
PLEASANT_ERROR = f"{REFUSED} value too long for type character varying(200)"
CHECK_VIOLATION = 'new row for relation "event_text_vectors" violates check constraint "no7"'


class WordDevice(FakeDevice):
    """A fake model for which texts are near that have words in common."""

    def embed(
        self,
        chunks: Sequence[Chunk],
        *,
        on_progress: Callable[[], None] = lambda: None,
        anew: bool = False,
    ) -> Embedded:
        super().embed(chunks, on_progress=on_progress, anew=anew)
        return Embedded(vectors=np.stack([word_vector(chunk.text) for chunk in chunks]))


class WordEncoder:
    """Fulfils what a search asks of a QueryEncoder."""

    def encode(self, query: str, truncate_dim: int | None = None) -> NDArray[np.float32]:
        del truncate_dim
        return word_vector(query)


def word_vector(text: str) -> NDArray[np.float32]:
    """Return a vector of length 1 in which each word of `text` has a direction."""
    vector = np.full(DIMENSIONS, 1e-3, dtype=np.float32)
    for word in re.findall(r"\w{4,}", text.lower()):
        vector[crc32(word.encode()) % DIMENSIONS] += 1
    unit: NDArray[np.float32] = vector / np.linalg.norm(vector)
    return unit


def make_world(connection: Connection, conninfo: str, *, is_hostile: bool = True) -> Pipeline:
    """Make pipelines, embed some of them, and write down a history; returns the largest pipeline.

    `reports` has 5 million records, if one believes its history, three machines, dead letters and a
    next generation; another one is complete. Hostile texts are for tests, others for pictures.
    """
    source = _event_text(connection, HOSTILE_ROWS if is_hostile else ())
    reports = make_pipeline(connection, source, **FIELDS, name="reports")
    odd = make_pipeline(
        connection,
        _small_table(connection),
        name=ODD_NAME if is_hostile else "glosses",
        dimensions=DIMENSIONS,
        max_attempts=1,
    )
    device = WordDevice(dimensions=DIMENSIONS)
    with open_session(conninfo) as session:
        for each, chunker in ((reports, fake_chunker(64, 8)), (odd, fake_chunker())):
            enqueue(connection, each, Selection())
            drain(session, each, device, chunker=chunker)
    _failures(connection, reports, HOSTILE_ERROR if is_hostile else PLEASANT_ERROR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pgqueue_embed.lifecycle.alter.prepare", prepare_with_fake_model)
        patch.setattr("pgqueue_embed.lifecycle.alter.check_local_model", lambda _pipeline: None)
        successor = alter(connection, reports, Changes(overlap_tokens=2))
        assert successor is not None
        catch_up(connection, reports, successor)
    values = {"id": reports.id}
    for statement in HISTORY.split(";"):
        connection.execute(statement, values)
    connection.execute("analyze")
    return reports


FIELDS: dict[str, Any] = {
    "target": Table(schema="public", name="event_text_vectors"),
    "dimensions": DIMENSIONS,
    "id_field": "mdr_text_key",
    "text_field": "foi_text",
    "chunk_tokens": 64,
    "overlap_tokens": 8,
    "max_attempts": 1,
}


def commit_some(connection: Connection, pipeline: Pipeline, records: int = 4_321) -> None:
    """Write down a commit of so many records, as a worker does."""
    connection.execute(COMMIT, {"id": pipeline.id, "records": records})


def _event_text(connection: Connection, more: Sequence[dict[str, str]]) -> Table:
    with gzip.open(MAUDE_SAMPLE, "rt", encoding="utf-8", newline="") as file:
        rows = [row for _, row in zip(range(REPORTS), csv.DictReader(file), strict=False)]
    connection.execute(
        "create table event_text (mdr_text_key bigint primary key, event_type text,"
        " brand_name text, foi_text text)"
    )
    rows += more
    with connection.cursor() as cursor:
        cursor.executemany(
            "insert into event_text values (%(mdr_text_key)s, %(event_type)s, %(brand_name)s,"
            " %(foi_text)s)",
            rows,
        )
    return Table(schema="public", name="event_text")


def _small_table(connection: Connection) -> Table:
    table = Table(schema="public", name="odd 'table\"/")
    names = {"table": sql.Identifier(table.schema, table.name)}
    create = "create table {table} (id text primary key, body text)"
    connection.execute(sql.SQL(create).format(**names))
    fill = "insert into {table} values ('a/''\"键', 'The quick brown fox'), ('b', '敏捷的棕色狐狸')"
    connection.execute(sql.SQL(fill).format(**names))
    return table


def _failures(connection: Connection, pipeline: Pipeline, error: str) -> None:
    """Add dead letters of two more kinds, one of them with `error`."""
    connection.execute(
        "insert into pgembed.records (pipeline_id, key, state, dead_at, attempts, last_error)"
        " select %(id)s, n::text, 'dead', now() - n * interval '1 minute', 3, case when n %% 2 = 0"
        " then %(check)s else %(error)s end from generate_series(100, 140) as n",
        {"id": pipeline.id, "error": error, "check": f"{REFUSED} {CHECK_VIOLATION}"},
    )


COMMIT = """
insert into pgembed.batches
    (pipeline_id, worker_id, committed_at, records, embedded, chunks, tokens, read_seconds,
    chunk_seconds, embed_seconds, write_seconds, lock_seconds)
select %(id)s, max(id), clock_timestamp(), %(records)s, %(records)s, 2 * %(records)s,
    100 * %(records)s, 0.4, 0.3, 9, 1.1, 0.2
from pgembed.workers
where stopped_at is null
"""

# The hours of a day differ; five seconds lie between the commits of a machine.
HISTORY = """
insert into pgembed.workers
    (host, pid, device, precision, model, version, concurrency, role, pipeline_ids, state,
    records, memory_bytes, started_at, heartbeat_at, last_error, last_error_at, leases_lost)
values
    ('studio-1.lan', 4001, 'mps', 'fp16', 'all-MiniLM-L6-v2', '0.1.0', 4, 'embedder',
        array[%(id)s::bigint], 'working', 1190442, 3100000000,
        clock_timestamp() - interval '26 hours', clock_timestamp() + interval '1 hour',
        null, null, 0),
    ('air-4.lan', 911, 'mps', 'fp16', 'all-MiniLM-L6-v2', '0.1.0', 2, 'embedder',
        array[%(id)s::bigint], 'working', 201774, 1400000000,
        clock_timestamp() - interval '11 hours', clock_timestamp() - interval '3 minutes',
        'it took longer than the lease', clock_timestamp() - interval '4 minutes', 1),
    ('mini-5.lan', 702, 'mps', 'fp16', 'all-MiniLM-L6-v2', '0.1.0', 2, 'embedder',
        array[%(id)s::bigint], 'working', 402118, 1900000000,
        clock_timestamp() - interval '2 hours', clock_timestamp() + interval '1 hour',
        null, null, 0);

update pgembed.event_log
set happened_at = started_at
from pgembed.workers
where kind = 'started' and worker_id = workers.id;

delete from pgembed.event_log where kind = 'started' and host = 'mini-5.lan';

insert into pgembed.batches
    (pipeline_id, committed_at, records, embedded, dead, chunks, rolled_up)
values (%(id)s, clock_timestamp() - interval '25 hours', 3411000, 3411000, 41, 6800000, true);

insert into pgembed.minutes
select
    %(id)s, date_trunc('minute', clock_timestamp()) - n * interval '1 minute', 12,
    (14000 + 9000 * sin(n / 90.0) + 2500 * sin(n / 7.0))::bigint, 3, 0, 30000, 2000000,
    4, 3, 92, 11, 2
from generate_series(31, 1200) as n;

insert into pgembed.batches
    (pipeline_id, worker_id, committed_at, records, embedded, chunks, tokens, read_seconds,
    chunk_seconds, embed_seconds, write_seconds, lock_seconds)
select
    %(id)s,
    workers.id,
    clock_timestamp() - n * interval '5 seconds',
    case host when 'studio-1.lan' then 715 when 'mini-5.lan' then 355 else 300 end
        + (60 * sin(n / 11.0))::integer,
    0, 800, 70000, 0.3, 0.2, 7, 0.8, 0.1
from generate_series(1, 350) as n
join pgembed.workers
    on host in ('studio-1.lan', 'mini-5.lan') or host = 'air-4.lan' and n > 36;

insert into pgembed.work (pipeline_id, keys, records)
select %(id)s, keys, 256
from (select array(select (10000000 + n)::text from generate_series(1, 256) as n) as keys) as one
cross join generate_series(1, 6100);

insert into pgembed.work (pipeline_id, keys, records, known, retrying, available_at)
values (%(id)s, array['1','2','3','4','5','6','7','8','9','10','11'], 11, true, true,
    clock_timestamp() + interval '3 minutes');

insert into pgembed.event_log (happened_at, kind, host, pid, worker_id, pipeline, detail)
values
    (clock_timestamp() - interval '4 minutes', 'lease lost', 'air-4.lan', 911, 2, null,
        'it took longer than the lease'),
    (clock_timestamp() - interval '2 hours', 'crashed', 'mini-5.lan', 701, 3, null,
        'killed by SIGKILL'),
    (clock_timestamp() - interval '2 hours', 'restarted', 'mini-5.lan', 702, 3, null, 'mps fp16'),
    (clock_timestamp() - interval '9 hours', 'paused', null, null, null, 'reports',
        'the nightly load runs'),
    (clock_timestamp() - interval '7 hours', 'resumed', null, null, null, 'reports', null)
"""
