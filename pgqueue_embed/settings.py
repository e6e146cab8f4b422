"""Settings of a pipeline and of a worker, as plain values."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from pgqueue_embed.columns import Column
from pgqueue_embed.document import Document
from pgqueue_embed.errors import UsageError
from pgqueue_embed.key import Key
from pgqueue_embed.spec import PipelineSpec

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True)
class Pipeline(PipelineSpec):
    """One row of pgembed.pipelines: what was asked for, and what was found when it was made.

    `key` and `document` know the types of the source's columns. `target_is_made` tells that the
    target was made with the pipeline, and may be dropped with it. `successor_of` is the id of the
    pipeline that this one is, or was, the next generation of.
    """

    id: int
    state: str
    key: Key
    document: Document
    dimensions: int
    model: str
    model_revision: str | None
    model_fingerprint: str
    model_files: dict[str, str] = field(repr=False)
    generation: int
    target_is_made: bool
    successor_of: int | None = None

    def __post_init__(self) -> None:
        """Take the row as it is: it was checked when it was made."""

    @property
    def source_columns(self) -> tuple[Column, ...]:
        """All columns of the source that are read, each once; `where` may use any others."""
        columns = (*self.key.columns, *self.document.columns, *self.document.copied)
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
