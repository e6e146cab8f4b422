"""The command line: one file per group of commands, joined here."""

from __future__ import annotations

from typing import Annotated

import typer

from pgqueue_embed.cli import (
    adopt,
    alter,
    apply,
    bench,
    db,
    demo,
    doctor,
    estimate,
    evaluate,
    failures,
    health,
    index,
    metrics,
    model,
    pipelines,
    search,
    serve,
    service,
    show,
    status,
    sync,
    verify,
    web,
    work,
)
from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.group import PrintableGroup, show_no_type_of_flags
from pgqueue_embed.cli.options import LogFile, LogFormat, LogLevel
from pgqueue_embed.version import VERSION

show_no_type_of_flags()

app = typer.Typer(
    name="pgembed",
    cls=PrintableGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(db.app, name="db")
app.add_typer(model.app, name="model")
app.add_typer(service.app, name="service")
pipelines.add_commands(app)
estimate.add_commands(app)
adopt.add_commands(app)
sync.add_commands(app)
alter.add_commands(app)
apply.add_commands(app)
show.add_commands(app)
status.add_commands(app)
health.add_commands(app)
metrics.add_commands(app)
web.add_commands(app)
failures.add_commands(app)
index.add_commands(app)
evaluate.add_commands(app)
search.add_commands(app)
serve.add_commands(app)
doctor.add_commands(app)
verify.add_commands(app)
work.add_commands(app)
bench.add_commands(app)
demo.add_commands(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"pgembed {VERSION}")
        raise typer.Exit


@app.callback()
def pgembed(
    ctx: typer.Context,
    log_level: LogLevel = None,
    log_file: LogFile = None,
    log_format: LogFormat = None,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Turn a text column of a PostgreSQL table into pgvector rows, on as many machines as you have.

    Start here: [bold]pgembed demo[/bold], or on your own table [bold]pgembed run NAME
    --source-table reports[/bold].
    """
    ctx.obj = {"log_level": log_level, "log_file": log_file, "log_format": log_format}
