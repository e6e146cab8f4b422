"""Progress of the build of an index, looked up beside it: for `index` and `alter --switch`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pgqueue_embed.quantities import duration

if TYPE_CHECKING:
    from pgqueue_embed.pipeline.pipeline import Pipeline
    from pgqueue_embed.vector_search.index_build import BuildProgress

POLL_SECONDS = 0.5


@contextmanager
def watched_build(
    conninfo: str, pipeline: Pipeline, show: Callable[[BuildProgress], None]
) -> Iterator[None]:
    """Call `show` in a thread of its own while something builds an index on the target table.

    Where that is no terminal's, a line a minute says it on standard error.
    """
    from pgqueue_embed.cli.minute_lines import MinuteLines
    from pgqueue_embed.vector_search.build_watch import watched

    lines = MinuteLines()

    def show_both(found: BuildProgress, seconds_left: float | None) -> None:
        ends = "" if seconds_left is None else f", ends in {duration(max(1.0, seconds_left))}"
        lines.say(f"{sentence(found)}{share_done(found)}{ends}")
        show(found)

    with watched(conninfo, pipeline, show_both, every_seconds=POLL_SECONDS):
        yield


def share_done(found: BuildProgress) -> str:
    """Return how much of the phase is done, to stand behind its name, if it says so."""
    return f": {100 * found.done // found.total} %" if found.total else ""


def sentence(found: BuildProgress) -> str:
    """Return what the build does now."""
    part = f"part {found.part} of {found.parts}: " if found.parts > 1 else ""
    if found.waits_for_pid is not None:
        return f"{part}{found.phase} (process {found.waits_for_pid})"
    phase = found.phase.removeprefix("building index: ").removeprefix("index validation: ")
    return part + phase
