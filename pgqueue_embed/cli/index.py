"""The command that builds a vector index: index."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.build_progress import sentence, watched_build
from pgqueue_embed.cli.display import confirm, console, progress_console, say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.pipeline_options import PipelineName
from pgqueue_embed.errors import UsageError
from pgqueue_embed.quantities import count, duration, size

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.index_build import BuildProgress
    from pgqueue_embed.vector_search.index_plan import IndexOptions, IndexPlan

Method = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="hnsw (finds more, builds slower) or ivfflat (builds faster, smaller). Defaults to"
        " that of the pipeline's --index, or hnsw.",
        show_default=False,
    ),
]
Quantize = Annotated[
    str | None,
    typer.Option(
        "--quantize",
        help="Index the vectors as they are (none), in 16 bits (halfvec: half the size) or one bit"
        " a dimension (binary: a fifth); searches order what it finds by the whole vectors."
        " Defaults to that of the pipeline, or none.",
        show_default=False,
    ),
]
Yes = Annotated[
    bool,
    typer.Option("--yes", help="Do not ask before an index that does not fit into the memory."),
]
Lists = Annotated[
    int | None,
    typer.Option(
        "--lists",
        help="ivfflat: number of lists. Defaults to rows / 1000, sqrt(rows) above 1 M rows.",
        show_default=False,
    ),
]
M = Annotated[
    int | None,
    typer.Option(
        "--m",
        help="hnsw: neighbours of a vector on a layer. Defaults to 16, or a few less where so many"
        " more vectors fit on a page.",
        show_default=False,
    ),
]
EfConstruction = Annotated[
    int | None,
    typer.Option(
        "--ef-construction",
        help="hnsw: candidates looked at while building. Defaults to 64, and to 128 from 100,000"
        " vectors on.",
        show_default=False,
    ),
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
Lexical = Annotated[
    bool,
    typer.Option(
        "--lexical",
        help="Index the words of the chunks instead, for searches with --hybrid.",
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(index))


def index(
    conninfo: str,
    name: PipelineName,
    method: Method = None,
    quantize: Quantize = None,
    lists: Lists = None,
    m: M = None,
    ef_construction: EfConstruction = None,
    memory: Memory = None,
    yes: Yes = False,
    lexical: Lexical = False,
) -> None:
    """Build a vector index (cosine distance), so that searches stay fast.

    Build it when the pipeline is complete: an index makes loading many times
    slower. Workers and readers go on meanwhile. Ctrl-C undoes the build.

    One that does not fit into the server's memory takes many times as long to
    build: what it needs, how long it may take and what would fit is said first.

    With --lexical, the index is one of words, for searches with --hybrid.

    Example: pgembed index reports --quantize halfvec

    Example: pgembed index reports --lexical
    """
    from pgqueue_embed.db import applications
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.vector_search.index_plan import IndexOptions

    given = {"method": method, "quantize": quantize}
    options = IndexOptions(
        **{key: value for key, value in given.items() if value is not None},
        lists=lists,
        m=m,
        ef_construction=ef_construction,
        memory_megabytes=memory,
    )
    with connect(conninfo, application_name=applications.INDEX) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        if lexical:
            _index_words(conninfo, connection, pipeline, given)
            return
        _index_vectors(conninfo, connection, pipeline, _completed(options, given, pipeline), yes)


def _index_vectors(
    conninfo: str, connection: Connection, pipeline: Pipeline, options: IndexOptions, yes: bool
) -> None:
    from pgqueue_embed.monitoring.words import effort_lapsed
    from pgqueue_embed.vector_search.evaluation import lapsed_effort
    from pgqueue_embed.vector_search.index import plan
    from pgqueue_embed.vector_search.index_build import build_index
    from pgqueue_embed.vector_search.index_upkeep import note_checked

    planned = plan(connection, pipeline, options)
    if _says_that_it_exists(connection, pipeline, planned):
        return
    _announce(connection, pipeline, planned)
    if not planned.fits:
        _ask(_what_does_not_fit(connection, pipeline, options, planned), yes=yes)
    started = time.monotonic()
    with _watched(conninfo, pipeline):
        built = build_index(connection, pipeline, planned, on_warning=_warn)
    note_checked(connection, pipeline)
    say(f"built {built} in {duration(max(1.0, time.monotonic() - started))}")
    _say_what_is_used(connection, pipeline, planned)
    lapsed = lapsed_effort(connection, pipeline)
    if lapsed is not None:
        _warn(effort_lapsed(pipeline.name, lapsed))


def _index_words(
    conninfo: str, connection: Connection, pipeline: Pipeline, given: dict[str, str | None]
) -> None:
    from pgqueue_embed.vector_search.lexical_index import (
        build_lexical_index,
        lexical_indexes,
        wanted_index,
    )

    for option, value in given.items():
        if value is not None:
            raise UsageError(f"--{option} is of an index of vectors; leave it out, or --lexical")
    found = lexical_indexes(connection, pipeline).get(wanted_index(connection, pipeline))
    if found is not None:
        say(f"{pipeline.name} has an index of words already: {found}")
    else:
        started = time.monotonic()
        with _watched(conninfo, pipeline):
            built = build_lexical_index(connection, pipeline, on_warning=_warn)
        say(f"built {built} in {duration(max(1.0, time.monotonic() - started))}")
    _say_what_ranks(connection, pipeline)


def _say_what_ranks(connection: Connection, pipeline: Pipeline) -> None:
    """Say it where pg_textsearch ranks the words, or why it does not though it is there."""
    from pgqueue_embed.vector_search.lexical import GIN, PG_TEXTSEARCH
    from pgqueue_embed.vector_search.lexical_index import lexical_indexes
    from pgqueue_embed.vector_search.textsearch import find_textsearch

    extension = find_textsearch(connection, pipeline)
    found = lexical_indexes(connection, pipeline)
    if extension is None:
        return
    if PG_TEXTSEARCH not in found:
        say(f"PostgreSQL's own index is used: {extension.why_not}")
    elif GIN in found and extension.why_not is None:
        say(f"pg_textsearch {extension.version} ranks the words; no search needs {found[GIN]} now")
    elif GIN in found:
        say(f"roles that policies are for search by {found[GIN]}, others by {found[PG_TEXTSEARCH]}")
    else:
        say(f"pg_textsearch {extension.version} ranks the words")


def _completed(
    options: IndexOptions, given: dict[str, str | None], pipeline: Pipeline
) -> IndexOptions:
    """Return the options with what the pipeline declares where nothing is given."""
    from pgqueue_embed.vector_search.index import declared

    usual = declared(pipeline.spec)
    unsaid = [key for key, value in given.items() if value is None]
    return replace(options, **{key: getattr(usual, key) for key in unsaid}) if usual else options


def _says_that_it_exists(connection: Connection, pipeline: Pipeline, planned: IndexPlan) -> bool:
    from pgqueue_embed.vector_search.index import vector_indexes

    for found in vector_indexes(connection, pipeline):
        if found.valid and (found.method, found.quantize) == (planned.method, planned.quantize):
            say(f"{pipeline.name} has a vector index already: {found}")
            return True
    return False


def _say_what_is_used(connection: Connection, pipeline: Pipeline, planned: IndexPlan) -> None:
    """Say it if searches go on by an index of larger vectors that is there, too."""
    from pgqueue_embed.vector_search.index import scan_of, vector_indexes

    used = scan_of(connection, pipeline)
    for found in vector_indexes(connection, pipeline):
        if found.valid and found.quantize == used != planned.quantize:
            say(f"searches are by {found}, as long as it is there; drop it to use the new one")


def _announce(connection: Connection, pipeline: Pipeline, planned: IndexPlan) -> None:
    from pgqueue_embed.db.extension import vector_extension
    from pgqueue_embed.queue.claims import is_drained

    parameters = ", ".join(f"{name} {value}" for name, value in planned.parameters.items())
    of_what = "" if planned.quantize == "none" else f" as {planned.quantize}"
    in_parts = "" if planned.parts == 1 else f", in {planned.parts} parts one after the other"
    say(
        f"{planned.method} index ({parameters}) over {count(planned.rows, 'vector')}{of_what} of"
        f" {pipeline.target}{in_parts}, {planned.memory_megabytes:,} MB,"
        f" up to {count(planned.parallel_workers, 'parallel worker')}"
    )
    if not planned.rows:
        _warn("there are no vectors yet, and an index slows their loading; better embed first")
    for fault in vector_extension(connection).faults():
        _warn(f"this server's pgvector: {fault}; install a newer one")
    if not is_drained(connection, [pipeline.id]):
        _warn(
            f"{pipeline.name} has pending records, and an index slows their loading; better build"
            " it when the pipeline is complete"
        )


def _what_does_not_fit(
    connection: Connection, pipeline: Pipeline, options: IndexOptions, planned: IndexPlan
) -> str:
    from pgqueue_embed.vector_search.build_time import estimated_build_seconds
    from pgqueue_embed.vector_search.index import plans_that_fit

    with progress_console().status("timing a sample"):
        seconds = estimated_build_seconds(connection, pipeline, planned)
    how_long = (
        "how long that takes cannot be told, since this role may make no temporary table"
        if seconds is None
        else f"timed on a sample, it takes {duration(max(1.0, seconds))} or more"
    )
    fitting = [
        f"{flags} ({_megabytes(smaller.needed_megabytes)})"
        for flags, smaller in plans_that_fit(connection, pipeline, options).items()
    ]
    return (
        f"the index of {count(planned.rows, 'vector')} needs about"
        f" {_megabytes(planned.needed_megabytes)} while it is built, and gets"
        f" {_megabytes(planned.memory_megabytes)}, so that the rest is built on disk; {how_long};"
        f" what would fit: {', '.join(fitting) or 'nothing smaller'}, or, if the server has the"
        f" memory, --memory {planned.needed_megabytes}"
    )


def _megabytes(number: int) -> str:
    return size(number * 1024**2)


def _ask(what: str, *, yes: bool) -> None:
    """Say it and ask a person; raises UsageError where there is no terminal, and no `yes`."""
    if yes:
        _warn(what)
    elif sys.stdin.isatty():
        confirm(f"{what}. Build it nevertheless?")
    else:
        raise UsageError(f"{what}; or add --yes, to build it nevertheless")


def _warn(text: str) -> None:
    say(f"warning: {text}", fg="yellow", err=True)


@contextmanager
def _watched(conninfo: str, pipeline: Pipeline) -> Iterator[None]:
    """Draw a progress bar, or say it by lines."""
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    out = console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("phase ends in"),
        TimeRemainingColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )
    with bar:
        task = bar.add_task("starting", total=None)
        phase = "starting"

        def show(found: BuildProgress) -> None:
            nonlocal phase
            if found.phase != phase:
                # Its speed tells nothing of the next one's.
                bar.reset(task, start=True)
                phase = found.phase
            bar.update(
                task,
                description=sentence(found),
                total=found.total or None,
                completed=found.done,
            )

        with watched_build(conninfo, pipeline, show):
            yield
