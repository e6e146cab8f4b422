"""`make rehearse`: a pipeline over millions of records, from `create` to a switch.

On a server of its own. Ledger, queue, triggers and workers are the real ones, texts are short, and
the model is one that costs nothing. What it leaves behind is a file with the table.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import accumulate
from pathlib import Path
from time import perf_counter, process_time

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.cpu_time import server_seconds
from benchmarks.database import PRODUCTION_SETTINGS, new_database
from benchmarks.machine import describe_machine
from benchmarks.rehearsal_stages import DIMENSIONS, Rehearsal, rehearsal
from pgqueue_embed.db.session import Connection
from pgqueue_embed.estimation.storage import Layout, index_bytes, ledger_bytes, table_bytes
from pgqueue_embed.estimation.text_sample import ChunkBytes
from pgqueue_embed.log import LogSettings
from pgqueue_embed.pipeline.columns import Column
from pgqueue_embed.quantities import duration, size
from tests.servers import temporary_server

RECORDS = 10_000_000
# Two ledgers, two queues and the source; for a vector, both generations with their indexes.
DISK_BYTES_A_RECORD = 700
DISK_BYTES_A_VECTOR = 1_900
# WAL is kept up to max_wal_size, and an empty server takes some room.
OTHER_BYTES = 6 * 1024**3
# Of a run of 150,000 records in parts; an index takes longer a vector the larger it is.
SECONDS_A_RECORD = 0.0003
SECONDS_A_VECTOR = 0.0016
PAPER_RECORDS = 100_000_000

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage took: its growth of the database, and memory at its peak, in bytes.

    `processor_seconds` are those of this process and of the server together: unlike `seconds` they
    change little with what else the machine does.
    """

    name: str
    what: str
    seconds: float
    processor_seconds: float
    grown: int
    wal: int
    worker_memory: int
    server_memory: int


