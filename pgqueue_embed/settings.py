"""Settings of a pipeline and of a worker, as plain values."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

from pgqueue_embed.errors import UsageError

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"

# PostgreSQL cuts longer identifiers silently.
MAX_IDENTIFIER_BYTES = 63

# One name as a person writes it: in double quotes, or without any quote or dot.
IDENTIFIER = r'"(?:[^"]|"")*"|[^".]+'


@dataclass(frozen=True, kw_only=True)
class TargetColumns:
    """The name of each column of a target table, by its meaning."""

    id: str = "id"
    fulltext_id: str = "fulltext_id"
    chunk_id: str = "chunk_id"
    chunk_index: str = "chunk_index"
    text_chunk: str = "text_chunk"
    start_char: str = "start_char"
    end_char: str = "end_char"
    tokens: str = "tokens"
    embedding: str = "embedding"
    created_at: str = "created_at"

    def __post_init__(self) -> None:
        names = list(asdict(self).values())
        for name in names:
            check_identifier(name)
        for name in names:
            if names.count(name) > 1:
                raise UsageError(f"the target table would have two columns named '{name}'")

    def renamed(self, names: dict[str, str]) -> TargetColumns:
        """Return the same columns with those in `names` (meaning to name) called otherwise.

        Raises UsageError for a meaning that there is not, or a name that cannot be.
        """
        known = [each.name for each in fields(self)]
        for meaning in names:
            if meaning not in known:
                raise UsageError(f"unknown target column '{meaning}'; there are {', '.join(known)}")
        return replace(self, **names)


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


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One row of pgembed.pipelines."""

    id: int
    name: str
    state: str
    source: Table
    id_field: str
    id_type: str
    text_field: str
    target: Table
    columns: TargetColumns
    vector_type: str
    dimensions: int
    model: str
    model_revision: str | None
    model_fingerprint: str
    model_files: dict[str, str] = field(repr=False)
    chunk_tokens: int
    overlap_tokens: int
    max_attempts: int
    generation: int


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
        if self.lease_seconds < 1:
            raise UsageError(f"--lease {self.lease_seconds:g}: give at least 1 second")
        if self.max_records is not None and self.max_records < 1:
            raise UsageError(f"--max-records {self.max_records}: give at least 1")

    def to_json(self) -> dict[str, Any]:
        """Return the settings as values that JSON can carry."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WorkerSettings:
        """Return the settings that `to_json` gave."""
        return cls(**{**values, "pipelines": tuple(values["pipelines"])})


def check_identifier(name: str) -> None:
    """Raise UsageError unless PostgreSQL can have a table or column of this name."""
    if not name or "\x00" in name:
        raise UsageError("a table or column name is empty or holds a NUL character")
    if len(name.encode()) > MAX_IDENTIFIER_BYTES:
        raise UsageError(
            f"the name '{name}' is longer than PostgreSQL's {MAX_IDENTIFIER_BYTES} bytes"
        )
    if "%" in name:
        # psycopg would take it for a placeholder in every statement that has the name in it.
        raise UsageError(f"the name '{name}' holds a %; rename it, or make a view without it")


def parse_table(text: str, default_schema: str) -> Table:
    """Return the table that `text` names: ``table``, ``schema.table`` or ``"a.b"."c"``.

    Raises UsageError for a name that PostgreSQL cannot have.
    """
    parts = _split_identifiers(text)
    if len(parts) > 2:
        raise UsageError(f"'{text}' is not a table name; write table or schema.table")
    return Table(schema=parts[0] if len(parts) == 2 else default_schema, name=parts[-1])


def _split_identifiers(text: str) -> list[str]:
    """Split at the dots outside double quotes; a doubled quote inside quotes stands for one."""
    if not re.fullmatch(rf"(?:{IDENTIFIER})(?:\.(?:{IDENTIFIER}))*", text):
        raise UsageError(f"'{text}' is not a table name; write table or schema.table")
    return [_unquoted(part) for part in re.findall(IDENTIFIER, text)]


def _unquoted(part: str) -> str:
    return part[1:-1].replace('""', '"') if part.startswith('"') else part
