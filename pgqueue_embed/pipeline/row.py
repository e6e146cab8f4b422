"""A pipeline as a row of pgembed.pipelines: each setting in a column of its name, but for a few."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from psycopg.types.json import Jsonb

from pgqueue_embed.db.names import Table
from pgqueue_embed.pipeline.columns import Column
from pgqueue_embed.pipeline.document import Document, Recipe
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.model_identity import ModelIdentity, kept_dimensions
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.spec import PipelineSpec
from pgqueue_embed.pipeline.target_columns import TargetColumns

# What does not fit into a column of its own name.
APART = {
    "source": ("source_schema", "source_table"),
    "target": ("target_schema", "target_table"),
    "id_fields": ("key_columns",),
    "spec": (),
    "key": (),
    "document": ("document_columns",),
    "copy_columns": ("copied_columns",),
    "where": ("where_condition",),
    "columns": ("target_columns",),
}
COLUMNS = tuple(
    column
    for each in (*fields(PipelineSpec), *fields(Pipeline))
    for column in APART.get(each.name, (each.name,))
)
# Those of the settings that do.
PLAIN_SETTINGS = tuple(each.name for each in fields(PipelineSpec) if each.name not in APART)


@dataclass(frozen=True, kw_only=True)
class SourceShape:
    """What a source was found to hold: the key of its records, and their document."""

    key: Key
    document: Document


def to_row(spec: PipelineSpec, shape: SourceShape, model: ModelIdentity) -> dict[str, Any]:
    """Return the row of a new pipeline, by column; what it leaves out has a default."""
    return {
        **{name: _stored(getattr(spec, name)) for name in PLAIN_SETTINGS},
        "source_schema": spec.source.schema,
        "source_table": spec.source.name,
        "key_columns": columns_json(shape.key.columns),
        "document_columns": columns_json(shape.document.columns),
        "copied_columns": columns_json(shape.document.copied),
        "where_condition": spec.where,
        "target_schema": spec.target.schema,
        "target_table": spec.target.name,
        "target_columns": Jsonb(asdict(spec.columns)),
        "dimensions": kept_dimensions(spec, model),
        "model": model.name,
        "model_revision": model.revision,
        "model_fingerprint": model.fingerprint,
        "model_files": Jsonb(model.files),
    }


def unmade(spec: PipelineSpec, shape: SourceShape, model: ModelIdentity) -> Pipeline:
    """Return a pipeline as it would be, to read its tables by; there is no such row yet."""
    return Pipeline(
        spec=spec,
        id=0,
        state="active",
        key=shape.key,
        document=shape.document,
        target_is_made=True,
        dimensions=kept_dimensions(spec, model),
        model=model.name,
        model_revision=model.revision,
        model_fingerprint=model.fingerprint,
        model_files=model.files,
        generation=1,
    )


def from_row(row: Sequence[Any]) -> Pipeline:
    """Return the pipeline of a row with all of COLUMNS."""
    values = {column: _loaded(value) for column, value in zip(COLUMNS, row, strict=True)}
    recipe = Recipe(
        text_fields=values["text_fields"],
        template=values["template"],
        chunk_template=values["chunk_template"],
    )
    key = Key(_columns(values.pop("key_columns")))
    document = Document(
        recipe=recipe,
        columns=_columns(values.pop("document_columns")),
        copied=_columns(values.pop("copied_columns")),
    )
    names = {meaning: _loaded(name) for meaning, name in values.pop("target_columns").items()}
    spec = PipelineSpec(
        source=Table(schema=values.pop("source_schema"), name=values.pop("source_table")),
        id_fields=key.names,
        copy_columns=tuple(column.name for column in document.copied),
        where=values.pop("where_condition"),
        target=Table(schema=values.pop("target_schema"), name=values.pop("target_table")),
        columns=TargetColumns(**names),
        **{name: values.pop(name) for name in PLAIN_SETTINGS},
    )
    return Pipeline(spec=spec, key=key, document=document, **values)


def _stored(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _loaded(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def columns_json(columns: Sequence[Column]) -> Jsonb:
    """Return columns with their types as the row of a pipeline has them."""
    return Jsonb([{"name": column.name, "type": column.type} for column in columns])


def _columns(stored: Sequence[dict[str, str]]) -> tuple[Column, ...]:
    return tuple(Column(**column) for column in stored)