def main() -> None:
    """Say what it takes, refuse a disk that is too small, and rehearse."""
    arguments = _parser().parse_args()
    console = Console(width=arguments.width)
    LogSettings(level="warning").apply()
    texts = min(arguments.vectors or arguments.records, arguments.records)
    if not _has_room(console, arguments.records, texts):
        sys.exit(1)
    file = arguments.out or RESULTS / f"rehearsal-{datetime.now():%Y%m%d-%H%M%S}.json"
    stages: list[Stage] = []
    settings = {**PRODUCTION_SETTINGS, "wal_level": "replica"}
    with temporary_server(arguments.postgresql, settings) as server:
        found = rehearsal(
            new_database(server),
            arguments.records,
            arguments.changes or max(1, arguments.records // 10),
            max(1, arguments.records // texts),
            arguments.partition_by,
        )
        with found.connection:
            for name, stage in found.stages().items():
                stages.append(_measured(console, found, name, stage))
                # Hours are long enough for a machine to go down: what is measured is kept.
                _write(stages, arguments.records, file)
    _print(console, stages, arguments.records)
    console.print(f"written to {file}", soft_wrap=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.rehearse", description=__doc__.partition("\n")[0]
    )
    parser.add_argument(
        "--records", type=int, default=RECORDS, help=f"records of the source ({RECORDS:,})"
    )
    parser.add_argument(
        "--vectors", type=int, help="records with a text, and so with a vector (all); 2000000"
    )
    parser.add_argument("--changes", type=int, help="records to change (a tenth of all)")
    parser.add_argument("--partition-by", help="parts of the target table (none); hash:16")
    parser.add_argument(
        "--postgresql", type=int, default=18, choices=(16, 18), help="the server's version (18)"
    )
    parser.add_argument("--out", type=Path, help="the JSON file (default: benchmarks/results/)")
    parser.add_argument("--width", type=int, default=140, help="columns of the table")
    return parser


def _has_room(console: Console, records: int, texts: int) -> bool:
    wanted = records * DISK_BYTES_A_RECORD + texts * DISK_BYTES_A_VECTOR + OTHER_BYTES
    seconds = records * SECONDS_A_RECORD + texts * SECONDS_A_VECTOR
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    console.print(
        f"{records:,} records: about {size(wanted)} of {folder}, of which {size(free)} are free,"
        f" and {duration(seconds)} on two quiet cores; all of it is deleted at"
        " the end",
        soft_wrap=True,
    )
    if free < wanted:
        console.print(
            "that does not fit: take fewer, --records N, or another disk, TMPDIR=…", soft_wrap=True
        )
    return free >= wanted


WAL = "select (pg_current_wal_insert_lsn() - '0/0')::bigint"
SIZE = "select pg_database_size(current_database())"


def _measured(console: Console, found: Rehearsal, name: str, stage: Callable[[], str]) -> Stage:
    connection = found.connection
    console.print(f"[dim]… {name}[/]", highlight=False)
    wal, there = connection.value(WAL, ()), connection.value(SIZE, ())
    server = _server(connection)
    with _peak(server) as peak:
        started, used = perf_counter(), process_time() + server_seconds(server.pid)
        what = stage()
        seconds = perf_counter() - started
        used = process_time() + server_seconds(server.pid) - used
    return Stage(
        name=name,
        what=what,
        seconds=seconds,
        processor_seconds=used,
        grown=connection.value(SIZE, ()) - there,
        wal=connection.value(WAL, ()) - wal,
        worker_memory=peak[0],
        server_memory=peak[1],
    )


def _server(connection: Connection) -> psutil.Process:
    data = Path(connection.value("show data_directory", ()))
    return psutil.Process(int((data / "postmaster.pid").read_text().split()[0]))


@contextmanager
def _peak(server: psutil.Process) -> Iterator[list[int]]:
    """Look twice a second how much memory this process and the server's have of their own."""
    peak, done = [0, 0], threading.Event()

    def look() -> None:
        is_done = False
        while not is_done:
            peak[0] = max(peak[0], psutil.Process().memory_info().rss)
            peak[1] = max(peak[1], sum(map(_own_bytes, server.children())))
            is_done = done.wait(0.5)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield peak
    finally:
        done.set()
        looking.join()


def _own_bytes(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().uss)
    except psutil.Error:
        return 0  # it has ended, or is not to be looked into


def _print(console: Console, stages: list[Stage], records: int) -> None:
    console.print(_table(stages))
    times = PAPER_RECORDS / records
    seconds = sum(each.seconds for each in stages) * times
    wal = int(sum(each.wal for each in stages) * times)
    most = int(max(accumulate(each.grown for each in stages)) * times)
    console.print(
        f"On paper, {PAPER_RECORDS:,} such records: {duration(seconds)}, {size(most)} of disk,"
        f" {size(wal)} of WAL.",
        soft_wrap=True,
    )
    for vector_type in ("vector", "halfvec"):
        console.print(_on_paper(vector_type), soft_wrap=True)


def _on_paper(vector_type: str, dimensions: int = 384) -> str:
    """Return what a chunk a record of real vectors takes, by the sizes of `pgembed estimate`."""
    layout = Layout(
        key=(Column(name="id", type="bigint"),), vector_type=vector_type, dimensions=dimensions
    )
    chunk = ChunkBytes(key_bytes=9, text_bytes=400, copied_bytes=0)
    table = table_bytes(layout, [chunk] * 1_000, PAPER_RECORDS)
    index = index_bytes(layout, PAPER_RECORDS, quantize="none")
    assert index is not None, "so few dimensions can be indexed"
    return (
        f"With a chunk of 400 characters each and {vector_type}({dimensions}): table"
        f" {size(table.table)}, its key indexes {size(table.key_indexes)}, HNSW"
        f" {size(index.index)}, ledger {size(ledger_bytes(PAPER_RECORDS, 9))}; the index is built"
        f" in {size(index.memory)}."
    )


def _table(stages: list[Stage]) -> Table:
    table = Table(title=f"vectors of {DIMENSIONS} dimensions")
    table.add_column("stage")
    table.add_column("")
    for title in ("seconds", "processor s", "disk", "WAL", "worker", "server"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in stages:
        table.add_row(
            each.name,
            each.what,
            f"{each.seconds:,.1f}",
            f"{each.processor_seconds:,.1f}",
            *map(size, (each.grown, each.wal, each.worker_memory, each.server_memory)),
        )
    return table


def _write(stages: list[Stage], records: int, file: Path) -> None:
    file.parent.mkdir(exist_ok=True)
    found = {
        "machine": {**describe_machine(), "load_after": list(os.getloadavg())},
        "records": records,
        "stages": [asdict(each) for each in stages],
    }
    file.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
