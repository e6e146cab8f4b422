"""The interface of a target to the rest of the program, and the chunks written to one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from psycopg import sql

from pgqueue_embed.db.names import quoted
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.target_columns import TargetColumns

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pgqueue_embed.db.vectors import VectorCodec


@dataclass(frozen=True, kw_only=True)
class ChunkRows:
    """Chunks to write, column by column; all sequences and `vectors` have one entry a chunk.

    `document_hashes` are of the documents that the chunks are of, `start_chars` and `end_chars`
    character offsets in them. `vectors` is float32 of shape (chunks, dimensions) with rows of unit
    norm.
    """

    keys: Sequence[str]
    document_hashes: Sequence[bytes]
    chunk_indexes: Sequence[int]
    texts: Sequence[str]
    start_chars: Sequence[int]
    end_chars: Sequence[int]
    tokens: Sequence[int]
    vectors: NDArray[np.float32]


@dataclass(frozen=True)
class Right:
    """A right on a table, or on one column of it, that a worker needs; as text, as GRANT has it."""

    kind: str
    column: str | None = None

    def __str__(self) -> str:
        return self.kind if self.column is None else f"{self.kind} ({quoted(self.column)})"


class Target(Protocol):
    """A place for the vectors of one pipeline."""

    @property
    def rows(self) -> sql.Composable:
        """What to select the chunks from, to be given an alias.

        Its columns are called as TargetColumns says; all are there that a search reads. In a column
        of the source, the text of a chunk is the present one, and its vector may be older; of a
        table that stores no texts, it is null where the document has changed in that place. A
        statement with it must be executed with parameters, if only with none.
        """
        ...

    @property
    def vector_rows(self) -> sql.Composable:
        """The same without the texts, if these are not stored: it reads nothing but the target."""
        ...

    @property
    def text_query(self) -> str | None:
        """The scalar subquery that gives the text of a row ``target`` of a table without texts.

        As PostgreSQL reads it, for pgembed.chunk_rows; None for any other target.
        """
        ...

    @property
    def key_is_among(self) -> sql.Composable:
        """The condition that a row of ``{rows} as target`` is of a record of the parameter keys."""
        ...

    @property
    def written_columns(self) -> Sequence[str]:
        """The columns of the pipeline's target table that a worker reads or writes."""
        ...

    @property
    def rights(self) -> Sequence[Right]:
        """What a worker must be granted on the pipeline's target table."""
        ...

    @property
    def next_place(self) -> dict[str, Any]:
        """The settings of a pipeline whose target lies beside this one, as its next generation."""
        ...

    def check(self, connection: Connection) -> None:
        """Raise UsageError for what would keep `create` from making the target."""
        ...

    def create(
        self, connection: Connection, codec: VectorCodec, *, dimensions: int, pipeline_name: str
    ) -> bool:
        """Make the target; returns False if it was there, and is not to be dropped one day."""
        ...

    def replace(
        self,
        connection: Connection,
        codec: VectorCodec,
        keys: Sequence[str],
        portions: Iterable[ChunkRows],
    ) -> dict[str, str]:
        """Put `portions` in the place of all chunks of the records `keys`.

        Returns the keys of records that did not take theirs, with the reason. Raises what the
        server says to a bad value or a broken constraint, or RecordFault.
        """
        ...

    def clear(self, connection: Connection, keys: Sequence[str]) -> None:
        """Delete all chunks of the records `keys`."""
        ...

    def drop(self, connection: Connection) -> None:
        """Remove the target with all its vectors, if it is there."""
        ...


def column_names(columns: TargetColumns) -> dict[str, sql.Composable]:
    """Return the identifiers of a target's columns by their meaning; those of the key as a list."""
    return {
        meaning: sql.SQL(", ").join(map(sql.Identifier, name))
        if isinstance(name, tuple)
        else sql.Identifier(name)
        for meaning, name in vars(columns).items()
    }
