"""A snapshot as a picture of so many columns: the same for one look, a live screen and a pipe."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from pgqueue_embed.cli.display import plain_table
from pgqueue_embed.monitoring import words
from pgqueue_embed.monitoring.news import parted, share_of_work, stopped_line
from pgqueue_embed.quantities import count, duration, size
from pgqueue_embed.untrusted.foreign_text import printable

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pgqueue_embed.monitoring.snapshot import PipelineState, Row, Snapshot, WorkerState

MOST_NAME = 24
MOST_DETAIL = 200

COLUMNS = "▁▂▃▄▅▆▇█"
MOST_COLUMNS = 15
WORKER_COLUMNS = 10

STATE_STYLES = {
    "working": "green",
    "idle": "",
    "stopping": "yellow",
    "silent": "yellow",
    "crashed": "red",
    "stopped": "dim",
}

OUTLOOK_STYLES = {
    "complete": "green",
    "queue empty": "yellow",
    "paused": "yellow",
    words.NO_WORKER: "yellow",
}


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """How much room there is; `is_ascii` for a terminal that draws no other letters.

    `no_worker` is what is said where none is at work.
    """

    width: int
    is_ascii: bool = False
    no_worker: str = words.NO_WORKER


def picture(
    snapshot: Snapshot, canvas: Canvas, *, selected: str | None = None, most: int | None = None
) -> list[RenderableType]:
    """Return pipelines, workers and failures, one part below the other.

    With `most`, a pipeline has one line, and those that are more than that are counted.
    """
    parts: list[RenderableType] = []
    if most is None:
        for each in snapshot.pipelines:
            parts += [_head(each, canvas, selected), *_facts(each, canvas)]
    else:
        parts += _some_heads(snapshot.pipelines, canvas, selected, most)
    shown, stopped = parted(snapshot.workers)
    if shown:
        parts += [Text(), _workers(shown, snapshot, canvas)]
    if stopped:
        parts.append(Text(stopped_line(stopped), style="dim"))
    if snapshot.failures:
        parts += [Text(), *(_failure(row, canvas) for row in snapshot.failures[:3])]
    return parts


def _some_heads(
    pipelines: Sequence[PipelineState], canvas: Canvas, selected: str | None, most: int
) -> list[Text]:
    names = [each.name for each in pipelines]
    at = names.index(selected) if selected in names else 0
    first = max(0, min(at - most // 2, len(names) - most))
    lines = [_head(each, canvas, selected) for each in pipelines[first : first + most]]
    left = len(names) - len(lines)
    return [*lines, Text(f"and {count(left, 'other pipeline')}", style="dim")] if left else lines


def _head(pipeline: PipelineState, canvas: Canvas, selected: str | None) -> Text:
    mark = "" if selected is None else "> " if pipeline.name == selected else "  "
    name = mark + _cut(printable(pipeline.name), min(MOST_NAME, canvas.width // 3))
    outlook = words.outlook(pipeline, canvas.no_worker)
    percent = f"{pipeline.row['percent']:5.1f} %"
    cells = min(canvas.width - cell_len(name) - len(percent) - len(outlook) - 5, 24)
    line = Text.assemble(
        (name, "bold"),
        "  ",
        (f"{_bar(float(pipeline.row['percent']), cells, canvas)} " if cells > 3 else "", "green"),
        f"{percent}  ",
        (outlook, OUTLOOK_STYLES.get(outlook, "bold")),
    )
    line.truncate(canvas.width, overflow="ellipsis")
    return line


def _facts(pipeline: PipelineState, canvas: Canvas) -> Iterator[Text]:
    row = pipeline.row
    facts = [
        Text(fact, style="yellow" if " dead" in fact else "") for fact in words.facts(pipeline)
    ]
    if row["pending"] and row["live_workers"] and pipeline.pace:
        speed = Text(f"{words.rate(pipeline.pace.records_per_second)} records/s")
        speed.append(f" {_spark(pipeline.minutes, canvas)}".rstrip(), style="dim")
        facts.insert(1, speed)
    if row["pending"] or row["total"]:
        yield from _wrapped(facts, canvas.width, indent=2)


def _wrapped(parts: Sequence[Text], width: int, *, indent: int) -> Iterator[Text]:
    """Join `parts` by dots into lines of at most `width` columns, broken between parts."""
    line = Text(" " * indent)
    for part in parts:
        if line.cell_len > indent and line.cell_len + 3 + part.cell_len > width:
            yield line
            line = Text(" " * indent)
        if line.cell_len > indent:
            line.append(" · ", style="dim")
        line.append_text(part)
        line.truncate(width, overflow="ellipsis")
    yield line


def _bar(percent: float, cells: int, canvas: Canvas) -> str:
    # Never full before it is.
    full = int(cells * percent / 100)
    on, off = ("#", ".") if canvas.is_ascii else ("█", "░")
    return on * full + off * (cells - full)


def _spark(minutes: Sequence[int], canvas: Canvas, most_columns: int = MOST_COLUMNS) -> str:
    """Return a column for some minutes each, as high as there were records; nothing in ASCII."""
    if canvas.is_ascii or not any(minutes):
        return ""
    per_column = max(1, len(minutes) // most_columns)
    sums = [
        sum(minutes[start : start + per_column]) for start in range(0, len(minutes), per_column)
    ]
    most = max(sums)
    drawn = "".join(COLUMNS[min(7, each * 8 // (most + 1))] if each else " " for each in sums)
    return drawn.lstrip()


@dataclass(frozen=True)
class _Column:
    """A column of the table of workers: its title, what is in it, whether that is a number.

    Where there is no room for all, the one of the highest `rank` goes first, and one of 0 never.
    """

    title: str
    cell: Callable[[WorkerState], Text | str]
    is_number: bool = True
    rank: int = 0

    def width(self, workers: Sequence[WorkerState]) -> int:
        """Return how many cells it takes to show it for `workers`."""
        return max(map(cell_len, (self.title, *(str(self.cell(each)) for each in workers))))


# What a table has between two columns.
GAP = 2


def _workers(workers: Sequence[WorkerState], snapshot: Snapshot, canvas: Canvas) -> Table:
    columns = _fitting(_worker_columns(snapshot, canvas), workers, canvas.width)
    table = plain_table(
        [each.title for each in columns if not each.is_number],
        [each.title for each in columns if each.is_number],
    )
    for worker in workers:
        table.add_row(*(each.cell(worker) for each in columns))
    return table


def _fitting(
    columns: Sequence[_Column], workers: Sequence[WorkerState], width: int
) -> Sequence[_Column]:
    """Return as many of the columns as there is room for: a cell that is folded is hard to read."""
    widths = {each: each.width(workers) for each in columns}
    kept = list(columns)
    while sum(widths[each] + GAP for each in kept) - GAP > width and any(x.rank for x in kept):
        kept.remove(max(kept, key=lambda each: each.rank))
    return kept


def _worker_columns(snapshot: Snapshot, canvas: Canvas) -> list[_Column]:
    """Return the columns, those of text before those of numbers."""
    return [
        _Column("Worker", lambda each: _name(each, canvas), is_number=False),
        _Column("State", lambda each: _state(each, snapshot, canvas), is_number=False),
        _Column("Device", _device, is_number=False, rank=4),
        _Column("30 min", lambda each: _minutes(each, canvas), is_number=False, rank=3),
        _Column("Records/s", _rate),
        _Column("Share", lambda each: share_of_work(each, snapshot), rank=1),
        _Column("Done", lambda each: f"{each.row['records']:,}", rank=2),
        _Column("Memory", lambda each: size(each.row["memory_bytes"]), rank=5),
        _Column("Commit", _last_commit),
    ]


def _name(worker: WorkerState, canvas: Canvas) -> str:
    return _cut(printable(words.worker_name(worker.row)), canvas.width // 3)


def _device(worker: WorkerState) -> str:
    return f"{worker.row['device']} {worker.row['precision']}"


def _minutes(worker: WorkerState, canvas: Canvas) -> Text:
    return Text(_spark(worker.minutes, canvas, WORKER_COLUMNS), style="dim")


def _rate(worker: WorkerState) -> str:
    return words.rate(worker.pace.records_per_second if worker.pace and worker.is_live else 0)


def _state(worker: WorkerState, snapshot: Snapshot, canvas: Canvas) -> Text:
    state = words.worker_state(worker, snapshot.now)
    shown = state if canvas.is_ascii else f"{words.sign(state)} {state}"
    return Text(shown, style=STATE_STYLES.get(state.split()[0], ""))


def _last_commit(worker: WorkerState) -> str:
    ago = worker.commit_seconds_ago
    return "–" if ago is None else " ".join(duration(ago).split()[:2])


def _failure(row: Row, canvas: Canvas) -> Text:
    number = f"{row['failures']:,} dead"
    example = f"  (e.g. {printable(row['example_key'], 40)})"
    room = canvas.width - cell_len(number) - cell_len(example) - 2
    error = Text(printable(row["error"], MOST_DETAIL))
    error.truncate(max(room, canvas.width // 3), overflow="ellipsis")
    text = Text.assemble((number, "yellow"), "  ", error, (example, "dim"))
    text.truncate(canvas.width, overflow="ellipsis")
    return text


def failures(snapshot: Snapshot, canvas: Canvas) -> list[Text]:
    """Return the dead letters by their errors, numbered, with the whole of each error."""
    if not snapshot.failures:
        return [Text("no dead letters")]
    lines = [Text("Dead letters", style="bold"), Text()]
    for number, row in enumerate(snapshot.failures, start=1):
        sign = f"{number}" if number < 10 else " "
        lines.append(
            Text.assemble(
                (f"{sign} ", "bold"),
                (f"{row['failures']:,}", "yellow"),
                f" {printable(row['pipeline'])}: {printable(row['error'], MOST_DETAIL)}",
                (f" (e.g. {printable(row['example_key'], 40)})", "dim"),
            )
        )
    return lines


def events(snapshot: Snapshot, canvas: Canvas, most: int) -> list[Text]:
    """Return the newest events, a line each."""
    lines = []
    for row in snapshot.events[:most]:
        when = f"{row['happened_at'].astimezone():%H:%M}"
        line = Text.assemble((when, "dim"), f" {printable(words.event(row), MOST_DETAIL)}")
        line.truncate(canvas.width, overflow="ellipsis")
        lines.append(line)
    return lines


def _cut(text: str, cells: int) -> str:
    return text if cell_len(text) <= cells else f"{text[: max(cells - 1, 1)]}…"
