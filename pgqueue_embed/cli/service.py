"""Commands of the worker that starts by itself: service install, uninstall, status."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.group import OneLineGroup
from pgqueue_embed.cli.options import connected
from pgqueue_embed.cli.work import OnlyPipelines, Processes
from pgqueue_embed.cli.worker_options import WorkerOptions
from pgqueue_embed.errors import UsageError
from pgqueue_embed.worker.settings import check_processes

SERVICE = "Service"

Name = Annotated[
    str, typer.Option("--name", help="Several may be on a machine.", rich_help_panel=SERVICE)
]
System = Annotated[
    bool,
    typer.Option(
        "--system",
        help="Of the machine: it starts at boot, before anybody logs in. Takes root.",
        rich_help_panel=SERVICE,
    ),
]

app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    help="A worker that starts by itself after a reboot, by launchd or systemd.",
)


def add_commands(parent: typer.Typer) -> None:
    """Add this file's group of commands to `parent`."""
    parent.add_typer(app, name="service")


def install(
    conninfo: str,
    pipeline: OnlyPipelines = None,
    processes: Processes = "1",
    name: Name = "pgembed",
    system: System = False,
    run_as: Annotated[
        str | None,
        typer.Option(
            "--run-as",
            help="With --system: the user that it works as. \\[default: who called sudo]",
            rich_help_panel=SERVICE,
            show_default=False,
        ),
    ] = None,
    *,
    worker: WorkerOptions,
) -> None:
    """Have this machine start `pgembed work` by itself, now and after each reboot.

    Takes the options of `work`. The connection string is kept in a file that its owner alone can
    read. To change the options, install it again.

    Example: pgembed service install --concurrency 2 --memory-limit 8000
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.service.install import ServicePlace, connection_string
    from pgqueue_embed.service.install import install as install_service

    place = ServicePlace.of(name, is_system=system)
    user = _user(run_as, is_system=system)
    worker.settings(drain=False, pipelines=tuple(pipeline or ()))
    check_processes(processes)
    with connect(conninfo) as connection:
        check_schema(connection)
        dsn = connection_string(connection)
    arguments = (
        *worker.words(),
        *(f"--pipeline={each}" for each in pipeline or ()),
        f"--processes={processes}",
    )
    for file in install_service(place, arguments, dsn, user=user):
        say(f"written: {file}")
    say(f"{name} runs; its log: {place.manager.log(name)}")
    for note in place.manager.notes(name):
        say(note)


def uninstall(name: Name = "pgembed", system: System = False) -> None:
    """Stop the worker after its claims in hand, and remove the files of its service.

    Example: pgembed service uninstall
    """
    from pgqueue_embed.service.install import ServicePlace
    from pgqueue_embed.service.install import uninstall as uninstall_service

    removed = uninstall_service(ServicePlace.of(name, is_system=system))
    for file in removed:
        say(f"removed: {file}")
    if not removed:
        say(f"no service {name} is installed")


def status(name: Name = "pgembed", system: System = False) -> None:
    """Say whether the service is installed and runs; exits with 1 if it does not.

    Example: pgembed service status
    """
    from pgqueue_embed.service.install import ServicePlace

    place = ServicePlace.of(name, is_system=system)
    if not place.is_installed:
        say(f"no service {name} is installed")
        raise typer.Exit(1)
    runs = place.manager.is_running(name)
    say(f"{name} {'runs' if runs else 'does not run'}: {place.manager.file(name)}")
    say(f"log: {place.manager.log(name)}")
    if not runs:
        raise typer.Exit(1)


def _user(run_as: str | None, *, is_system: bool) -> str | None:
    """Return whom a service of the system works as; a user's works as that user."""
    if not is_system:
        if run_as is not None:
            raise UsageError("--run-as goes with --system; a service of yours works as you")
        return None
    if os.geteuid() != 0:
        raise UsageError(f"--system takes root: sudo {sys.argv[0]} service install --system …")
    user = run_as or os.environ.get("SUDO_USER")
    if user is None:
        raise UsageError("--system: name the user that it works as: --run-as USER")
    return user


app.command()(connected(install))
app.command()(uninstall)
app.command()(status)
