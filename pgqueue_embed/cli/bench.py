"""The command that measures this machine: bench."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePath
from typing import TYPE_CHECKING, Annotated

import typer

from pgqueue_embed.cli.display import AsJson, print_json, progress_console, say
from pgqueue_embed.cli.options import connected
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import DEFAULT_MODEL

if TYPE_CHECKING:
    from pgqueue_embed.bench.forward import Forward, Tried
    from pgqueue_embed.bench.run import Measured

LEAST_SECONDS, MOST_SECONDS = 5, 3_600

Model = Annotated[
    str, typer.Option("--model", help="A name on the Hugging Face hub, or a folder (./…).")
]
Device = Annotated[str, typer.Option("--device", help="auto, mps, cuda or cpu.")]
Seconds = Annotated[
    float,
    typer.Option(
        "--seconds", help="How long to measure; opening the model a few times comes on top."
    ),
]


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands to `app`."""
    app.command()(connected(bench, may_make_server=True))


def bench(
    conninfo: str,
    model: Model = DEFAULT_MODEL,
    device: Device = "auto",
    seconds: Seconds = 120.0,
    as_json: AsJson = False,
) -> None:
    """Measure what this machine does with a model: alone, and in workers on a real PostgreSQL.

    Every precision with its cosine to fp32, sizes of batches, and how many claims
    at once are best, on texts of its own. Workers write to a database that is
    made for it on the server and dropped afterwards. The table is fit to be
    pasted into an issue; it names no host and no person.

    Example: pgembed bench --seconds 60
    """
    from pgqueue_embed.bench.run import measure

    if not LEAST_SECONDS <= seconds <= MOST_SECONDS:
        raise UsageError(f"--seconds {seconds:g}: give {LEAST_SECONDS} to {MOST_SECONDS:,}")
    with _telling() as tell:
        found = measure(conninfo, model=model, device=device, seconds=seconds, tell=tell)
    if as_json:
        print_json({**found.as_json(), "forward": {**found.as_json()["forward"], **_named(found)}})
    else:
        for line in report(found):
            say(line)


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """Yield what says on standard error what is done: in place on a terminal, else in lines."""
    out = progress_console()
    with out.status("starting") as line:
        yield line.update if out.is_terminal else lambda text: say(f"{text} …", err=True)


def _named(found: Measured) -> dict[str, str]:
    """Return the model's name; of a folder its last part, since others may name a person."""
    name = found.forward.model
    return {"model": PurePath(name).name if PurePath(name).is_absolute() else name}


def report(found: Measured) -> Iterator[str]:
    """Yield the lines of a report: tables of Markdown that can be read as they are."""
    yield "### pgembed bench"
    yield ""
    yield from _measured_on(found)
    yield ""
    yield from _alone(found.forward)
    yield ""
    yield from _table(
        ("work --concurrency", "chunks/s", "of forward", "busy", ""),
        [
            (
                str(each.concurrency),
                _rate(each.chunks_per_second),
                f"{each.forward_share:.2f}",
                f"{each.busy_share:.2f}",
                _best(each.is_best),
            )
            for each in found.workers
        ],
    )
    yield ""
    yield f"busy: the share of its time in which the device computed. Took {found.seconds:.0f} s."
    load = found.machine.load
    if load is not None and load > found.machine.cores / 2:
        yield f"Other programs kept {load:g} cores busy before: better measure without them."


def _measured_on(found: Measured) -> Iterator[str]:
    forward, machine, server = found.forward, found.machine, found.server
    where = "private server" if server.is_private else "a server of one's own"
    packages = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    yield f"- {machine.processor}, {machine.cores} cores, {machine.memory_gib:g} GiB"
    yield f"- {machine.system}, Python {machine.python}"
    yield f"- {packages}"
    yield (
        f"- PostgreSQL {server.postgresql}, pgvector {server.pgvector}, {where},"
        f" {server.round_trip_ms:g} ms a round trip"
    )
    yield (
        f"- {_named(found)['model']}, {forward.dimensions:,} dimensions, on {forward.device}"
        f" ({forward.device_name})"
    )
    yield (
        f"- chunks of up to {forward.chunk_tokens} tokens, {forward.tokens_per_chunk:.0f} on"
        f" average, {forward.chunks_per_document:.1f} a record"
    )


def _alone(forward: Forward) -> Iterator[str]:
    yield from _table(
        ("forward pass alone", "cosine", "chunks/s", ""),
        [
            (
                each.name,
                "–" if each.cosine is None else f"{each.cosine:.5f}",
                _rate(each.chunks_per_second),
                _verdict(each),
            )
            for each in forward.tried
        ],
    )
    yield ""
    for each in forward.tried:
        if each.reason:
            yield f"- {each.name}, {_verdict(each)}: {each.reason}"
    if forward.sizes:
        yield ""
        yield from _table(
            ("tokens a batch", "chunks/s", ""),
            [
                (f"{each.batch_tokens:,}", _rate(each.chunks_per_second), _best(each.is_best))
                for each in forward.sizes
            ],
        )


def _verdict(tried: Tried) -> str:
    if tried.is_taken:
        return "taken"
    if tried.chunks_per_second is None:
        return "not timed"
    return "refused" if tried.reason else ""


def _best(is_best: bool) -> str:
    return "best" if is_best else ""


def _rate(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"


def _table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a table of Markdown in columns: the first and the last one are text, others numbers."""
    every = [titles, *([cell.replace("|", "/") for cell in row] for row in rows)]
    widths = [max(len(row[at]) for row in every) for at in range(len(titles))]
    last = len(titles) - 1

    def line(cells: Sequence[str]) -> str:
        shown = [
            cell.ljust(width) if at in (0, last) else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(shown)} |"

    yield line(titles)
    rule = [
        "-" * width if at in (0, last) else "-" * (width - 1) + ":"
        for at, width in enumerate(widths)
    ]
    yield line(rule)
    for row in every[1:]:
        yield line(row)
