"""Following the source: names and types, wherever a pipeline has noted others.

They are noted in the pipeline's row, in the columns of its target, in the views of both and in the
functions of capture. A key that becomes wider is the usual case: PostgreSQL stores larger numbers
in the source from then on, and nothing of the pipeline's could.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import psycopg
from psycopg import sql

from pgqueue_embed.db.errors import first_line
from pgqueue_embed.db.locks import in_short_waits
from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.lifecycle.follow_names import OtherNames, Renamed, present_names, renames
from pgqueue_embed.pipeline.columns import Column
from pgqueue_embed.pipeline.generations import with_successors
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.row import SourceShape, columns_json
from pgqueue_embed.queue import capture
from pgqueue_embed.source.check import check_source, types_of
from pgqueue_embed.target import View, target_of, views_of
from pgqueue_embed.untrusted.shell import command

# From narrow to wide: each holds the keys of those before it, spelled as they are.
INTEGERS = ("smallint", "integer", "bigint")


@dataclass(frozen=True, kw_only=True)
class Change:
    """A column whose type is another one than the pipeline has noted."""

    column: str
    noted: str
    present: str

    def __str__(self) -> str:
        return f"{self.column}: {self.noted} → {self.present}"


def follow_source(connection: Connection, pipeline: Pipeline) -> list[Change | Renamed]:
    """Note names and types that the source has now, all or none, and return what changed.

    Of the next generation too, if there is one. A view of the pipeline's that is gone, or reads
    another table of the source's name, is made again. All of the source is compared with the
    ledger then, by workers. Raises UsageError where nothing tells a name, where a key would be
    spelled otherwise than it is in queue and ledger, where values that were copied cannot be of the
    new type, where a user's view stands on the target's column, and as `check_source` does.
    """

    def follow() -> list[Change | Renamed]:
        changes: list[Change | Renamed] = []
        names = None
        for each in with_successors(connection, [pipeline.name]):
            names = present_names(connection, each, names)
            changes += _follow(connection, each, names)
        return list(dict.fromkeys(changes))

    return in_short_waits(connection, follow, table=pipeline.target)


def changed_types(connection: Connection, pipeline: Pipeline) -> list[Change]:
    """Return which columns of the source are of another type than the pipeline has noted.

    Raises as `check_source` does.
    """
    return changes_of(pipeline, types_of(connection, pipeline.spec))


def changes_of(noted: Pipeline, present: SourceShape) -> list[Change]:
    """Return which columns are of another type, and matter: a key that became narrower does not."""
    pairs = [
        *zip(noted.key.columns, wide_enough(noted.key, present.key).columns, strict=True),
        *zip(noted.document.columns, present.document.columns, strict=True),
        *zip(noted.document.copied, present.document.copied, strict=True),
    ]
    changes = [
        Change(column=old.name, noted=old.type, present=new.type)
        for old, new in pairs
        if old.type != new.type
    ]
    return list(dict.fromkeys(changes))


def wide_enough(noted: Key, present: Key) -> Key:
    """Return the key with its types of now, but none that holds less of what is noted already."""
    pairs = zip(noted.columns, present.columns, strict=True)
    return Key(tuple(old if _is_narrower(new, old) else new for old, new in pairs))


def _is_narrower(new: Column, old: Column) -> bool:
    both = (new.type, old.type)
    return all(each in INTEGERS for each in both) and _rank(new) < _rank(old)


def _rank(column: Column) -> int:
    return INTEGERS.index(column.type)


def _follow(connection: Connection, noted: Pipeline, names: OtherNames) -> list[Change | Renamed]:
    pipeline = names.of(noted)
    found = check_source(connection, pipeline.spec)
    present = replace(found, key=wide_enough(pipeline.key, found.key))
    changes: list[Change | Renamed] = [*renames(noted, names), *changes_of(pipeline, found)]
    if not changes:
        _make_views(connection, pipeline)
        return []
    _check_spelling(connection, pipeline, present.key)
    followed = replace(pipeline, key=present.key, document=present.document)
    if pipeline.spec.into_column is None:
        _alter_target(connection, pipeline, present)
    _make_views(connection, followed)
    _note(connection, followed)
    if capture.is_on(connection, pipeline):
        capture.install(connection, followed)
    connection.execute("select pgembed.queue_comparison(%s)", (pipeline.id,))
    return changes


def _note(connection: Connection, followed: Pipeline) -> None:
    spec = followed.spec
    values = {
        "id": followed.id,
        "source_schema": spec.source.schema,
        "source_table": spec.source.name,
        "target_schema": spec.target.schema,
        "target_table": spec.target.name,
        "text_fields": list(spec.text_fields),
        "template": spec.template,
        "chunk_template": spec.chunk_template,
        "key": columns_json(followed.key.columns),
        "document": columns_json(followed.document.columns),
        "copied": columns_json(followed.document.copied),
        "chunk_text": target_of(followed).text_query,
    }
    connection.execute(NOTE, values)


NOTE = """
update pgembed.pipelines
set source_schema = %(source_schema)s,
    source_table = %(source_table)s,
    target_schema = %(target_schema)s,
    target_table = %(target_table)s,
    text_fields = %(text_fields)s,
    template = %(template)s,
    chunk_template = %(chunk_template)s,
    key_columns = %(key)s,
    document_columns = %(document)s,
    copied_columns = %(copied)s,
    chunk_text = %(chunk_text)s
