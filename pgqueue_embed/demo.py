"""The demonstration: Python's own language reference, embedded by two workers and searched."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import SetupError, UsageError
from pgqueue_embed.lifecycle.drop import drop_pipeline
from pgqueue_embed.pipeline.catalog import load_pipeline, pipeline_names
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.worker.python_process import start_python

PIPELINE = "demo"
SOURCE = Table(schema="pgembed_demo", name="language_reference")
TARGET = Table(schema="pgembed_demo", name="language_reference_vectors")
SPEC = PipelineSpec(
    name=PIPELINE, source=SOURCE, target=TARGET, text_fields=("body",), max_attempts=2
)

# A mistake such as people make, by which a few of some hundred records fail.
MOST_CHUNK_CHARACTERS = 610
MISTAKE = sql.Identifier("text_chunk_is_short")

QUESTIONS = (
    "How do I run cleanup code even if an exception is raised?",
    "What happens if a default argument is a mutable list?",
)

# Paragraphs are joined up to this length; the reference gives several hundred records then.
RECORD_CHARACTERS = 1_000

# Shorter paragraphs, such as "Note:", may well stand twice.
REPEATED_CHARACTERS = 60


@dataclass(frozen=True, kw_only=True)
class Share:
    """What one worker process did of the demonstration."""

    worker: str
    records: int
    chunks: int
    commits: int


def reference_records(topics: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield (topic, text) of the language reference in `topics`, cut at paragraphs.

    Topics repeat one another's text; a paragraph is taken where it stands first.
    """
    seen: set[str] = set()
    for topic, text in sorted(topics.items()):
        record = ""
        for paragraph in text.split("\n\n"):
            if len(paragraph) > REPEATED_CHARACTERS and paragraph in seen:
                continue
            seen.add(paragraph)
            if record and len(record) + len(paragraph) > RECORD_CHARACTERS:
                yield topic, record
                record = ""
            record = f"{record}\n\n{paragraph}" if record else paragraph
        if record.strip():
            yield topic, record


def load_source(connection: Connection) -> int:
    """Make the source table anew, fill it, and return how many records it has.

    Removes what an earlier demonstration left. Raises UsageError when a pipeline of the user's
    has the demonstration's name.
    """
    from pydoc_data.topics import topics

    _remove_earlier(connection)
    names = {
        "schema": sql.Identifier(SOURCE.schema),
        "table": SOURCE.identifier,
    }
    with connection.transaction(), connection.cursor() as cursor:
        cursor.execute(sql.SQL("drop schema if exists {schema} cascade").format(**names))
        cursor.execute(sql.SQL("create schema {schema}").format(**names))
        cursor.execute(
            sql.SQL(
                "create table {table}"
                " (id bigint generated always as identity primary key, topic text, body text)"
            ).format(**names)
        )
        copy_in = sql.SQL("copy {table} (topic, body) from stdin").format(**names)
        with cursor.copy(copy_in) as copy:
            for record in reference_records(topics):
                copy.write_row(record)
        return cursor.rowcount


def make_mistake(connection: Connection) -> None:
    """Have the target table refuse a few chunks, so that there is a failure to see and to retry."""
    connection.execute(
        sql.SQL("alter table {} add constraint {} check (length(text_chunk) <= {})").format(
            TARGET.identifier, MISTAKE, sql.Literal(MOST_CHUNK_CHARACTERS)
        )
    )


def mend_mistake(connection: Connection) -> None:
    """Have the target table take every chunk; what it refused is a dead letter still."""
    connection.execute(
        sql.SQL("alter table {} drop constraint {}").format(TARGET.identifier, MISTAKE)
    )


def _remove_earlier(connection: Connection) -> None:
    if PIPELINE not in pipeline_names(connection):
        return
    pipeline = load_pipeline(connection, PIPELINE)
    if pipeline.source != SOURCE:
        raise UsageError(
            f"a pipeline of your own is called '{PIPELINE}'; the demonstration leaves it alone,"
            " so give it another database with --dsn"
        )
    drop_pipeline(connection, pipeline, delete_vectors=True)


def embed_with_workers(conninfo: str, workers: int, on_tick: Callable[[], None]) -> None:
    """Run `pgembed work --drain` with `workers` processes until it has left.

    Raises SetupError when it fails.
    """
    process = _start_workers(conninfo, workers)
    try:
        while process.poll() is None:
            on_tick()
            time.sleep(0.1)
    finally:
        process.terminate()
    if process.wait():
        raise SetupError("a worker of the demonstration failed; its message stands above")


def _start_workers(conninfo: str, workers: int) -> subprocess.Popen[bytes]:
    # By the environment, where a password does not show. The cores are shared evenly.
    threads = max(1, (os.cpu_count() or 1) // workers)
    environment = {**os.environ, "PGEMBED_DSN": conninfo, "OMP_NUM_THREADS": str(threads)}
    how = ("--drain", "--processes", str(workers), "--log-level", "warning")
    return start_python(
        "pgqueue_embed",
        *("work", "--pipeline", PIPELINE, *how),
        environment=environment,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )


def shares(connection: Connection) -> list[Share]:
    """Return what each worker did for the demonstration's pipeline, in the order they started."""
    rows = connection.execute(
        """
        select
            format('%%s (pid %%s)', host, pid),
            sum(batches.records),
            sum(batches.chunks),
            count(*)
        from pgembed.batches
        join pgembed.workers on workers.id = batches.worker_id
        join pgembed.pipelines on pipelines.id = batches.pipeline_id
        where pipelines.name = %s
        group by workers.id
        order by workers.id
        """,
        (PIPELINE,),
    )
    return [
        Share(worker=worker, records=int(records), chunks=int(chunks), commits=commits)
        for worker, records, chunks, commits in rows
    ]
