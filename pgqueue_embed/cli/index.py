"""The command that builds a vector index: index."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.build_progress import sentence, watched_build
from pgqueue_embed.cli.display import console, count, duration, say, size
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.pipeline_options import PipelineName

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.index_build import BuildProgress
    from pgqueue_embed.vector_search.index_plan import IndexPlan

Method = Annotated[
    str,
    typer.Option(
        "--method",
        help="hnsw (finds more, builds slower) or ivfflat (builds faster, smaller).",
    ),
]
Lists = Annotated[
    int | None,
    typer.Option(
        "--lists",
        help="ivfflat: number of lists. Defaults to rows / 1000, sqrt(rows) above 1 M rows.",
        show_default=False,
    ),
]
M = Annotated[int, typer.Option("--m", help="hnsw: neighbours of a vector on a layer.")]
EfConstruction = Annotated[
    int, typer.Option("--ef-construction", help="hnsw: candidates looked at while building.")
]
Memory = Annotated[
    int | None,
    typer.Option(
        "--memory",
        help="Megabytes of the server's memory for the build. Defaults to what the index needs,"
        " at most 1024 or half of shared_buffers.",
        show_default=False,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(index))


def index(
    conninfo: str,
    name: PipelineName,
    method: Method = "hnsw",
    lists: Lists = None,
    m: M = 16,
    ef_construction: EfConstruction = 64,
    memory: Memory = None,
) -> None:
    """Build a vector index (cosine distance), so that searches stay fast.

    Build it when the pipeline is complete: an index makes loading many times
    slower. Workers and readers go on meanwhile. Ctrl-C undoes the build.

    Example: pgembed index reports
    """
    from pgqueue_embed.db import applications
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.vector_search.index import plan
    from pgqueue_embed.vector_search.index_build import build_index
    from pgqueue_embed.vector_search.index_plan import IndexOptions

    options = IndexOptions(
        method=method,
        lists=lists,
        m=m,
        ef_construction=ef_construction,
        memory_megabytes=memory,
    )
    with connect(conninfo, application_name=applications.INDEX) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        if _says_that_it_exists(connection, pipeline, method):
            return
        planned = plan(connection, pipeline, options)
        _announce(connection, pipeline, planned)
        started = time.monotonic()
        with _watched(conninfo, pipeline):
            built = build_index(connection, pipeline, planned, on_warning=_warn)
        say(f"built {built} in {duration(max(1.0, time.monotonic() - started))}")


def _says_that_it_exists(connection: Connection, pipeline: Pipeline, method: str) -> bool:
    from pgqueue_embed.vector_search.index import vector_indexes

    for found in vector_indexes(connection, pipeline):
        if found.valid and found.method == method:
            say(f"{pipeline.name} has a vector index already: {found}")
            return True
    return False


def _announce(connection: Connection, pipeline: Pipeline, planned: IndexPlan) -> None:
    from pgqueue_embed.db.extension import vector_extension
    from pgqueue_embed.queue.claims import is_drained

    parameters = ", ".join(f"{name} {value}" for name, value in planned.parameters.items())
    say(
        f"{planned.method} index ({parameters}) over {count(planned.rows, 'vector')} of"
        f" {pipeline.target}, {planned.memory_megabytes:,} MB,"
        f" up to {count(planned.parallel_workers, 'parallel worker')}"
    )
    if not planned.rows:
        _warn("there are no vectors yet, and an index slows their loading; better embed first")
    for fault in vector_extension(connection).faults():
        _warn(f"this server's pgvector: {fault}; install a newer one")
    if not planned.fits:
        _warn(_what_does_not_fit(planned))
    if not is_drained(connection, [pipeline.id]):
        _warn(
            f"{pipeline.name} has pending records, and an index slows their loading; better build"
            " it when the pipeline is complete"
        )


def _what_does_not_fit(planned: IndexPlan) -> str:
    return (
        f"the index needs about {size(planned.needed_megabytes * 1024**2)} while it is built, and"
        f" gets {size(planned.memory_megabytes * 1024**2)}: the rest is built on disk, which takes"
        f" many times as long; if the server has the memory: --memory {planned.needed_megabytes}"
    )


def _warn(text: str) -> None:
    say(f"warning: {text}", fg="yellow", err=True)


@contextmanager
def _watched(conninfo: str, pipeline: Pipeline) -> Iterator[None]:
    """Draw a progress bar, or say it by lines."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    out = console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )
    with bar:
        task = bar.add_task("starting", total=None)

        def show(found: BuildProgress) -> None:
            bar.update(
                task,
                description=sentence(found),
                total=found.total or None,
                completed=found.done,
            )

        with watched_build(conninfo, pipeline, show):
            yield
