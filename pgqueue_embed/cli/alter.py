"""The command that changes the settings of a pipeline: alter."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.build_progress import sentence, share_done, watched_build
from pgqueue_embed.cli.display import one_line, say
from pgqueue_embed.cli.options import OptionGroup, connected, listed_columns
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import Option
from pgqueue_embed.pipeline.options import ALTERABLE
from pgqueue_embed.quantities import count
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.lifecycle.alter import Changes
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.index_build import BuildProgress

AT_ONCE = "At once"
NEW_GENERATION = "By a new generation"
GENERATION = "The new generation"


# As people look for them; an option that is not named here comes behind these.
ORDER = (
    *("rename", "priority", "max_attempts", "view", "trust_owners", "index", "quantize", "lexical"),
    "query_prompt",
    *("model", "text_field", "template", "chunk_template", "where", "chunking", "chunk_size"),
    *("overlap_tokens", "text", "ids", "copy_columns", "foreign_key", "partition_by"),
    *("vector_type", "truncate_dim", "document_prompt", "control_tokens", "pooling"),
)


def _alteration(option: Option) -> Option:
    """Return the option of `alter` for an option of `create`: not given, it stays as it is."""
    panel = NEW_GENERATION if option.alters_vectors else AT_ONCE
    return replace(option, help=option.alter or "", panel=panel, default=None, usual=None)


RENAME = Option(name="rename", field="name", help="Call the pipeline otherwise.", panel=AT_ONCE)


class WantedChanges(OptionGroup):
    """The options that say what is to be another way."""

    options = tuple(
        sorted(
            (RENAME, *map(_alteration, ALTERABLE.values())),
            key=lambda option: [*ORDER, option.name].index(option.name),
        )
    )

    def changes(self) -> Changes:
        """Return what is to be altered; raises UsageError for what no pipeline can have."""
        from pgqueue_embed.lifecycle.alter import Changes

        return Changes(**{each.field: self._read(each) for each in self.options})

    def _read(self, option: Option) -> Any:
        value = self.given[option.name]
        if value is None or option.type is not list:
            return value
        return listed_columns([each for each in value if each or not option.may_go])

    def is_empty(self) -> bool:
        """Whether nothing is asked for."""
        return all(value is None for value in self.given.values())


def _option(name: str, text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(
        name, help=text, rich_help_panel=GENERATION, show_default=False
    )
    return option


Switch = Annotated[bool, _option("--switch", "Let the new generation take the old one's place.")]
Wait = Annotated[bool, _option("--wait", "With --switch: wait until it is complete.")]
Force = Annotated[
    bool, _option("--force", "With --switch: even if records failed that the old one has.")
]
Abort = Annotated[bool, _option("--abort", "Give it up, and leave nothing of it.")]


Follow = Annotated[
    bool,
    typer.Option(
        "--follow-source",
        help="Note the names and types that the source and its columns have now, such as bigint for"
        " a key that was integer, for which the target table is written anew.",
        rich_help_panel=AT_ONCE,
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(alter))


def alter(
    conninfo: str,
    name: options.PipelineName,
    follow_source: Follow = False,
    switch: Switch = False,
    wait: Wait = False,
    force: Force = False,
    abort: Abort = False,
    *,
    wanted: WantedChanges,
) -> None:
    """Change a pipeline: at once, or by a new generation where that alters its vectors.

    A new generation is embedded beside the old one, which searches go on with until --switch
    puts the new table in its place, in one transaction. --abort gives the new one up.

    Example: pgembed alter reports --chunk-size 200
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.pipeline.catalog import load_pipeline

    _check_together(wanted, switch=switch, abort=abort, rest=wait or force)
    if follow_source and (switch or abort or not wanted.is_empty()):
        raise UsageError("--follow-source goes alone; give the other changes before or afterwards")
    with connect(conninfo) as connection:
        check_schema(connection)
        pipeline = load_pipeline(connection, name)
        if follow_source:
            _follow(connection, pipeline)
        elif abort:
            _abort(connection, pipeline)
        elif switch:
            _switch(conninfo, connection, pipeline, force=force, wait=wait)
        else:
            _alter(connection, pipeline, wanted)


