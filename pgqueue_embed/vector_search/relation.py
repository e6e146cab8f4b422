"""The SQL of a search: the statement is that of pgembed.search, made by the same function.

A condition may name columns of the source and of the target as they are. Where both have one of a
name, it is the source's; that of the target can be named only where the source has none.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from psycopg import sql

from pgqueue_embed.db.extension import extension_read
from pgqueue_embed.db.session import Connection
from pgqueue_embed.db.steps import AnyConnection, Step, Steps, run
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.columns import raw
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.condition import refusal_found
from pgqueue_embed.source.condition_names import possible_columns
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.request import SearchRequest
from pgqueue_embed.vector_search.rights import with_grants

COLUMNS = """
select named.name, named.qualified
from pgembed.pipelines
cross join pgembed.search_columns(pipelines) as named
where id = %s
"""

# Of vectors whose numbers stand one after the other. Only by an index: what looks at all chunks is
# parted among the server's cores for one vector, and not where it stands behind others. Cut and
# cast beforehand: in the place of `asked.vector` that would be done again for each chunk.
OF_MANY = """
with asked as materialized (
    select place, ($1::real[])[(place - 1) * dimensions + 1 : place * dimensions]::{type} as vector
    from generate_series(1, $3::integer) as place
    cross join (values (cardinality($1::real[]) / $3::integer)) as given (dimensions)
)
select asked.place, nearest.*
from asked
cross join lateral ({nearest}) as nearest
order by asked.place, nearest.distance, nearest.key, nearest.chunk_index
"""

# Of a pipeline that has been dropped, no row.
STATEMENTS = """
with given as (
    select
        pipelines,
        pgembed.search_relation(pipelines, %(rows)s, %(reads_source)s) as relation,
        format('%%I.%%I', nspname, vector_type) as vector_type
    from pgembed.pipelines
    left join pg_extension on extname = 'vector'
    left join pg_namespace on pg_namespace.oid = extnamespace
    where pipelines.id = %(id)s
)
select
    scan,
    case
        when scan = 'exact' then exact
        else pgembed.search_statement(pipelines, %(rows)s, %(where)s, %(columns)s, scan)
    end,
    case
        when scan <> 'exact' and %(where)s is null then
            replace(
                replace(%(of_many)s, '{type}', vector_type),
                '{nearest}',
                pgembed.search_statement(
                    pipelines, %(rows)s, null, %(columns)s, scan, 'asked.vector'
                )
            )
    end,
    exact,
    relation,
    pgembed.search_key(pipelines),
    pgembed.search_distance(pipelines, 'none'),
    case when %(lexical)s then pgembed.lexical_scan(pipelines) end,
    case
        when %(lexical)s
        then pgembed.lexical_statement(pipelines, %(rows)s, %(where)s, %(columns)s)
    end
from given
cross join pgembed.search_scan(pipelines) as scan
cross join pgembed.search_statement(pipelines, %(rows)s, %(where)s, %(columns)s, 'exact') as exact
"""


@dataclass(frozen=True, kw_only=True)
class Relation:
    """The SQL of a search. In all of it the query's vector is $1, in the statements the limit $2.

    Rows of the statements have the key's columns behind the distance, then what was asked for.

    `scan` is how the index quantizes that orders `statement`; `exact_statement` uses none.
    `of_many` is the former about several vectors, as `together` sends it, where that is to be had.
    `key` and `distance` are those of a row of `relation`. The `lexical_statement` is there where
    words are searched for, and goes by the index that `lexical_scan` names:
    pgembed.lexical_statement.
    """

    scan: str
    statement: str
    of_many: str | None
    exact_statement: str
    relation: str
    key: str
    distance: str
    lexical_scan: str | None
    lexical_statement: str | None


def relation_of(
    connection: Connection, pipeline: Pipeline, request: SearchRequest
) -> Relation | None:
    """Return what to search, or None of a pipeline that is not there any more.

    Raises UsageError for columns or a condition that are not to be had, and SetupError without
    pgvector.
    """
    with connection.transaction():
        return run(connection, related(connection, pipeline, request))


def related(
    connection: AnyConnection, pipeline: Pipeline, request: SearchRequest
) -> Steps[Relation | None]:
    """Do what `relation_of` does, in a transaction."""
    own = [f"chunk.pgembed_{name}" for name in pipeline.key.positions]
    asked = yield from _qualified(pipeline, request)
    values = {
        "id": pipeline.id,
        "rows": raw(target_of(pipeline).rows),
        "reads_source": request.reads_source,
        "where": request.where,
        "of_many": OF_MANY,
        "lexical": request.words is not None,
        "columns": [*own, *asked, *_vector(request)],
    }
    rows = yield Step(STATEMENTS, values)
    if not rows:
        return None
    names = [each.name for each in fields(Relation)]
    parts: dict[str, Any] = dict(zip(names, rows[0], strict=True))
    if parts["distance"] is None:
        yield from extension_read()  # it was dropped, and says so
    found = Relation(**parts)
    if request.where is not None:
        yield from _check_condition(connection, pipeline, found, request)
    return found


def _qualified(pipeline: Pipeline, request: SearchRequest) -> Steps[list[str]]:
    if not request.columns:
        return []
    known: dict[str, str] = dict((yield Step(COLUMNS, (pipeline.id,))))
    for name in request.columns:
        if name not in known:
            raise UsageError(
                f"--columns {name}: neither {pipeline.source} nor {pipeline.target} has a column of"
                f" that name; they have {', '.join(known)}"
            )
    return [known[name] for name in request.columns]


def _vector(request: SearchRequest) -> list[str]:
    """Return the column of the vector, behind those that were asked for, if it is needed."""
    return [] if request.mmr is None else ["chunk.pgembed_embedding::text"]


def _check_condition(
    connection: AnyConnection, pipeline: Pipeline, found: Relation, request: SearchRequest
) -> Steps[None]:
    """Raise UsageError, in the words of PostgreSQL, for what is no condition over `found`.

    And psycopg's error where tables or columns of theirs may not be read, whatever the condition.
    """
    where = request.where or ""
    relation = sql.SQL(found.relation.replace("%", "%%"))
    why = yield from refusal_found(connection, relation, where)
    if why is not None:
        named = possible_columns(where)
        known = yield Step(COLUMNS, (pipeline.id,))
        columns = sql.SQL(", ".join(qualified for name, qualified in known if name in named))
        yield Step(sql.SQL("select {} from {} limit 0").format(columns, relation), ())
        why = yield from with_grants(why)
        raise UsageError(
            f"{request.condition_name} is not a condition over {pipeline.source} and"
            f" {pipeline.target}: {why}"
        )
