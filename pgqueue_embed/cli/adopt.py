"""The command that takes over a table of vectors: adopt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.display import confirm, say
from pgqueue_embed.cli.options import OptionGroup, connected
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.option import options_of
from pgqueue_embed.pipeline.options import SampleOptions
from pgqueue_embed.quantities import count, percent
from pgqueue_embed.untrusted.shell import command

if TYPE_CHECKING:
    from pgqueue_embed.adopt import Agreement, Candidate
    from pgqueue_embed.adopt.judge import Judge
    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.queue.adoptions import Counts


class SampleComparison(OptionGroup):
    """The options that say what vectors must be like to be adopted."""

    options = options_of(SampleOptions)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(adopt))


def adopt(
    conninfo: str,
    name: options.PipelineName,
    wanted: options.WantedPipeline,
    comparison: SampleComparison,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be adopted; change nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Make a pipeline of a table of vectors that is there, and queue only what is wrong in it.

    Draws some of its vectors and compares them with the model's. Records whose chunks are slices
    of their present text stay as they are. Interrupted, it goes on where it stopped.

    Example: pgembed adopt reports --source-table event_text --text-field foi_text --dry-run
    """
    from pgqueue_embed.adopt import local_model, make_judge, prepare_adoption, resumable
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect

    if wanted.sync:
        raise UsageError(f"--sync: adopt the table first, then: {command('sync', name, '--on')}")
    with connect(conninfo) as connection:
        check_schema(connection)
        spec = wanted.spec(name) if wanted.has_source else None
        pipeline = resumable(connection, name, spec)
        if pipeline is not None and dry_run:
            raise UsageError(
                f"the adoption of {pipeline.target} has begun; go on with: {command('adopt', name)}"
            )
        if pipeline is not None:
            judge = make_judge(local_model(pipeline), pipeline)
        else:
            candidate = prepare_adoption(connection, wanted.spec(name), wanted.model)
            agreement = _compare(connection, candidate, comparison)
            if dry_run:
                _survey(connection, candidate)
                return
            pipeline = _attach(connection, candidate, agreement, ask=not yes)
            judge = candidate.judge()
        _adopt(connection, pipeline, judge)


def _compare(
    connection: Connection, candidate: Candidate, comparison: SampleComparison
) -> Agreement:
    """Compare, say what was seen, and raise UsageError if that is not enough."""
    from pgqueue_embed.adopt import check_agreement, compare_sample, describe_agreement

    agreement = compare_sample(
        connection,
        candidate,
        sample_chunks=comparison.given["sample"],
        min_cosine=comparison.given["min_cosine"],
    )
    drawn, compared = sum(agreement.worths.values()), len(agreement.cosines)
    others = describe_agreement(agreement.worths)
    say(
        f"drew {count(drawn, 'chunk')} of {candidate.spec.target}: {compared:,} of the present text"
        f" of their records{f', {others}' if others else ''}"
    )
    if compared:
        say(
            f"compared with {candidate.identity.name}: median cosine {agreement.median:.4f}, lowest"
            f" {agreement.cosines.min():.4f}, {percent(agreement.share)} of at least"
            f" {agreement.min_cosine:g}"
        )
    check_agreement(candidate, agreement)
    return agreement


def _survey(connection: Connection, candidate: Candidate) -> None:
    from pgqueue_embed.adopt import survey

    found = survey(connection, candidate)
    where = (
        "" if found.is_whole else f" of the first {found.records:,} (nothing else was looked at)"
    )
    say(f"would adopt {_sentence(found.counts, 'would queue')}{where}")


def _attach(
    connection: Connection, candidate: Candidate, agreement: Agreement, *, ask: bool
) -> Pipeline:
    from pgqueue_embed.adopt import attach_table

    lacking = ", ".join(candidate.table.lacking.values())
    if ask:
        confirm(
            f"Let pipeline {candidate.spec.name} keep {candidate.spec.target}"
            f"{f', with new columns {lacking}' if lacking else ''}? Workers replace what is wrong"
            " in it, and delete chunks of records that the source does not have."
        )
    pipeline = attach_table(connection, candidate, agreement.doubtful)
    say(
        f"made pipeline {pipeline.name}: {pipeline.document} of {pipeline.source} →"
        f" {pipeline.target}{f', which got {lacking}' if lacking else ''}"
    )
    return pipeline


def _adopt(connection: Connection, pipeline: Pipeline, judge: Judge) -> None:
    from pgqueue_embed.adopt import adopt_records, ensure_key_index
    from pgqueue_embed.cli.enqueue import scanning

    ensure_key_index(connection, pipeline, on_build=say)
    with scanning(connection, pipeline) as advance:
        counts = adopt_records(connection, pipeline, judge, on_slice=advance)
    say(f"adopted {_sentence(counts, 'queued')}")
    if counts.queued:
        say(f"embed them: {command('work', '--drain', '--pipeline', pipeline.name)}")


def _sentence(counts: Counts, queued: str) -> str:
    """Return ``290 records (650 chunks), queued 9 records: …``."""
    reasons = {
        "missing": counts.missing,
        "with wrong vectors": counts.wrong_vectors,
        "with another text": counts.text_differs,
        "longer than the model reads": counts.cut_off,
        "gone": counts.gone,
    }
    listed = ", ".join(f"{number:,} {reason}" for reason, number in reasons.items() if number)
    extra = "".join(
        f", {number:,} {what}"
        for number, what in (
            (counts.empty, "without text"),
            (counts.settled, "embedded meanwhile"),
        )
        if number
    )
    return (
        f"{count(counts.adopted, 'record')} ({count(counts.chunks, 'chunk')}){extra}, {queued}"
        f" {count(counts.queued, 'record')}{f': {listed}' if listed else ''}"
    )
