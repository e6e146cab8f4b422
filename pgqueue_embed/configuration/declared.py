"""Pipelines as a configuration file has them: keys and values, named like the options of create."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pgqueue_embed.configuration import Place
from pgqueue_embed.configuration.values import Value
from pgqueue_embed.db.names import Table, join_columns, join_qualified
from pgqueue_embed.db.session import Connection
from pgqueue_embed.embedding import full_name
from pgqueue_embed.pipeline.option import options_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.target_columns import TargetColumns
from pgqueue_embed.queue.capture import is_on

# The key of what is no setting of the pipeline, but triggers on its source.
SYNC = "sync"

# What says where a pipeline is; its next generation is elsewhere until it takes its place.
PLACE = ("name", "target", "into_column", "view")


@dataclass(frozen=True, kw_only=True)
class Declared:
    """A pipeline that a file declares; `place` is where, for errors.

    With `sync`, changes of its source are captured.
    """

    spec: PipelineSpec
    model: str
    sync: bool
    place: Place

    @property
    def values(self) -> dict[str, Value]:
        """All settings by their key, those that the file leaves to their default too."""
        return written(self.spec, self.model, sync=self.sync)


def declared_settings(
    connection: Connection, pipeline: Pipeline, generation: Pipeline | None = None
) -> dict[str, Value]:
    """Return the settings of a pipeline, or what its next `generation` makes them, by key."""
    generation = generation or pipeline
    place = {each: getattr(pipeline.spec, each) for each in PLACE}
    spec = replace(generation.spec, **place)
    return written(spec, generation.model, sync=is_on(connection, pipeline))


def written(spec: PipelineSpec, model: str, *, sync: bool) -> dict[str, Value]:
    """Return the settings of a pipeline as a file has them, by key; nothing for what is not set.

    Read again, they give the same pipeline.
    """
    unsaid = tuple(_following(spec))
    values = {
        each.name: _written(spec, getattr(spec, each.field))
        for each in options_of(PipelineSpec)
        if each.field not in unsaid
    }
    values |= {"model": full_name(model), SYNC: sync}
    return {key: value for key, value in values.items() if value is not None}


def _following(spec: PipelineSpec) -> Iterator[str]:
    """Yield the settings that follow from others, and are not said."""
    if spec.chunking == "none":
        yield from ("chunk_tokens", "overlap_tokens")
    if spec.into_column is not None:
        yield from ("target", "columns")


def _written(spec: PipelineSpec, value: Any) -> Value:
    if isinstance(value, Table):
        return join_qualified(value.schema, value.name)
    if isinstance(value, TargetColumns):
        return _renamed(value, TargetColumns().for_key(spec.id_fields))
    if isinstance(value, tuple):
        return _names(value)
    return value


def _renamed(columns: TargetColumns, usual: TargetColumns) -> dict[str, Value] | None:
    """Return the columns that are not called as `usual`; None without any."""
    return {
        meaning: _names(name) if isinstance(name, tuple) else name
        for meaning, name in vars(columns).items()
        if name != getattr(usual, meaning)
    } or None


def _names(names: tuple[str, ...]) -> Value:
    """Return columns as one name or a list of names, written as an option has them."""
    quoted = [join_columns([name]) for name in names]
    return (quoted[0] if len(quoted) == 1 else quoted) if quoted else None
