"""The command that watches: status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_embed.cli.display import console, print_json
from pgqueue_embed.cli.options import connected

if TYPE_CHECKING:
    from pgqueue_embed.monitoring.snapshot import Snapshot


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(status))


def status(
    conninfo: str,
    name: Annotated[
        str | None,
        typer.Argument(help="A pipeline.", show_default="every pipeline"),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Go on showing it, with keys to pause, retry and look at failures; without a"
            " terminal, a line a minute and one for each event.",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: the columns of pgembed.progress and pgembed.worker_status, time left,"
            " events, dead letters by error; durations in seconds.",
        ),
    ] = False,
) -> None:
    """Show how far each pipeline is, how long it will take, and who works on it.

    The time left follows from the rate of up to 12 minutes, for all that is pending: new, changed
    and retrying records. Percent is what is done and does not wait. It takes a right to read the
    views of schema pgembed, and no other.

    Example: pgembed status reports

    Example, a live screen: pgembed status --watch
    """
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.monitoring.snapshot import read_snapshot

    with connect(conninfo) as connection:
        snapshot = read_snapshot(connection, name)
    if watch and not as_json:
        from pgqueue_embed.cli.following import watch as go_on_watching

        go_on_watching(conninfo, name)
    elif as_json:
        print_json(as_values(snapshot))
    else:
        show_snapshot(snapshot)


def as_values(snapshot: Snapshot) -> dict[str, Any]:
    """Return a snapshot for JSON: rows of the views, with what was made of them."""
    pipelines = []
    for each in snapshot.pipelines:
        left = each.time_left
        pipelines.append(
            {
                **each.row,
                "smoothed_records_per_second": each.pace and each.pace.records_per_second,
                "time_left_low_seconds": left and left.low_seconds,
                "time_left_high_seconds": left and left.high_seconds,
                "bottleneck": each.bottleneck,
            }
        )
    return {
        "pipelines": pipelines,
        "workers": [{**each.row, "in_flight": each.in_flight} for each in snapshot.workers],
        "events": snapshot.events,
        "failures": snapshot.failures,
    }


def show_snapshot(snapshot: Snapshot, *, notes: bool = True) -> None:
    """Print pipelines and workers, and below them what a person may do next."""
    from rich.console import Group

    from pgqueue_embed.cli.picture import Canvas, picture
    from pgqueue_embed.monitoring import words

    out = console()
    if not snapshot.pipelines:
        out.print(f"no pipeline yet{snapshot.place}; make one: pgembed create", soft_wrap=True)
        return
    canvas = Canvas(width=out.width, is_ascii=out.options.ascii_only)
    out.print(Group(*picture(snapshot, canvas)))
    said = words.notes(snapshot) if notes else []
    if said:
        out.print()
    for note in said:
        out.print(f"• {note}", soft_wrap=True)
