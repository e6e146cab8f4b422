"""The cost of capturing changes to those who write to the source, by wall and processor time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import psutil

from benchmarks.bench import Bench
from benchmarks.corpora import maude
from benchmarks.cpu_time import process_seconds
from benchmarks.database import PIPELINE, drop_database, fake_identity, make_pipeline, new_database
from benchmarks.figures import Figure, Measured, Reach, interleaved, ratio
from pgqueue_embed.db.session import Connection, connect
from pgqueue_embed.pipeline.catalog import load_pipeline
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.capture import install, remove

PART = "capture"
WANTED_RATIO = 1.10

# The reports, over and over; enough of them for the largest statement.
TABLES = """
create table public.texts (n bigint primary key, body text);
create table public.reports (id bigint primary key, body text, other integer default 0)
"""

# The least that a trigger on statements can cost: the rows are handed over, and nothing is done.
IDLE_TRIGGERS = """
create function public.idle() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger idle_insert after insert on public.reports
    referencing new table as changed
    for each statement execute function public.idle();
create trigger idle_update after update on public.reports
    referencing old table as before new table as after
    for each statement execute function public.idle()
"""


# 60 kB for each row, which PostgreSQL keeps elsewhere, and cannot compress by much.
LENGTHEN = """
update public.reports
set body = (select string_agg(md5(id || '.' || n), ' ') from generate_series(1, 1820) as n)
"""


@dataclass(frozen=True, kw_only=True)
class Workload:
    """Statements of a user's: `rows` are there before; `statement` is executed `times` times.

    `lengthen` makes their texts long, ones that do not compress.
    """

    name: str
    rows: int
    statement: str
    times: int = 1
    lengthen: str | None = None


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Seconds of one run, by the clock and of processor time."""

    wall: float
    cpu: float


def measure(bench: Bench) -> Iterator[Measured]:
    """Run each workload without triggers, with idle ones and with capture, in turns."""
    conninfo = new_database(bench.server)
    with connect(conninfo) as connection:
        _fill(connection, bench.sizes.capture_rows)
        for workload in _workloads(bench.sizes.capture_rows, bench.sizes.capture_statements):
            bench.say(workload.name)
            yield _measure(bench, connection, workload)
    drop_database(bench.server, conninfo)


def _fill(connection: Connection, rows: int) -> None:
    documents = maude().documents
    connection.execute(TABLES)
    make_pipeline(connection, fake_identity(384))
    with connection.cursor().copy("copy public.texts from stdin") as copy:
        for number in range(rows):
            copy.write_row((number, documents[number % len(documents)]))
    connection.execute("vacuum analyze public.texts")


def _workloads(rows: int, statements: int) -> list[Workload]:
    many, few = rows // 10, rows // 50
    new_text = "body = body || ' Amended.'"
    return [
        Workload(
            name=f"INSERT of {rows:,} rows at once",
            rows=0,
            statement="insert into public.reports select n, body from public.texts",
        ),
        Workload(
            name=f"{statements:,} INSERTs of a row, each its own commit",
            rows=0,
            statement="insert into public.reports select n, body from public.texts where n = %s",
            times=statements,
        ),
        Workload(
            name=f"UPDATE of the text of {many:,} rows at once",
            rows=many,
            statement=f"update public.reports set {new_text}",
        ),
        Workload(
            name=f"UPDATE of another column of {many:,} rows at once",
            rows=many,
            statement="update public.reports set other = other + 1",
        ),
        Workload(
            name=f"UPDATE of another column of {few:,} rows at once, beside texts of 60 kB",
            rows=few,
            statement="update public.reports set other = other + 1",
            lengthen=LENGTHEN,
        ),
        Workload(
            name=f"{statements:,} UPDATEs of the text of a row, each its own commit",
            rows=statements,
            statement=f"update public.reports set {new_text} where id = %s",
            times=statements,
        ),
    ]


def _measure(bench: Bench, connection: Connection, workload: Workload) -> Measured:
    def variant(prepare: Callable[[], object]) -> Callable[[], Cost]:
        def run() -> Cost:
            _prepare(connection, workload)
            prepare()
            return _run(connection, workload)

        return run

    pipeline = _pipeline(connection)
    variants = {
        "without": variant(lambda: None),
        "idle trigger": variant(lambda: connection.execute(IDLE_TRIGGERS)),
        "capture": variant(lambda: install(connection, pipeline)),
    }
    costs = interleaved(bench.rounds, variants, on_run=bench.on_run)
    _clear(connection)
    measured = Measured()
    for by in ("wall", "cpu"):
        values = {name: [getattr(each, by) for each in costs[name]] for name in costs}
        for name, seconds in values.items():
            measured.figures.append(_figure(f"{workload.name}: {name}, {by}", seconds))
        measured.reaches.append(
            Reach(
                name=f"{workload.name}: capture / without, {by}",
                measured=ratio(values["capture"], values["without"]),
                target=WANTED_RATIO,
                at_most=True,
            )
        )
    return measured


def _pipeline(connection: Connection) -> Pipeline:
    return load_pipeline(connection, PIPELINE)


def _figure(name: str, seconds: list[float]) -> Figure:
    return Figure(part=PART, name=name, corpus="MAUDE", unit="s", values=seconds)


def _clear(connection: Connection) -> None:
    remove(connection, _pipeline(connection))
    connection.execute("drop function if exists public.idle cascade")
    connection.execute("truncate public.reports, pgembed.work")


def _prepare(connection: Connection, workload: Workload) -> None:
    _clear(connection)
    connection.execute(
        "insert into public.reports select n, body from public.texts where n < %s", (workload.rows,)
    )
    if workload.lengthen is not None:
        connection.execute(workload.lengthen)
    connection.execute("vacuum analyze public.reports")
    connection.execute("checkpoint")


def _run(connection: Connection, workload: Workload) -> Cost:
    back_end = psutil.Process(connection.info.backend_pid)
    cpu, wall = process_seconds(back_end), time.perf_counter()
    for number in range(workload.times):
        values = (number,) if workload.times > 1 else None
        connection.execute(workload.statement, values)
    return Cost(wall=time.perf_counter() - wall, cpu=process_seconds(back_end) - cpu)
