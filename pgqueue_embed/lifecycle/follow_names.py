"""The names that a source and its columns have now, where they are others than a pipeline knows.

A table is known by what hangs on it: a view of the pipeline's, a trigger of capture, a foreign key.
A column is known by the ledger: under the right names, records hash to what was embedded of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice, permutations
from typing import Any

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import run
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.columns import Column
from pgqueue_embed.pipeline.key import Key
from pgqueue_embed.pipeline.missing import missing_of
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.pipeline.template import with_names
from pgqueue_embed.source.check import ColumnFacts, check_source, shape_of, table_columns
from pgqueue_embed.source.trust import check_trust
from pgqueue_embed.target import views_of
from pgqueue_embed.untrusted.shell import command

# Each is read from the source, under each of the ways to take its columns.
SAMPLE_RECORDS = 20
MOST_WAYS = 1_000


@dataclass(frozen=True, kw_only=True)
class Renamed:
    """A table or column under the name that the pipeline has noted, and that of now."""

    noted: str
    present: str

    def __str__(self) -> str:
        return f"{self.noted} is {self.present}"


@dataclass(frozen=True, kw_only=True)
class OtherNames:
    """Other names than the noted ones: of the source, if it has another, and of its columns."""

    source: Table
    columns: Mapping[str, str]

    def of(self, pipeline: Pipeline) -> Pipeline:
        """Return `pipeline` with these names, and the types that it has noted."""
        spec, document = pipeline.spec, pipeline.document
        renamed = replace(
            spec,
            source=self.source,
            target=spec.target if spec.into_column is None else self.source,
            id_fields=tuple(map(self._name, spec.id_fields)),
            text_fields=tuple(map(self._name, spec.text_fields)),
            template=self._template(spec.template),
            chunk_template=self._template(spec.chunk_template),
        )
        columns = tuple(map(self._column, document.columns))
        return replace(
            pipeline,
            spec=renamed,
            key=Key(tuple(map(self._column, pipeline.key.columns))),
            document=replace(document, recipe=renamed.recipe, columns=columns),
        )

    def _name(self, noted: str) -> str:
        return self.columns.get(noted, noted)

    def _column(self, noted: Column) -> Column:
        return replace(noted, name=self._name(noted.name))

    def _template(self, noted: str | None) -> str | None:
        return None if noted is None else with_names(noted, self.columns)


def present_names(
    connection: Connection, pipeline: Pipeline, told: OtherNames | None
) -> OtherNames:
    """Return the names that table and columns of the source have now; no others where all is there.

    `told` are those that another generation was found to have. Raises UsageError where nothing
    tells, or where the pipeline cannot have them.
    """
    missing = run(connection, missing_of(pipeline))
    if missing is None:
        return OtherNames(source=pipeline.source, columns={})
    source = told.source if told else _source_of_now(connection, pipeline, missing)
    columns = table_columns(connection, source)
    gone = [each for each in pipeline.source_columns if each.name not in columns]
    _check_copied(pipeline, gone, missing)
    known = {} if told is None else told.columns
    names = OtherNames(
        source=source,
        columns={each.name: known[each.name] for each in gone if each.name in known},
    )
    gone = [each for each in gone if each.name not in known]
    if not gone:
        return names
    ways = list(islice(_ways(names, pipeline, columns, gone), MOST_WAYS + 1))
    ways = [] if len(ways) > MOST_WAYS else ways
    matching = _matching(connection, pipeline, ways)
    best = [
        way for way, count in zip(ways, matching, strict=True) if count and count == max(matching)
    ]
    if len(best) != 1:
        raise _unknown(pipeline, missing)
    return best[0]


def renames(noted: Pipeline, names: OtherNames) -> list[Renamed]:
    """Return which names are others."""
    pairs = {str(noted.source): str(names.source), **names.columns}
    return [Renamed(noted=old, present=new) for old, new in pairs.items() if old != new]


def _check_copied(pipeline: Pipeline, gone: Sequence[Column], missing: str) -> None:
    copied = [each.name for each in gone if each.name in pipeline.spec.copy_columns]
    if copied:
        raise UsageError(
            f"{missing}, and {pipeline.target} has a copy of {', '.join(copied)} by that name; give"
            " it its former name"
        )


def _unknown(pipeline: Pipeline, missing: str) -> UsageError:
    spec = pipeline.spec
    is_adoptable = spec.text and spec.into_column is None and spec.partition_by is None
    other = (
        "with its name of now, pgembed drop and then pgembed adopt keep all vectors"
        if is_adoptable
        else f"make the pipeline anew: {command('drop', pipeline.name)}, and create"
    )
    return UsageError(
        f"{missing}, and nothing tells its name of now: put it back as it was, or {other}"
    )


HANGS_ON = """
with found (oid) as (
    select refobjid
    from pg_rewrite
    join pg_depend on classid = 'pg_rewrite'::regclass and objid = pg_rewrite.oid
    where ev_class in (select to_regclass(name) from unnest(%(views)s::text[]) as listed (name))
        and refclassid = 'pg_class'::regclass
        and refobjid not in (ev_class, to_regclass(%(target)s))
    union
    select tgrelid
    from pg_trigger
    join pg_proc on pg_proc.oid = tgfoid
    where pronamespace = 'pgembed'::regnamespace and proname ~ %(functions)s
    union
    select confrelid
    from pg_constraint
    where conrelid = to_regclass(%(target)s) and contype = 'f'
)
select nspname, relname
from found
join pg_class using (oid)
join pg_namespace on pg_namespace.oid = relnamespace
-- The triggers of a table are on its partitions, and on those that inherit from it.
where not exists (
    select from pg_inherits where inhrelid = found.oid and inhparent in (select oid from found)
)
"""


def _source_of_now(connection: Connection, pipeline: Pipeline, missing: str) -> Table:
    """Return the source by its name, or, without one of that name, what hangs on it tells."""
    if connection.has_relation(pipeline.source):
        return pipeline.source
    views = views_of(pipeline.spec, pipeline.key, pipeline.document)
    values = {
        "views": [view.table.quoted for view in views],
        "target": pipeline.target.quoted,
        "functions": f"^capture_{pipeline.id}_",
    }
    found = connection.execute(HANGS_ON, values).fetchall()
    if len(found) != 1:
        raise _unknown(pipeline, missing)
    [(schema, name)] = found
    return Table(schema=schema, name=name)


def _ways(
    names: OtherNames,
    pipeline: Pipeline,
    columns: Mapping[str, ColumnFacts],
    gone: Sequence[Column],
) -> Iterator[OtherNames]:
    """Yield each of the ways to take columns of the same types for those that are gone."""
    known = {each.name for each in pipeline.source_columns} | {*names.columns.values()}
    others = [name for name in columns if name not in known]
    for taken in permutations(others, len(gone)):
        more = {each.name: name for each, name in zip(gone, taken, strict=True)}
        way = OtherNames(source=names.source, columns={**names.columns, **more})
        with suppress(UsageError):
            shape = shape_of(way.of(pipeline).spec, columns)
            types = {each.name: each.type for each in (*shape.key.columns, *shape.document.columns)}
            if all(each.type == types[more[each.name]] for each in gone):
                yield way


SAMPLE = """
select coalesce(long_key, key), document_hash
from pgembed.records
where pipeline_id = %s and state = 'embedded'
limit %s
"""

MATCHING = """
select count(*)
from unnest(%(keys)s::text[], %(hashes)s::bytea[]) as ledger (key, document_hash)
join {source} as source on {source_key} = {ledger_key}
where {document_hash} = ledger.document_hash
"""


def _matching(connection: Connection, pipeline: Pipeline, ways: Sequence[OtherNames]) -> list[int]:
    """Return how many of some records each of the `ways` reads as they were embedded."""
    rows = connection.execute(SAMPLE, (pipeline.id, SAMPLE_RECORDS)).fetchall()
    values = {"keys": [key for key, _ in rows], "hashes": [hash_ for _, hash_ in rows]}
    return [_count(connection, pipeline, way.of(pipeline), values) for way in ways]


def _count(
    connection: Connection, noted: Pipeline, way: Pipeline, values: Mapping[str, Any]
) -> int:
    if way.key != noted.key:
        try:
            # Without an index, each of the columns would be looked through as a whole.
            check_source(connection, replace(way.spec, where=None))
        except UsageError:
            return 0
    check_trust(connection, way.spec)
    query = sql.SQL(MATCHING).format(
        source=way.source.identifier,
        source_key=way.key.of("source"),
        ledger_key=way.key.value(sql.SQL("ledger.key")),
        document_hash=way.document.hash("source"),
    )
    return int(connection.value(query, values))
