"""Generations of a pipeline: the one that searches use, and the next one beside it.

Whatever the one settles while it has a next one is queued for that in the same commit. So with
nothing of this waiting, the next generation has seen each record that it knows at least as late as
the old one has. A claim that looks for the next one just before it is made has re-checked its
records before that, and all that the next one knows of them is newer.
"""

from __future__ import annotations

from collections.abc import Sequence

from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.catalog import load_pipelines
from pgqueue_embed.pipeline.pipeline import Pipeline


def successor_of(connection: Connection, pipeline: Pipeline) -> Pipeline | None:
    """Return the next generation of `pipeline`, or None when there is none."""
    found = [each for each in load_pipelines(connection) if each.successor_of == pipeline.id]
    return found[0] if found else None


def is_next(connection: Connection, pipeline: Pipeline) -> bool:
    """Return whether `pipeline` is the next generation of another one that is still there."""
    return any(each.id == pipeline.successor_of for each in load_pipelines(connection))


def with_successors(connection: Connection, names: Sequence[str]) -> list[Pipeline]:
    """Return the pipelines called `names`, or all, and the next generations of them.

    Raises NotFound for an unknown name.
    """
    named = load_pipelines(connection, names)
    ids = {each.id for each in named}
    others = [each for each in load_pipelines(connection) if each.successor_of in ids]
    return [*named, *(each for each in others if each.id not in ids)]
