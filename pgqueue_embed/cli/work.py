"""Commands that embed: work and run."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.create import make_or_keep
from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.enqueue import queue_records
from pgqueue_embed.cli.options import connected, log_settings, wants_log
from pgqueue_embed.cli.worker_options import WorkerOptions
from pgqueue_embed.errors import SetupError, UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.quantities import count
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.worker.settings import WORKER, WorkerSettings, check_processes
from pgqueue_embed.worker.stop_reasons import DRAINED

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection


OnlyPipelines = Annotated[
    list[str] | None,
    typer.Option(
        "--pipeline",
        help="Work on this pipeline only; repeatable. \\[default: all]",
        rich_help_panel=WORKER,
        show_default=False,
    ),
]
Processes = Annotated[
    str,
    typer.Option(
        "--processes",
        help="Worker processes on the one device: a number, or auto to add one after the other as"
        " long as each makes it clearly faster.",
        rich_help_panel=WORKER,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(work))
    app.command()(connected(run, may_make_server=True))


def work(
    conninfo: str,
    drain: Annotated[
        bool,
        typer.Option("--drain", help="Leave when nothing is pending.", rich_help_panel=WORKER),
    ] = False,
    pipeline: OnlyPipelines = None,
    max_records: Annotated[
        int | None,
        typer.Option(
            "--max-records",
            help="Leave after the claim that reaches so many records.",
            rich_help_panel=WORKER,
            show_default=False,
        ),
    ] = None,
    processes: Processes = "1",
    *,
    worker: WorkerOptions,
) -> None:
    """Claim, embed and commit until stopped; start it on as many machines as you have.

    On a terminal it shows a live screen, where keys pause, retry and stop; elsewhere a line a
    minute, and one for each event. With --log-level or --log-format, it is the log of its claims.

    Ctrl-C or SIGTERM finishes the claims in hand and leaves; a second one gives them back and
    leaves at once. Exits with 130 after Ctrl-C, with 0 after SIGTERM.

    Example: pgembed work --concurrency 4
    """
    settings = worker.settings(
        drain=drain, pipelines=tuple(pipeline or ()), max_records=max_records
    )
    count = check_processes(processes)
    if max_records is not None and count != 1:
        raise UsageError("--max-records is of one process; leave --processes out")
    reason, left = _work(conninfo, settings, count)
    if reason == DRAINED:
        suggest_index(conninfo, settings.pipelines, left)


def _work(
    conninfo: str, settings: WorkerSettings, count: int | None
) -> tuple[str, Mapping[str, str]]:
    """Work behind a screen, or with a line a minute, or with a log where a person wants one."""
    if wants_log():
        return _supervise(conninfo, settings, count=count)
    name = settings.pipelines[0] if len(settings.pipelines) == 1 else None
    with _followed(conninfo, name) as update:
        return _supervise(conninfo, settings, count=count, quiet=True, on_tick=update)


@contextmanager
def _followed(conninfo: str, name: str | None) -> Iterator[Callable[[], None]]:
    from pgqueue_embed.cli.following import STOPS_AFTER_CLAIMS, following

    def stop() -> None:
        os.kill(os.getpid(), signal.SIGINT)

    with following(conninfo, name, on_quit=stop, quit_words=STOPS_AFTER_CLAIMS) as update:
        yield lambda: update(0.0)


def _supervise(
    conninfo: str,
    settings: WorkerSettings,
    *,
    count: int | None = 1,
    quiet: bool = False,
    on_tick: Callable[[], None] = lambda: None,
) -> tuple[str, Mapping[str, str]]:
    """Work, and return why it ended, and what is left undone: the reason by pipeline."""
    from pgqueue_embed.log import get_logger
    from pgqueue_embed.worker.processes import WorkerProcesses
    from pgqueue_embed.worker.supervisor import Supervisor

    how = log_settings(quiet=quiet)
    how.apply()
    get_logger().debug("supervisor started")

    told: set[str] = set()

    def tell(text: str) -> None:
        """Say once what several processes have to say."""
        if text not in told:
            told.add(text)
            say(text, err=True)

    def start() -> Supervisor:
        return Supervisor(conninfo, settings, how, tell=tell)

    processes = WorkerProcesses(start, count, conninfo, on_tick=on_tick, tell=tell)
    reason = processes.run()
    if processes.interrupted:
        raise KeyboardInterrupt
    return reason, processes.left


def run(
    conninfo: str,
    name: options.PipelineName,
    wanted: options.WantedPipeline,
    records: options.RunRecords,
    worker: WorkerOptions,
) -> None:
    """Make the pipeline if it is missing, queue its records, embed them all, and leave.

    One of this name that is there already must have the options that are given.
    Start pgembed work on other machines meanwhile, and they share the records.

    Example: pgembed run reports --source-table event_text --text-field foi_text
    """
    from pgqueue_embed.db.migrate import migrate
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.lifecycle.sync import start_capture
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.queue.claims import is_drained
    from pgqueue_embed.worker.models import left_undone

    selection = records.selection()
    settings = worker.settings(drain=True, pipelines=(name,))
    migrate(conninfo)
    with connect(conninfo) as connection:
        make_or_keep(connection, name, wanted)
        pipeline = load_pipeline(connection, name)
        if wanted.sync:
            start_capture(connection, pipeline)
        queue_records(connection, pipeline, selection)
        drained = is_drained(connection, [pipeline.id])
        left = left_undone(connection, [pipeline], {})
    if drained:
        suggest_index(conninfo, (name,), left)
    else:
        embed_all(conninfo, name, settings)


def embed_all(conninfo: str, name: str, settings: WorkerSettings) -> None:
    """Drain one pipeline behind a live screen, and say what to do next."""
    go_on = f"go on with: {command('work', '--drain', '--pipeline', name)}"
    try:
        with _followed(conninfo, name) as update:
            reason, left = _supervise(conninfo, settings, quiet=True, on_tick=update)
    except KeyboardInterrupt:
        say(go_on, err=True)
        raise
    if reason != DRAINED:
        raise SetupError(f"{reason} before all was embedded; {go_on}")
    suggest_index(conninfo, (name,), left)


def suggest_index(
    conninfo: str, names: tuple[str, ...], left: Mapping[str, str] = MappingProxyType({})
) -> None:
    """Name the next step for each pipeline: its failures, its vector index, or a search.

    Raises SetupError for work that is `left` undone: the reason, by pipeline.
    """
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipelines

    with connect(conninfo) as connection:
        for pipeline in load_pipelines(connection, names):
            if pipeline.name not in left:
                _suggest(connection, pipeline)
    if left:
        raise SetupError("; ".join(f"{name} {reason}" for name, reason in left.items()))


def _suggest(connection: Connection, pipeline: Pipeline) -> None:
    from pgqueue_embed.monitoring.progress import is_complete
    from pgqueue_embed.monitoring.snapshot import read_snapshot
    from pgqueue_embed.monitoring.words import never_queued, switch_now
    from pgqueue_embed.pipeline.catalog import why_paused
    from pgqueue_embed.vector_search.index import has_vector_index

    row = read_snapshot(connection, pipeline.name).pipelines[0].row
    name = pipeline.name
    if row["state"] == "paused":
        why = why_paused(name, row["state_reason"])
        say(f"{name} is paused: {why}", fg="yellow", err=True)
    if row["dead"]:
        letters = count(row["dead"], "dead letter")
        say(f"{name} has {letters}; see why: {command('failures', name)}", fg="yellow", err=True)
    if row["pending"]:
        return
    if row["next_of"]:
        # The switch builds what indexes it lacks.
        say(switch_now(row))
        return
    if row["never_queued"]:
        say(never_queued(row), fg="yellow", err=True)
    if has_vector_index(connection, pipeline):
        say(f'search it: {command("search", name)} "…"')
    elif row["done"]:
        state = f"{name} is complete" if is_complete(row) else f"nothing of {name} is pending"
        say(f"{state}; build its vector index: {command('index', name)}")
