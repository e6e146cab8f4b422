"""The command that watches: status."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_embed.cli.display import (
    console,
    count,
    duration,
    plain_table,
    print_json,
    size,
)
from pgqueue_embed.cli.options import connected
from pgqueue_embed.untrusted.shell import command
from pgqueue_embed.worker.stop_reasons import ANOTHER_MODEL, DRAINED, MAX_RECORDS, RECYCLED, STOPPED

if TYPE_CHECKING:
    from datetime import datetime

    from rich.console import Console
    from rich.table import Table

    from pgqueue_embed.status import Row, Status

# From here on there is room for the columns that most people can do without.
WIDE = 110

# Reasons of a stop that need no attention.
ORDINARY_ENDINGS = (STOPPED, DRAINED, MAX_RECORDS, RECYCLED, ANOTHER_MODEL)

STATE_STYLES = {
    "complete": "green",
    "queue empty": "yellow",
    "paused": "yellow",
    "no worker": "yellow",
    "silent": "yellow",
    "stopped": "dim",
}


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(status))


def status(
    conninfo: str,
    name: Annotated[
        str | None,
        typer.Argument(help="A pipeline.", show_default="every pipeline"),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json",
            help="Print JSON: the columns of pgembed.progress and pgembed.worker_status;"
            " durations in seconds.",
        ),
    ] = False,
) -> None:
    """Show how far each pipeline is, how fast, and who works on it.

    The same as SELECT * FROM pgembed.progress. Rates are over the last minute. What is pending is
    New, or Changed: that is done or dead already, and waits again. Percent is what is done and does
    not wait.

    Example: pgembed status reports
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.status import read_status

    with connect(conninfo) as connection:
        check_schema(connection)
        found = read_status(connection, name)
    if as_json:
        print_json({"pipelines": found.pipelines, "workers": found.workers})
    else:
        show(found)


def show(found: Status, *, notes: bool = True) -> None:
    """Print tables of pipelines and workers, and below them what a person may do next."""
    out = console()
    if not found.pipelines:
        out.print(f"no pipeline yet{found.place}; make one: pgembed create", soft_wrap=True)
        return
    out.print(_pipeline_table(found.pipelines, wide=out.width >= WIDE))
    if found.workers:
        out.print()
        out.print(_worker_table(found, wide=out.width >= WIDE))
    if notes:
        _print_notes(out, found)


def _pipeline_table(rows: list[Row], *, wide: bool) -> Table:
    extra = ["In flight", "Retrying", "Chunks/s", "Tokens/s"] if wide else []
    columns = ["Done", "New", "Changed", "Dead", *extra[:2], "Percent", "Records/s", *extra[2:]]
    table = plain_table(["Pipeline"], columns)
    table.add_column("Time left")
    for row in rows:
        numbers = [row["done"], row["pending_new"], row["pending_changed"]]
        rates = [row["records_per_second"]]
        more = []
        if wide:
            more = [row["in_flight"], row["retrying"]]
            rates += [row["chunks_per_second"], row["tokens_per_second"]]
        table.add_row(
            row["pipeline"],
            *(f"{number:,}" for number in numbers),
            _styled(f"{row['dead']:,}", style="yellow" if row["dead"] else ""),
            *(f"{number:,}" for number in more),
            f"{row['percent']:.1f} %",
            *(_rate(rate) for rate in rates),
            _styled(_time_left(row)),
        )
    return table


def _rate(value: Any) -> str:
    return "–" if not value else f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def _time_left(row: Row) -> str:
    from pgqueue_embed.status import is_complete

    if row["state"] == "paused":
        return "paused"
    if not row["total"]:
        return "nothing yet"
    if not row["pending"]:
        return "complete" if is_complete(row) else "queue empty"
    if not row["live_workers"]:
        return "no worker"
    return duration(row["eta"].total_seconds()) if row["eta"] is not None else "…"


def _styled(state: str, more: str = "", *, style: str | None = None) -> Any:
    from rich.text import Text

    return Text(state + more, style=STATE_STYLES.get(state, "") if style is None else style)


def _worker_table(found: Status, *, wide: bool) -> Table:
    table = plain_table(["Worker", "State", "Device"], ["Records/s", "Chunks/s", "Up"])
    if wide:
        table.add_column("Memory", justify="right")
        table.add_column("Model", overflow="fold")
    for row in found.workers:
        up_until = row["stopped_at"] or (row["heartbeat_at"] if _is_silent(row) else found.now)
        extra = [size(row["memory_bytes"]), row["model"]] if wide else []
        table.add_row(
            worker_name(row),
            _styled(row["state"], f" {_silence(row, found.now)}" if _is_silent(row) else ""),
            f"{row['device']} {row['precision']}",
            _rate(row["records_per_second"]),
            _rate(row["chunks_per_second"]),
            duration((up_until - row["started_at"]).total_seconds()),
            *extra,
            style="dim" if row["state"] == "stopped" else "",
        )
    return table


def worker_name(row: Row) -> str:
    """Return host and process of a worker, without the domain: ``mac-mini:4711``."""
    host = str(row["host"])
    is_address = host.replace(".", "").isdigit()
    return f"{host if is_address else host.split('.')[0]}:{row['pid']}"


def _is_silent(row: Row) -> bool:
    return bool(row["state"] == "silent")


def _silence(row: Row, now: datetime) -> str:
    return duration((now - row["heartbeat_at"]).total_seconds())


def _print_notes(out: Console, found: Status) -> None:
    notes = [note for row in found.pipelines for note in _notes(row)]
    notes += [
        f"{worker_name(row)} stopped: {row['stop_reason']}"
        for row in found.workers
        if row["stop_reason"] and row["stop_reason"] not in ORDINARY_ENDINGS
    ]
    notes += [
        f"{worker_name(row)} leaves work to others: {row['unserved']}"
        for row in found.workers
        if row["unserved"] and row["state"] != "stopped"
    ]
    notes += [
        f"{name} has no vector index; build one: {command('index', name)}"
        for name in found.unindexed
    ]
    if notes:
        out.print()
    for note in notes:
        out.print(f"• {note}", soft_wrap=True)


def never_queued(row: Row) -> str:
    """Return what an empty queue leaves out, and the way to have it."""
    name = row["pipeline"]
    rows = count(row["never_queued"], "source row")
    were = "was" if row["never_queued"] == 1 else "were"
    return (
        f"{name}: queue empty; about {rows} {were} never queued (an estimate, by PostgreSQL's"
        f" statistics); queue them: {command('enqueue', name)}"
    )


def _notes(row: Row) -> list[str]:
    from pgqueue_embed.pipeline.catalog import why_paused

    name = row["pipeline"]
    notes = []
    if row["dead"]:
        letters = count(row["dead"], "dead letter")
        notes.append(f"{name} has {letters}; read: {command('failures', name)}")
    if not (row["pending"] or row["next_of"]) and row["never_queued"]:
        notes.append(never_queued(row))
    if row["state"] == "paused":
        notes.append(f"{name} is paused: {why_paused(name, row['state_reason'])}")
    elif row["next_of"] and row["total"] and not row["pending"]:
        switch = command("alter", row["next_of"], "--switch")
        notes.append(f"nothing of {name} is pending; let searches use it: {switch}")
    elif row["pending"] and not row["live_workers"]:
        notes.append(f"{name} waits for a worker; on any machine: pgembed work")
    return notes
