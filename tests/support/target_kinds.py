"""The kinds of target that a pipeline may have, each with a source that suits it.

What is promised of one is promised of all: tests of the promise run over `TARGET_KINDS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from psycopg import sql

from pgqueue_embed.chunking import Chunker
from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.pipeline.pipeline import Pipeline
from tests.support.columns import whole_chunker
from tests.support.fakes import fake_chunker, unit_vector
from tests.support.oracle import assert_converged
from tests.support.pipelines import REPORTS, make_pipeline

# The key is `id`, of two columns with `tenant`, which is the same for all records.
SOURCE = """
create table reports (
    tenant integer not null default 7,
    id bigint not null,
    body text,
    kind text not null default 'injury',
    primary key ({key})
)
"""


# The view of a target table that stores no texts.
WITH_TEXTS = sql.Identifier("public", "reports_chunks_chunks")

# The fields by which the column `kind` gets into what is stored.
READS_KIND = ("copy_columns", "template", "chunk_template")


@dataclass(frozen=True, kw_only=True)
class TargetKind:
    """One kind of target: the fields of its PipelineSpec, and what they mean for its vectors.

    With `whole`, a document is one chunk.
    """

    name: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    id_fields: tuple[str, ...] = ("id",)
    whole: bool = False

    def make(self, connection: Connection) -> Pipeline:
        """Create the source `reports`, empty, and the pipeline `reports`."""
        connection.execute(SOURCE.format(key=", ".join(self.id_fields)))
        return make_pipeline(connection, REPORTS, id_fields=self.id_fields, **self.fields)

    @property
    def depends_on_kind(self) -> bool:
        """Whether a record is to be written again where its column `kind` has changed."""
        return any("kind" in str(self.fields.get(name)) for name in READS_KIND)

    def ids_with_vectors(self, pipeline: Pipeline) -> sql.Composed:
        """Return the query for the ids of the records that have vectors."""
        columns = pipeline.spec.columns
        if pipeline.spec.into_column is not None:
            query = sql.SQL("select id from reports where {} is not null")
            return query.format(sql.Identifier(columns.embedding))
        query = sql.SQL("select distinct {} from {}")
        return query.format(sql.Identifier(columns.fulltext_id[-1]), pipeline.target.identifier)

    def removal(self, pipeline: Pipeline) -> sql.Composed:
        """Return the statement by which somebody removes the vectors of a record `id`."""
        columns = pipeline.spec.columns
        if pipeline.spec.into_column is not None:
            statement = sql.SQL("update reports set {} = null where id = %(id)s")
            return statement.format(sql.Identifier(columns.embedding))
        statement = sql.SQL("delete from {} where {} = %(id)s")
        return statement.format(pipeline.target.identifier, sql.Identifier(columns.fulltext_id[-1]))

    @property
    def chunker(self) -> Chunker:
        """What cuts its documents."""
        return whole_chunker() if self.whole else fake_chunker()


TARGET_KINDS = (
    TargetKind(name="table"),
    TargetKind(
        name="column",
        whole=True,
        fields={
            "target": Table(schema="public", name="reports"),
            "into_column": "embedding",
            "chunking": "none",
            "chunk_tokens": 200,
            "overlap_tokens": 0,
        },
    ),
    TargetKind(
        name="without text and ids",
        fields={"text": False, "ids": False, "copy_columns": ("kind",)},
    ),
    TargetKind(name="foreign key", fields={"foreign_key": True}),
    TargetKind(name="copied columns", fields={"copy_columns": ("kind",)}),
    TargetKind(name="view, partitioned", fields={"view": True, "partition_by": "hash:3"}),
    TargetKind(name="halfvec, truncated", fields={"vector_type": "halfvec", "truncate_dim": 3}),
    TargetKind(
        name="partitioned by range",
        id_fields=("tenant", "id"),
        fields={"partition_by": "range:id:2,4,6", "foreign_key": True},
    ),
    TargetKind(name="composite key", id_fields=("tenant", "id")),
    TargetKind(
        name="composite foreign key", id_fields=("tenant", "id"), fields={"foreign_key": True}
    ),
    TargetKind(name="template", fields={"template": "$kind: $body"}),
    TargetKind(name="chunk template", fields={"chunk_template": "<$kind>: $chunk"}),
    TargetKind(name="condition", fields={"where": "kind <> 'other'"}),
    TargetKind(
        name="all at once",
        id_fields=("tenant", "id"),
        fields={
            "copy_columns": ("kind",),
            "foreign_key": True,
            "view": True,
            "truncate_dim": 5,
            "where": "kind <> 'other'",
        },
    ),
    TargetKind(
        name="all at once, without text",
        id_fields=("tenant", "id"),
        fields={
            "text": False,
            "copy_columns": ("kind",),
            "foreign_key": True,
            "view": True,
            "partition_by": "hash:2",
            "chunk_template": "<$kind>: $chunk",
        },
    ),
)


def assert_true(connection: Connection, pipeline: Pipeline) -> None:
    """Fail unless the oracle is content and each vector and copy is that of what stands beside."""
    assert_converged(connection, pipeline.name)
    for text, kind, copied, vector in connection.execute(_stored(pipeline)):
        read = text.strip() if pipeline.spec.chunking == "none" else text
        if pipeline.spec.chunk_template is not None:
            read = pipeline.spec.chunk_template.replace("$kind", kind).replace("$chunk", text)
        wanted = unit_vector(read)[: pipeline.dimensions]
        stored = np.array([float(each) for each in vector.strip("[]").split(",")])
        assert np.allclose(stored, wanted / np.linalg.norm(wanted), atol=2e-3), text
        assert copied in (kind, None)


def _stored(pipeline: Pipeline) -> sql.Composed:
    """Return the query for text, kind of the record, copied kind and vector of every chunk."""
    columns = pipeline.spec.columns
    if pipeline.spec.into_column is not None:
        query = "select body, kind, null, {}::text from reports where {} is not null"
        embedding = sql.Identifier(columns.embedding)
        return sql.SQL(query).format(embedding, embedding)
    query = """
        select {text}, source.kind, {copied}, {embedding}::text
        from {target} as target
        join reports as source on source.id::text = target.{key}::text
    """
    return sql.SQL(query).format(
        text=sql.Identifier(columns.text_chunk),
        copied=sql.SQL("target.kind" if pipeline.spec.copy_columns else "null"),
        embedding=sql.Identifier(columns.embedding),
        target=pipeline.target.identifier if pipeline.spec.text else WITH_TEXTS,
        key=sql.Identifier(columns.fulltext_id[-1]),
    )
