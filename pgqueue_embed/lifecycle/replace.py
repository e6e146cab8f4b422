"""Moves rights, indexes, views and names from a generation to the one that replaces it."""

from __future__ import annotations

from typing import Protocol

from pgqueue_embed.db.session import Connection
from pgqueue_embed.lifecycle.replace_column import ColumnReplacement
from pgqueue_embed.lifecycle.replace_table import TableReplacement
from pgqueue_embed.pipeline.pipeline import Pipeline


class Replacement(Protocol):
    """How the target of one generation takes the place of another's."""

    def copy_rights(self, connection: Connection) -> None:
        """Let everybody do with the new target what they may do with the old one."""
        ...

    def check(self, connection: Connection) -> None:
        """Raise UsageError for what a person has added to the old target and would be lost."""
        ...

    def copy_indexes(self, connection: Connection) -> None:
        """Build what indexes the new target lacks, while both are used."""
        ...

    def exchange(self, connection: Connection) -> None:
        """Drop the old target and give its name to the new one, in a transaction that has both."""
        ...


def replacement_of(pipeline: Pipeline, successor: Pipeline) -> Replacement:
    """Return how `successor` takes the place of `pipeline`."""
    if pipeline.spec.into_column is None:
        return TableReplacement(pipeline, successor)
    return ColumnReplacement(pipeline, successor)
