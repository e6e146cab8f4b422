"""A pipeline as it was made: what was asked for, and what was found."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from pgqueue_embed.db.names import Table
from pgqueue_embed.pipeline.columns import Column
from pgqueue_embed.pipeline.document import Document
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.spec import PipelineSpec

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """One row of pgembed.pipelines: what was asked for, and what was found when it was made.

    `spec` are its settings, as they were checked then. `key` and `document` know the types of the
    source's columns. `target_is_made` tells that the target was made with the pipeline, and may be
    dropped with it. `successor_of` is the id of the pipeline that this one is, or was, the next
    generation of.
    """

    id: int
    state: str
    spec: PipelineSpec
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

    @property
    def name(self) -> str:
        """Its name, unique in the database."""
        return self.spec.name

    @property
    def source(self) -> Table:
        """The table or view with the text."""
        return self.spec.source

    @property
    def target(self) -> Table:
        """The table that has the vectors: its own, or the source."""
        return self.spec.target

    @property
    def model_key(self) -> str:
        """A text that is the same for all pipelines whose documents one loaded model reads.

        It stands for the files of the model and for how documents are read. Queries are read by
        whoever searches.
        """
        use = {
            "document_prompt": self.spec.document_prompt,
            "control_tokens": self.spec.control_tokens,
            "pooling": self.spec.pooling,
        }
        if not any(value for value in use.values()):
            return self.model_fingerprint
        return f"{self.model_fingerprint} {json.dumps(use)}"

    @property
    def source_columns(self) -> tuple[Column, ...]:
        """All columns of the source that are read, each once; `where` may use any others."""
        columns = (*self.key.columns, *self.document.columns, *self.document.copied)
        return tuple({column.name: column for column in columns}.values())
