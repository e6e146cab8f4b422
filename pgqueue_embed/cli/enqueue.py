"""The command enqueue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.display import say

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.queue.enqueue import Selection, Slice


def enqueue(
    conninfo: str,
    name: options.PipelineName,
    allow_deletes: options.AllowDeletes = False,
    *,
    records: options.WantedRecords,
) -> None:
    """Queue the records that are not embedded yet, have changed, or are gone from the source.

    Interrupted, it goes on where it stopped; run twice, it queues nothing twice that waits. If more
    than a tenth of the records is gone, and more than 1,000, though no TRUNCATE and no trigger has
    told, it pauses the pipeline and asks.

    Example: pgembed enqueue reports --where "event_type = 'D'" --limit 10000

    Example, after more than a tenth was deleted: pgembed enqueue reports --allow-deletes
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline

    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        queue_records(connection, pipeline, records.selection(), allow_deletes=allow_deletes)


def queue_records(
    connection: Connection,
    pipeline: Pipeline,
    selection: Selection,
    *,
    allow_deletes: bool = False,
) -> int:
    """Enqueue with a progress bar and say how many records were queued."""
    from pgqueue_embed.queue.enqueue import enqueue as scan

    with scanning(connection, pipeline) as advance:
        queued = scan(
            connection, pipeline, selection, on_slice=advance, allow_deletes=allow_deletes
        )
    records = "record" if queued == 1 else "records"
    say(f"queued {queued:,} {records} of {pipeline.source}")
    return queued


@contextmanager
def scanning(connection: Connection, pipeline: Pipeline) -> Iterator[Callable[[Slice], None]]:
    """Draw a progress bar of a scan of the source, fed by what is yielded, or say it by lines."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from pgqueue_embed.cli.display import progress_console
    from pgqueue_embed.cli.minute_lines import MinuteLines
    from pgqueue_embed.queue.enqueue import estimated_records

    columns = (TextColumn("scanning"), BarColumn(), MofNCompleteColumn(), TextColumn("records"))
    out = progress_console()
    # Elsewhere than on a terminal a bar would leave an empty line.
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        total = estimated_records(connection, pipeline)
        task, lines = bar.add_task("scan", total=total), MinuteLines()

        def advance(done: Slice) -> None:
            bar.advance(task, done.scanned)
            scanned = int(bar.tasks[task].completed)
            lines.say(f"scanned {scanned:,} of {total:,} records of {pipeline.source}")

        yield advance
