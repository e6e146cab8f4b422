"""The command estimate: what a pipeline will take, before anything is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli import pipeline_options as options
from pgqueue_embed.cli.display import console, plain_table, print_json, progress_console
from pgqueue_embed.cli.options import connected
from pgqueue_embed.errors import UsageError
from pgqueue_embed.quantities import duration, percent, size

if TYPE_CHECKING:
    from rich.table import Table

    from pgqueue_embed.db.session import Connection
    from pgqueue_embed.estimation.estimate import Estimate
    from pgqueue_embed.estimation.subject import Subject

RatePerSecond = Annotated[
    float | None,
    typer.Option(
        "--rate",
        help="Chunks a second of all machines together; else this machine's rate is measured for"
        " some seconds.",
        min=0.001,
        max=1e9,
        show_default=False,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, sizes in bytes.")]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(estimate))


def estimate(
    conninfo: str,
    name: options.PipelineName,
    wanted: options.WantedPipeline,
    rate: RatePerSecond = None,
    as_json: AsJson = False,
) -> None:
    """Say how many chunks, bytes and hours a pipeline will take, from a sample of its source.

    Of a pipeline that is there, or with --source-table and the other options of
    create of one to be made. Nothing is made or changed.

    Example: pgembed estimate reports --source-table event_text --text-field foi_text
    """
    from pgqueue_embed.db.migrate import check_schema
    from pgqueue_embed.db.session import connect
    from pgqueue_embed.estimation.subject import of_pipeline, of_spec

    with connect(conninfo) as connection:
        if wanted.has_source:
            subject = of_spec(connection, wanted.spec(name), wanted.model)
        else:
            if wanted.named:
                raise UsageError(
                    "name the source too, for a pipeline to be made: --source-table; or none of"
                    " these options, for one that is there"
                )
            check_schema(connection)
            subject = of_pipeline(connection, name)
        found = estimated(connection, subject, rate)
    if as_json:
        print_json(found.as_json())
    else:
        show_estimate(found)


def estimated(connection: Connection, subject: Subject, rate: float | None) -> Estimate:
    """Return the estimate, at `rate` or at this machine's, and say meanwhile what is done."""
    from pgqueue_embed.estimation.estimate import estimate as of
    from pgqueue_embed.estimation.rate import ChunkRate, measure_rate
    from pgqueue_embed.estimation.text_sample import TextSample
    from pgqueue_embed.pipeline.model import use_of

    def rate_of(sample: TextSample) -> ChunkRate | None:
        if rate is not None:
            return ChunkRate(chunks_per_second=rate, of="as given by --rate")
        return measure_rate(subject.resolved, use_of(subject.pipeline.spec), sample.inputs)

    with progress_console().status("drawing records") as line:
        return of(connection, subject.pipeline, subject.chunker, rate_of, on_progress=line.update)


def show_estimate(found: Estimate) -> None:
    """Print an estimate on one screen."""
    pipeline, out = found.pipeline, console()
    cut = (
        f"chunks of up to {pipeline.spec.chunk_tokens} tokens"
        if pipeline.spec.chunking == "tokens"
        else "a chunk a record"
    )
    out.print(
        f"{pipeline.name}: {pipeline.document} of {pipeline.source}, {pipeline.model}"
        f" ({pipeline.dimensions:,} dimensions), {cut}",
        soft_wrap=True,
    )
    out.print(_sampled(found), soft_wrap=True)
    out.print()
    out.print(_amounts(found))
    out.print()
    out.print(_storage(found))
    out.print()
    out.print(
        "memory for the index: with less, its build takes many times as long. binary: an index of"
        " bits (--quantize binary). WAL: while all is embedded and indexed.",
        soft_wrap=True,
    )


def _sampled(found: Estimate) -> str:
    if found.sampled >= found.records:
        return f"all {found.records:,} records were looked at"
    return (
        f"from {found.sampled:,} records, drawn at random: in 95 of 100 such samples the numbers of"
        f" chunks and tokens are right to ± {percent(max(found.margin, 0.001))}"
    )


def _amounts(found: Estimate) -> Table:
    table = plain_table(["Expected"], ["Number"])
    table.add_column("")
    records, chunks = max(found.records, 1), max(found.chunks, 1)
    table.add_row("records", _about(found.records, found), _of_records(found))
    table.add_row("chunks", _about(found.chunks, found), f"{found.chunks / records:.2f} a record")
    table.add_row("tokens", _about(found.tokens, found), f"{found.tokens / chunks:.0f} a chunk")
    if found.hours is not None and found.rate is not None:
        rate = f"at {found.rate.chunks_per_second:,.4g} chunks a second: {found.rate.of}"
        table.add_row("time", duration(max(1.0, 3600 * found.hours)), rate)
    return table


def _about(number: int, found: Estimate) -> str:
    """Return a number without digits that a sample cannot know."""
    if found.sampled >= found.records:
        return f"{number:,}"
    return f"{int(float(f'{number:.3g}')):,}"


def _of_records(found: Estimate) -> str:
    parts = []
    if found.empty_records:
        parts.append(f"{_about(found.empty_records, found)} without text")
    if found.refused_records:
        parts.append(
            f"{_about(found.refused_records, found)} that cannot be embedded ({found.refusal})"
        )
    return ", ".join(parts)


# What a kind of storage is called, and how its sizes are.
ROWS = {
    "table of chunks": "table",
    "its key indexes": "key_indexes",
    "HNSW index": "vector_index",
    "ledger": "ledger",
    "in all": "in_all",
    "WAL": "wal",
    "memory for the index": "index_memory",
}


def _storage(found: Estimate) -> Table:
    chosen = found.pipeline.spec.vector_type
    titles = [
        f"{each.index if each.index != 'none' else each.vectors}"
        f"{' (chosen)' if (each.vectors, each.index) == (chosen, 'none') else ''}"
        for each in found.storage
    ]
    table = plain_table(["Size"], titles)
    for title, field in ROWS.items():
        sizes = [getattr(each, field) for each in found.storage]
        if any(value is not None for value in sizes):
            table.add_row(title, *("–" if value is None else size(value) for value in sizes))
    return table
