"""The command that shows how pipelines are set up: show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import console, one_line, plain_table, say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.configuration.values import Value, value_text
from pgqueue_embed.pipeline.options import PIPELINE_OPTIONS
from pgqueue_embed.untrusted.foreign_text import escaped

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from pgqueue_embed.pipeline.option import Option
    from pgqueue_embed.pipeline.pipeline import Pipeline

Name = Annotated[str | None, typer.Argument(help="A pipeline.", show_default="every pipeline")]
Toml = Annotated[
    bool, typer.Option("--toml", help="Print a piece of a configuration file, for pgembed apply.")
]


@dataclass(frozen=True, kw_only=True)
class Shown:
    """A pipeline with its settings, and those that were decided last: its next generation's."""

    pipeline: Pipeline
    successor: Pipeline | None
    present: dict[str, Value]
    decided: dict[str, Value]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(show))


def show(conninfo: str, name: Name = None, toml: Toml = False) -> None:
    """Show how a pipeline, or every pipeline, is set up.

    The settings have the names of create's options; those of the default are dim.

    Example: pgembed show reports --toml >> pgembed.toml
    """
    from pgqueue_embed.configuration.declared import declared_settings
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.generations import with_successors

    with connect(conninfo) as connection:
        check_schema(connection)
        pipelines = with_successors(connection, [name] if name else [])
        found = [
            Shown(
                pipeline=each,
                successor=(successor := _successor(each, pipelines)),
                present=declared_settings(connection, each),
                decided=declared_settings(connection, each, successor),
            )
            for each in pipelines
            if each.successor_of not in {other.id for other in pipelines}
        ]
    if not found:
        say("no pipeline yet; make one: pgembed create", err=toml)
    elif toml:
        say(escaped(in_toml({each.pipeline.name: each.decided for each in found})), nl=False)
    else:
        _show(found)


def in_toml(settings: Mapping[str, dict[str, Value]]) -> str:
    """Return what a configuration file says of pipelines, given their settings by name."""
    import tomli_w

    return tomli_w.dumps({"pipelines": {name: _ordered(each) for name, each in settings.items()}})


def _successor(pipeline: Pipeline, pipelines: Sequence[Pipeline]) -> Pipeline | None:
    return next((each for each in pipelines if each.successor_of == pipeline.id), None)


def _ordered(values: dict[str, Value]) -> dict[str, Value]:
    return {key: values[key] for key in PIPELINE_OPTIONS if key in values}


def _show(found: Sequence[Shown]) -> None:
    out = console()
    for place, each in enumerate(found):
        if place:
            out.print()
        out.print(_table(each))


def _table(found: Shown) -> Table:
    """Return the settings, by the panels of create's help, and what follows from them."""
    table = plain_table([one_line(found.pipeline.name), ""])
    if found.successor:
        table.add_column("Next generation", overflow="fold")
    keys = PIPELINE_OPTIONS.values()
    for panel in dict.fromkeys(key.panel for key in keys):
        table.add_row(_heading(panel))
        for key in keys:
            if key.panel != panel:
                continue
            if key.name in found.present or key.name in found.decided:
                values = found.present.get(key.name), found.decided.get(key.name)
                table.add_row(*_row(key, *values))
    table.add_row(_heading("Now"))
    for name, value in _facts(found.pipeline).items():
        table.add_row(f"  {name}", one_line(value))
    return table


def _heading(title: str) -> RenderableType:
    from rich.text import Text

    return Text(title, style="bold")


def _row(key: Option, present: Value | None, coming: Value | None) -> list[RenderableType]:
    from rich.text import Text

    value = Text(one_line(value_text(present)), style="dim" if present == key.default else "")
    other = one_line(value_text(coming)) if coming != present else ""
    return [f"  {key.name}", value, *([other] if other else [])]


def _facts(pipeline: Pipeline) -> dict[str, str]:
    """Return what no option says."""
    return {
        "state": pipeline.state,
        "vectors": f"{pipeline.spec.vector_type}({pipeline.dimensions})",
        "model files": f"SHA-256 {pipeline.model_fingerprint[:16]}…",
    }