def _check_together(wanted: WantedChanges, *, switch: bool, abort: bool, rest: bool) -> None:
    if (switch or abort) and not wanted.is_empty():
        raise UsageError("--switch and --abort go without changes; give the changes first")
    if switch and abort:
        raise UsageError("--switch or --abort: give one of them")
    if rest and not switch:
        raise UsageError("--wait and --force belong to --switch")


def _alter(connection: Connection, pipeline: Pipeline, wanted: WantedChanges) -> None:
    from pgqueue_embed.lifecycle.alter import alter as begin

    changes = wanted.changes()
    successor = begin(connection, pipeline, changes)
    if successor is None:
        say(f"altered {changes.name or pipeline.name}")
        return
    begin_generation(connection, pipeline, successor)


def begin_generation(connection: Connection, pipeline: Pipeline, successor: Pipeline) -> None:
    """Queue for a new generation what the old one has seen, and say how to switch."""
    from pgqueue_embed.pipeline.spec_checks import NEXT_NAME
    from pgqueue_embed.target import target_of

    queued = _catch_up(connection, pipeline, successor)
    name = successor.name.removesuffix(NEXT_NAME)
    say(
        f"made {successor.name}: {one_line(str(successor.document))} → {target_of(successor)}"
        f" ({successor.spec.vector_type}({successor.dimensions}), {successor.model},"
        f" {successor.spec.chunk_tokens} tokens a chunk, {successor.spec.overlap_tokens} overlap)"
    )
    say(
        f"queued {count(queued, 'record')} for it; searches use the old vectors until, complete, it"
        f" takes their place: {command('alter', name, '--switch', '--wait')}"
    )


def _catch_up(connection: Connection, pipeline: Pipeline, successor: Pipeline) -> int:
    from pgqueue_embed.cli.enqueue import scanning
    from pgqueue_embed.lifecycle.alter import catch_up

    with scanning(connection, pipeline) as advance:
        return catch_up(connection, pipeline, successor, on_slice=advance)


def _follow(connection: Connection, pipeline: Pipeline) -> None:
    from pgqueue_embed.lifecycle.follow_source import follow_source

    changes = follow_source(connection, pipeline)
    if not changes:
        say(f"{pipeline.source} has the names and types that {pipeline.name} knows")
        return
    say(f"{pipeline.name} follows its source: {', '.join(map(str, changes))}")
    say("workers compare all of it with what is embedded")
    if pipeline.state == "paused":
        say(f"it is paused; let it go on: {command('resume', pipeline.name)}")


def _abort(connection: Connection, pipeline: Pipeline) -> None:
    from pgqueue_embed.lifecycle.alter import abort
    from pgqueue_embed.target import target_of

    successor = abort(connection, pipeline)
    say(f"gave up {successor.name} and dropped {target_of(successor)}")


def _switch(
    conninfo: str, connection: Connection, pipeline: Pipeline, *, force: bool, wait: bool
) -> None:
    from pgqueue_embed.cli.display import progress_console
    from pgqueue_embed.cli.minute_lines import MinuteLines
    from pgqueue_embed.lifecycle.switch import switch
    from pgqueue_embed.monitoring.words import effort_lapsed
    from pgqueue_embed.pipeline.catalog import is_paused
    from pgqueue_embed.pipeline.generations import successor_of
    from pgqueue_embed.target import target_of
    from pgqueue_embed.vector_search.evaluation import kept_effort, lapsed_effort

    patience_seconds = math.inf if wait else 0.0
    lines = MinuteLines()
    measured = kept_effort(connection, pipeline)
    successor = successor_of(connection, pipeline) or pipeline
    with progress_console().status("looking") as line:

        def show(step: str) -> None:
            line.update(step)
            lines.say(f"{pipeline.name}: {step}")

        def show_build(found: BuildProgress) -> None:
            line.update(f"building an index, {sentence(found)}{share_done(found)}")

        with watched_build(conninfo, successor, show_build):
            switched = switch(
                connection,
                pipeline,
                force=force,
                patience_seconds=patience_seconds,
                on_step=show,
            )
    say(f"{switched.name} uses its new vectors, in {target_of(switched)}; the old ones are gone")
    lapsed = lapsed_effort(connection, switched, measured)
    if lapsed is not None:
        say(effort_lapsed(switched.name, lapsed), fg="yellow", err=True)
    if is_paused(connection, switched):
        go_on = command("resume", switched.name)
        say(f"{switched.name} is paused, as it was; go on: {go_on}", fg="yellow", err=True)
