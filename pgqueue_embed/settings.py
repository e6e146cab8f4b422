"""Settings of a pipeline and of a worker, as plain values."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from psycopg import sql

from pgqueue_embed.columns import Column
from pgqueue_embed.document import Document
from pgqueue_embed.errors import UsageError
from pgqueue_embed.identifiers import check_identifier, split_columns, split_qualified
from pgqueue_embed.key import Key

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True)
class TargetColumns:
    """The name of each column of a target table, by its meaning.

    `fulltext_id` is the source key, in a column of its own for each of the key's columns.
    """

    id: str = "id"
    fulltext_id: tuple[str, ...] = ("fulltext_id",)
    chunk_id: str = "chunk_id"
    chunk_index: str = "chunk_index"
    text_chunk: str = "text_chunk"
    start_char: str = "start_char"
    end_char: str = "end_char"
    tokens: str = "tokens"
    embedding: str = "embedding"
    created_at: str = "created_at"

    def __post_init__(self) -> None:
        names = list(self.names())
        for name in names:
            check_identifier(name)
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"the target table would have two columns named '{name}'")

    def names(self) -> Iterator[str]:
        """Yield the names of all columns, in the order of the table."""
        for name in vars(self).values():
            yield from name if isinstance(name, tuple) else (name,)

    def renamed(self, names: dict[str, str]) -> TargetColumns:
        """Return the same columns with those in `names` (meaning to name) called otherwise.

        A name of `fulltext_id` may be a list, ``tenant,report``. Raises UsageError for a meaning
        that there is not, or a name that cannot be.
        """
        known = [each.name for each in fields(self)]
        for meaning in names:
            if meaning not in known:
                raise UsageError(f"unknown target column '{meaning}'; there are {', '.join(known)}")
        values: dict[str, Any] = dict(names)
        if "fulltext_id" in names:
            values["fulltext_id"] = split_columns(names["fulltext_id"])
        return replace(self, **values)

    def for_key(self, key_columns: Sequence[str]) -> TargetColumns:
        """Return the columns with one for each of `key_columns`: of several, ``fulltext_<name>``.

        Raises UsageError when names were given for another number of columns.
        """
        given = self.fulltext_id
        if len(key_columns) == len(given):
            return self
        if given != ("fulltext_id",):
            raise UsageError(
                f"the key has {len(key_columns)} columns ({', '.join(key_columns)}) and"
                f" --target-column fulltext_id names {len(given)}; name as many"
            )
        return replace(self, fulltext_id=tuple(f"fulltext_{name}" for name in key_columns))


@dataclass(frozen=True, kw_only=True)
class Table:
    """The name of a table or view."""

    schema: str
    name: str

    def __post_init__(self) -> None:
        check_identifier(self.schema)
        check_identifier(self.name)

    def __str__(self) -> str:
        return f"{self.schema}.{self.name}"

    @property
    def identifier(self) -> sql.Identifier:
        """The name as part of an SQL statement."""
        return sql.Identifier(self.schema, self.name)

    @property
    def quoted(self) -> str:
        """The name as text that a cast to regclass reads."""
        return self.identifier.as_string()


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One row of pgembed.pipelines.

    `where` is SQL over the source: the records are the rows for which it is true. `successor_of`
    is the id of the pipeline that this one is, or was, the next generation of.
    """

    id: int
    name: str
    state: str
    source: Table
    key: Key
    document: Document
    where: str | None
    target: Table
    columns: TargetColumns
    vector_type: str
    dimensions: int
    model: str
    model_revision: str | None
    model_fingerprint: str
    model_files: dict[str, str] = field(repr=False)
    chunking: str
    chunk_tokens: int
    overlap_tokens: int
    max_attempts: int
    priority: int
    generation: int
    successor_of: int | None = None

    @property
    def source_columns(self) -> tuple[Column, ...]:
        """All columns of the source that are read, each once; `where` may use any others."""
        columns = (*self.key.columns, *self.document.columns)
        return tuple({column.name: column for column in columns}.values())


# A day: ten leases, in milliseconds, are a timeout that PostgreSQL takes.
MAX_LEASE_SECONDS = 86_400


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """How one worker process works; see `pgembed work --help`.

    `last_model` is the fingerprint of the model that the process before this one worked with.
    """

    concurrency: int = 2
    drain: bool = False
    pipelines: tuple[str, ...] = ()
    device: str = "auto"
    precision: str = "auto"
    max_records: int | None = None
    model_path: str | None = None
    lease_seconds: float = 60.0
    claim_seconds: float = 8.0
    retry_delay_seconds: float = 5.0
    cache_megabytes: int = 256
    memory_limit_megabytes: int | None = None
    last_model: str | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= 64:
            raise UsageError(f"--concurrency {self.concurrency}: give a number from 1 to 64")
        if not 1 <= self.lease_seconds <= MAX_LEASE_SECONDS:
            raise UsageError(
                f"--lease {self.lease_seconds:g}: give 1 to {MAX_LEASE_SECONDS:,} seconds"
            )
        if self.max_records is not None and self.max_records < 1:
            raise UsageError(f"--max-records {self.max_records}: give at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can carry."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WorkerSettings:
        """Return the settings that `to_json` gave."""
        return cls(**{**values, "pipelines": tuple(values["pipelines"])})


def parse_table(text: str, default_schema: str) -> Table:
    """Return the table that `text` names: ``table``, ``schema.table`` or ``"a.b"."c"``.

    Raises UsageError for a name that PostgreSQL cannot have.
    """
    parts = split_qualified(text)
    return Table(schema=parts[0] if len(parts) == 2 else default_schema, name=parts[-1])