where id = %(id)s
"""

SPELLED_OTHERWISE = """
select key
from (
    select coalesce(long_key, key) from pgembed.records where pipeline_id = %(pipeline_id)s
    union all
    select unnest(keys) from pgembed.work where pipeline_id = %(pipeline_id)s
) as known (key)
where pgembed.key_text(
    case
        when cardinality(%(types)s::text[]) = 1 then array[key]
        else array(select jsonb_array_elements_text(key::jsonb))
    end,
    %(types)s::text[]
) is distinct from key
limit 1
"""


def _check_spelling(connection: Connection, pipeline: Pipeline, present: Key) -> None:
    """Raise UsageError if a key of queue or ledger is of the new type not, or spelled otherwise."""
    pairs = list(zip(pipeline.key.columns, present.columns, strict=True))
    if all(old.type == new.type or _is_wider(new, old) for old, new in pairs):
        return
    types = [column.type for column in present.columns]
    try:
        row = connection.execute(
            SPELLED_OTHERWISE, {"pipeline_id": pipeline.id, "types": types}
        ).fetchone()
        why = None if row is None else f"key {row[0]} would be spelled otherwise"
    except psycopg.DataError as error:
        why = first_line(error)
    if why is not None:
        raise UsageError(
            f"the key of {pipeline.name} was of {_types(pipeline.key)} and is of {_types(present)}"
            f" now, which its ledger cannot follow ({why}); give {pipeline.source} its former type,"
            f" or make it anew: {command('drop', pipeline.name)}, and create"
        )


def _is_wider(new: Column, old: Column) -> bool:
    return _is_narrower(old, new)


def _types(key: Key) -> str:
    return ", ".join(column.type for column in key.columns)


# What PostgreSQL says of a column that it cannot give another type.
KEPT = (
    psycopg.errors.FeatureNotSupported,
    psycopg.errors.DependentObjectsStillExist,
    psycopg.errors.InsufficientPrivilege,
    psycopg.errors.DatatypeMismatch,
    psycopg.errors.CannotCoerce,
    psycopg.errors.InvalidForeignKey,
    psycopg.DataError,
)


def _alter_target(connection: Connection, pipeline: Pipeline, present: SourceShape) -> None:
    """Give the target's columns the new types: PostgreSQL writes the table and its indexes anew."""
    alterations = [
        sql.SQL("alter column {name} type {type} using {name}::{type}").format(
            name=sql.Identifier(name), type=sql.SQL(type_)
        )
        for name, type_ in _altered(pipeline, present)
    ]
    alter = sql.SQL("alter table {} {}").format(
        pipeline.target.identifier, sql.SQL(", ").join(alterations)
    )
    try:
        if alterations:
            connection.execute(alter)
    except psycopg.errors.InvalidTableDefinition:
        # It is parted by its key.
        raise UsageError(
            f"{pipeline.target} is parted by its key, whose type PostgreSQL keeps; give"
            f" {pipeline.source} its former type, or make a next generation with the new one, and"
            f" other parts or none: {command('alter', pipeline.name, '--partition-by', '')}"
        ) from None
    except KEPT as error:
        own = views_of(pipeline.spec, pipeline.key, pipeline.document)
        views = ", ".join(view.table.quoted for view in own)
        own_too = f" (drop view {views}: the pipeline's own are made again)" if own else ""
        raise UsageError(
            f"{pipeline.target} cannot follow {pipeline.source}: {first_line(error)}; drop what is"
            f" in the way{own_too}"
        ) from None


def _make_views(connection: Connection, pipeline: Pipeline) -> None:
    """Make the views that a person had to drop before the source could be altered.

    One that is there reads what it has read before, under whichever name: another table, maybe.
    """
    for view in views_of(pipeline.spec, pipeline.key, pipeline.document):
        if not view.is_there(connection):
            view.create(connection)
        elif view.is_made(connection) and not view.reads_source(connection):
            _replace(connection, view)
        elif view.is_made(connection):
            view.describe(connection)


def _replace(connection: Connection, view: View) -> None:
    try:
        view.create(connection)
    except psycopg.errors.InvalidTableDefinition as error:
        raise UsageError(
            f"the view {view.table} reads another table than {view.source}, and cannot be changed:"
            f" {first_line(error)}; drop it, and it is made again"
        ) from None


def _altered(pipeline: Pipeline, present: SourceShape) -> Iterator[tuple[str, str]]:
    """Yield the columns of the target that are to be of another type, with that type."""
    keys = zip(
        pipeline.spec.columns.fulltext_id, pipeline.key.columns, present.key.columns, strict=True
    )
    for name, old, new in keys:
        if old.type != new.type:
            yield name, new.type
    for old, new in zip(pipeline.document.copied, present.document.copied, strict=True):
        if old.type != new.type:
            yield new.name, new.unlimited_type
