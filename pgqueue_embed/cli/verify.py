"""The command that proves stored vectors by a sample: verify."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import AsJson, console, one_line, plain_table, print_json, say
from pgqueue_embed.cli.options import OptionGroup, connected
from pgqueue_embed.cli.pipeline_options import ModelPath, PipelineName
from pgqueue_embed.pipeline.option import options_of
from pgqueue_embed.pipeline.options import VerifyOptions
from pgqueue_embed.quantities import count, percent
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    from rich.table import Table

    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.verification import Verification

MOST_SHOWN = 20
HEADINGS = {"worker": "Worker", "precision": "Precision", "day": "Day"}


class Wanted(OptionGroup):
    """The options that say what is drawn, and what agrees."""

    options = options_of(VerifyOptions)


Requeue = Annotated[
    bool, typer.Option("--requeue", help="Queue the records of what differs to be embedded again.")
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(verify))


def verify(
    conninfo: str,
    name: PipelineName,
    wanted: Wanted,
    requeue: Requeue = False,
    as_json: AsJson = False,
    model_path: ModelPath = None,
) -> None:
    """Embed a random sample of what is stored again, in fp32, and say how much of it agrees.

    It only reads, but for --requeue. Exits with 1 if vectors differ and are not
    put back into the queue.

    Example: pgembed verify reports --sample 1000
    """
    from pgqueue_embed.cli.display import progress_console
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.verification import put_back

    options = VerifyOptions(**wanted.given)
    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        with progress_console().status("drawing chunks") as line:
            found = _verified(connection, pipeline, options, model_path, line.update)
        requeued = put_back(connection, pipeline, found) if requeue else 0
    if as_json:
        print_json({**found.as_json(), "requeued": requeued})
    else:
        _show(pipeline, found, requeued)
    if found.differing and not requeue:
        raise typer.Exit(1)


def _verified(
    connection: Connection,
    pipeline: Pipeline,
    options: VerifyOptions,
    model_path: str | None,
    update: Callable[[str], None],
) -> Verification:
    from pgqueue_embed.verification import verify as compare

    return compare(
        connection,
        pipeline,
        options,
        model_path=model_path,
        on_progress=lambda done, of: update(f"comparing {done:,} of {count(of, 'chunk')}"),
    )


def _show(pipeline: Pipeline, found: Verification, requeued: int) -> None:
    if not found.compared:
        drawn = f", {count(found.outdated, 'chunk')} of changed records" if found.outdated else ""
        say(f"{pipeline.name} has no vectors to compare{drawn}")
        return
    out = console()
    out.print(_sentence(found), soft_wrap=True)
    for split_by, heading in HEADINGS.items():
        if any(group.value is not None for group in found.groups(split_by)):
            out.print()
            out.print(_groups(found, split_by, heading))
    if found.differing:
        out.print()
        out.print(_differing(found))
        out.print()
        out.print(_advice(pipeline, found, requeued), soft_wrap=True)


def _sentence(found: Verification) -> str:
    compared, agreeing = len(found.compared), len(found.compared) - len(found.differing)
    low, high = found.interval
    cosines = [each.cosine for each in found.compared]
    outdated = (
        f"; {count(found.outdated, 'chunk')} of changed records not compared"
        if found.outdated
        else ""
    )
    return (
        f"{agreeing:,} of {count(compared, 'vector')} agree with fp32 (cosine of at least"
        f" {found.min_cosine:g}): {percent(agreeing / compared)}; of all stored ones"
        f" {percent(low)} to {percent(high)} do, with 95 % confidence; lowest cosine"
        f" {min(cosines):.4f}{outdated}"
    )


def _groups(found: Verification, split_by: str, heading: str) -> Table:
    table = plain_table([heading], ["Compared", "Differ", "Lowest cosine", "Median"])
    for group in found.groups(split_by):
        table.add_row(
            "not known" if group.value is None else one_line(str(group.value)),
            f"{group.compared:,}",
            f"{group.differing:,}",
            f"{group.lowest_cosine:.4f}",
            f"{group.median_cosine:.4f}",
        )
    return table


def _differing(found: Verification) -> Table:
    table = plain_table(["Key", "Worker", "Precision", "Day"], ["Chunk", "Cosine", "Length"])
    for each in found.differing[:MOST_SHOWN]:
        table.add_row(
            one_line(each.key),
            *_known(each.worker, each.precision, each.day),
            f"{each.chunk_index:,}",
            f"{each.cosine:.4f}",
            f"{each.length:.4g}",
        )
    return table


def _known(*values: object) -> Sequence[str]:
    return ["" if value is None else one_line(str(value)) for value in values]


def _advice(pipeline: Pipeline, found: Verification, requeued: int) -> str:
    more = len(found.differing) - MOST_SHOWN
    hidden = f"and {more:,} more; " if more > 0 else ""
    if requeued:
        everything = command("enqueue", pipeline.name, "--all")
        return (
            f"{hidden}put {count(requeued, 'record')} back into the queue; what was not drawn is as"
            f" it was: {everything} (--where …) embeds more again"
        )
    again = command("verify", pipeline.name, "--requeue")
    return f"{hidden}nothing was changed; to put back what another sample finds: {again}"
