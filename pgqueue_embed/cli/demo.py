"""The command that shows it all: demo."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from pgqueue_embed.cli.display import console, plain_table, say
from pgqueue_embed.cli.options import connected, log_settings
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL
from pgqueue_embed.quantities import count

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection

WORKERS = 2


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(demo, may_make_server=True))


def demo(conninfo: str) -> None:
    """Embed Python's own language reference with two workers, then search it.

    Everything goes into schema pgembed_demo and a pipeline called demo, made anew each time.

    Example: pgembed demo
    """
    from pgqueue_embed.db.dsn import describe_dsn
    from pgqueue_embed.db.migrate import migrate
    from pgqueue_embed.db.session import connect

    log_settings(quiet=True).apply()
    say(f"database: {describe_dsn(conninfo)}")
    migrate(conninfo)
    with connect(conninfo) as connection:
        _prepare(connection)
        seconds = _embed(conninfo)
        _show_work(connection, seconds)
        _ask(connection)
        _show_way_on(conninfo)


def _prepare(connection: Connection) -> None:
    from pgqueue_embed.demo import PIPELINE, SOURCE, SPEC, load_source
    from pgqueue_embed.lifecycle.create import create
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.queue.enqueue import Selection, enqueue

    records = load_source(connection)
    say(f"loaded {count(records, 'record')} of Python's language reference into {SOURCE}")
    create(connection, SPEC, DEFAULT_MODEL)
    enqueue(connection, load_pipeline(connection, PIPELINE), Selection())
    say(f"queued them; starting {WORKERS} workers, as on {WORKERS} machines\n")


def _embed(conninfo: str) -> float:
    from pgqueue_embed.cli.following import following
    from pgqueue_embed.demo import PIPELINE, embed_with_workers

    def stop() -> None:
        raise KeyboardInterrupt

    started = time.monotonic()
    with following(conninfo, PIPELINE, on_quit=stop, quit_words="stop") as update:
        embed_with_workers(conninfo, WORKERS, lambda: update(0.0))
    return time.monotonic() - started


def _show_work(connection: Connection, seconds: float) -> None:
    from pgqueue_embed.cli.status import show
    from pgqueue_embed.demo import PIPELINE, shares
    from pgqueue_embed.monitoring.snapshot import read_snapshot

    say(f"\ndone in {seconds:.0f} s, the start of the workers included; who did what:\n")
    table = plain_table(["Worker"], ["Commits", "Records", "Chunks"])
    for share in shares(connection):
        numbers = (share.commits, share.records, share.chunks)
        table.add_row(share.worker, *(f"{number:,}" for number in numbers))
    console().print(table)
    say("\npgembed status, the same as SELECT * FROM pgembed.progress:\n")
    show(read_snapshot(connection, PIPELINE), notes=False)


def _ask(connection: Connection) -> None:
    from pgqueue_embed.cli.search import show_hits
    from pgqueue_embed.demo import PIPELINE, QUESTIONS
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.vector_search.query import search
    from pgqueue_embed.vector_search.query_vector import QueryEncoder
    from pgqueue_embed.vector_search.request import SearchRequest

    pipeline = load_pipeline(connection, PIPELINE)
    encoder = QueryEncoder(pipeline)
    for question in QUESTIONS:
        say(f'\npgembed search {PIPELINE} "{question}" --limit 2\n')
        vector = encoder.encode(question)
        show_hits(search(connection, pipeline, vector, SearchRequest(limit=2, threshold=0.0)))


def _show_way_on(conninfo: str) -> None:
    from pgqueue_embed.db.dsn import describe_dsn
    from pgqueue_embed.demo import PIPELINE

    say(f"\nThe vectors stay in {describe_dsn(conninfo)}. From here:")
    steps = {
        "pgembed web": "all of this in a browser",
        f"pgembed index {PIPELINE}": "build the vector index",
        "pgembed db status": "where the private PostgreSQL keeps its data",
        "pgembed db stop": "stop it",
        "pgembed run NAME --source-table …": "your own table",
    }
    for command, meaning in steps.items():
        say(f"  {command:<36} {meaning}")
