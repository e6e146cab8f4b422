"""Commands that carry a model to machines without a hub: model export, model import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pgqueue_embed.cli.display import say
from pgqueue_embed.cli.group import OneLineGroup
from pgqueue_embed.cli.options import connected
from pgqueue_embed.untrusted.shell import command

app = typer.Typer(
    cls=OneLineGroup,
    no_args_is_help=True,
    help="Carry a pipeline's model to machines that reach no hub.",
)


def add_commands(parent: typer.Typer) -> None:
    """Add this file's group of commands to `parent`."""
    parent.add_typer(app, name="model")


def export_model(
    conninfo: str,
    name: Annotated[str, typer.Argument(help="The pipeline.")],
    archive: Annotated[Path, typer.Argument(help="The archive to write.")],
    model_path: Annotated[
        str | None,
        typer.Option(
            "--model-path",
            help="Its folder on this machine, if it lies elsewhere than its name says.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Pack the model of a pipeline, exactly the files that it remembers, into one file.

    Example: pgembed model export reports model.zip
    """
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.embedding.model_archive import export_model
    from pgqueue_embed.pipeline.catalog import load_pipeline
    from pgqueue_embed.pipeline.model import check_local_model

    with connect(conninfo) as connection:
        pipeline = load_pipeline(connection, name)
    resolved = check_local_model(pipeline, model_path)
    export_model(resolved.path, pipeline.model, pipeline.model_revision, archive)
    say(f"written: {archive}; on other machines: {command('model', 'import', archive.name)}")


def import_model(archive: Annotated[Path, typer.Argument(help="The archive.")]) -> None:
    """Unpack a model that `model export` has packed, after comparing every file with its SHA-256.

    Example: pgembed model import model.zip
    """
    from pgqueue_embed.embedding.model_archive import import_model
    from pgqueue_embed.embedding.resolve import is_folder

    contents, folder = import_model(archive)
    if is_folder(contents.name):
        say(f"unpacked; work with it: {command('work', '--model-path', str(folder))}")
    else:
        say(f"unpacked: workers find {contents.name} here")


app.command(name="export")(connected(export_model))
app.command(name="import")(import_model)
