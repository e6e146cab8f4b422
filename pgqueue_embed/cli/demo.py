"""The command that shows it all: demo."""

from __future__ import annotations

import shlex
import shutil
import sys
import time
from contextlib import suppress
from pathlib import Path
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

    A few records fail, by a mistake that is made for it and mended at the end.
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
        _show_failures(connection)
        _ask(connection)
        _show_way_on(conninfo)


def _prepare(connection: Connection) -> None:
    from pgqueue_embed.demo import (
        MOST_CHUNK_CHARACTERS,
        PIPELINE,
        SOURCE,
        SPEC,
        load_source,
        make_mistake,
    )
    from pgqueue_embed.lifecycle.create import create
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.queue.enqueue import Selection, enqueue

    records = load_source(connection)
    say(f"loaded {count(records, 'record')} of Python's language reference into {SOURCE}")
    create(connection, SPEC, DEFAULT_MODEL)
    enqueue(connection, load_pipeline(connection, PIPELINE), Selection())
    make_mistake(connection)
    say(
        "a constraint of the target table refuses chunks of more than"
        f" {MOST_CHUNK_CHARACTERS} characters: a mistake, so that there is a failure to see"
    )
    say(f"queued them; starting {WORKERS} workers, as on {WORKERS} machines")
    say(f"watch them in a browser, too, from another terminal: {_path()}pgembed web\n")


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
    from pgqueue_embed.cli.status import show_snapshot
    from pgqueue_embed.demo import PIPELINE, shares
    from pgqueue_embed.monitoring.snapshot import read_snapshot

    say(f"\ndone in {seconds:.0f} s, the start of the workers included; who did what:\n")
    table = plain_table(["Worker"], ["Commits", "Records", "Chunks"])
    for share in shares(connection):
        numbers = (share.commits, share.records, share.chunks)
        table.add_row(share.worker, *(f"{number:,}" for number in numbers))
    console().print(table)
    say("\npgembed status, the same as SELECT * FROM pgembed.progress:\n")
    show_snapshot(read_snapshot(connection, PIPELINE), notes=False)


def _show_failures(connection: Connection) -> None:
    from pgqueue_embed.cli.failures import show_groups
    from pgqueue_embed.demo import PIPELINE, mend_mistake
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.queue.dead_letters import count_failures, read_groups

    mend_mistake(connection)
    groups = read_groups(connection, PIPELINE, limit=5)
    if groups:
        say(f"\npgembed failures {PIPELINE}; the constraint is gone by now, as if mended\n")
        letters = count_failures(connection, load_pipeline(connection, PIPELINE))
        show_groups(PIPELINE, groups, letters)


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
        show_hits(search(connection, pipeline, vector, SearchRequest(limit=2)))


def _show_way_on(conninfo: str) -> None:
    from pgqueue_embed.db.dsn import describe_dsn
    from pgqueue_embed.demo import PIPELINE

    say(f"\nThe vectors stay in {describe_dsn(conninfo)}. From here:")
    steps = {
        "pgembed web --allow-actions": "all of this in a browser, with search and buttons to retry",
        f"pgembed retry {PIPELINE}": "put its dead letters back into the queue …",
        "pgembed work --drain": "… and embed them",
        f"pgembed index {PIPELINE}": "build the vector index",
        "pgembed db status": "where the private PostgreSQL keeps its data",
        "pgembed db stop": "stop it",
        "pgembed run NAME --source-table …": "your own table",
    }
    if _path():
        steps = {f". {_path()}activate": "the shell finds pgembed then", **steps}
    for command, meaning in steps.items():
        say(f"  {command:<36} {meaning}")


def _path() -> str:
    """Return the folder of the command, with a slash, where a shell does not find it by itself."""
    folder = Path(sys.prefix) / "bin"
    if shutil.which("pgembed") or not (folder / "activate").exists():
        return ""
    with suppress(ValueError):
        folder = folder.relative_to(Path.cwd())
    return shlex.quote(f"{folder}/")
