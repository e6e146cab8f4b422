"""The relation that a search looks through: chunks, with their records where these are wanted.

A condition may name columns of the source and of the target as they are. Where both have one of a
name, it is the source's, and that of the target is `chunk.name`, unless a search needs it itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.session import Connection
from pgqueue_embed.errors import UsageError
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.source.condition import refusal
from pgqueue_embed.source.read import condition
from pgqueue_embed.target import target_of
from pgqueue_embed.vector_search.request import SearchRequest

# What a hit is made of, by its meaning in TargetColumns.
PARTS = ("chunk_index", "start_char", "end_char", "text_chunk", "embedding")


@dataclass(frozen=True, kw_only=True)
class Relation:
    """`tables` and `condition` of a query; `parts` and `key_names` are columns of its `chunk`."""

    tables: sql.Composable
    condition: sql.Composable
    parts: dict[str, str]
    key_names: tuple[str, ...]
    columns: Sequence[sql.Identifier] = ()

    def part(self, meaning: str) -> sql.Identifier:
        """Return the column of a meaning, such as ``"chunk"."embedding"``."""
        return sql.Identifier("chunk", self.parts[meaning])


def relation_of(connection: Connection, pipeline: Pipeline, request: SearchRequest) -> Relation:
    """Return what to search; UsageError for columns or a condition that are not to be had."""
    columns = pipeline.spec.columns
    parts = {meaning: getattr(columns, meaning) for meaning in PARTS}
    if not request.reads_source:
        return Relation(
            tables=sql.SQL("{} as chunk").format(target_of(pipeline).rows),
            condition=sql.SQL("true"),
            parts=parts,
            key_names=columns.fulltext_id,
        )
    with_source = _with_source(connection, pipeline, request, parts)
    if request.where is not None:
        _check_condition(connection, pipeline, with_source, request.where)
    return with_source


def _with_source(
    connection: Connection, pipeline: Pipeline, request: SearchRequest, parts: dict[str, str]
) -> Relation:
    key_names = tuple(f"pgembed_{name}" for name in pipeline.key.positions)
    renamed = {meaning: f"pgembed_{meaning}" for meaning in parts}
    own = dict(zip(key_names, pipeline.spec.columns.fulltext_id, strict=True))
    own |= {renamed[meaning]: name for meaning, name in parts.items()}
    of_source = _column_names(connection, pipeline.source.quoted)
    of_target = _column_names(connection, pipeline.target.quoted)
    free = [name for name in of_target if name not in of_source]
    tables = sql.SQL(
        "(select {chunk} from {target} as target) as chunk join {source} as source on {same}"
    ).format(
        chunk=sql.SQL(", ").join(_selected({**own, **{name: name for name in free}})),
        target=target_of(pipeline).rows,
        source=pipeline.source.identifier,
        same=sql.SQL("{} = {}").format(
            pipeline.key.of("source"), pipeline.key.of("chunk", key_names)
        ),
    )
    where = sql.SQL("true")
    if request.where is not None:
        where = sql.SQL("({}\n)").format(condition(request.where))  # type: ignore[assignment]
    return Relation(
        tables=tables,
        condition=where,
        parts=renamed,
        key_names=key_names,
        columns=[_column(name, of_source, free, pipeline) for name in request.columns],
    )


def _selected(names: dict[str, str]) -> list[sql.Composable]:
    return [
        sql.SQL("{} as {}").format(sql.Identifier("target", name), sql.Identifier(new))
        for new, name in names.items()
    ]


def _column(
    name: str, of_source: Sequence[str], free: Sequence[str], pipeline: Pipeline
) -> sql.Identifier:
    for table, names in (("source", of_source), ("chunk", free)):
        if name in names:
            return sql.Identifier(table, name)
    raise UsageError(
        f"--columns {name}: neither {pipeline.source} nor {pipeline.target} has a column of that"
        f" name; they have {', '.join([*of_source, *free])}"
    )


def _column_names(connection: Connection, table: str) -> list[str]:
    rows = connection.execute(
        "select attname from pg_attribute"
        " where attrelid = to_regclass(%s) and attnum > 0 and not attisdropped order by attnum",
        (table,),
    )
    return [name for (name,) in rows]


def _check_condition(
    connection: Connection, pipeline: Pipeline, relation: Relation, where: str
) -> None:
    """Raise UsageError, in the words of PostgreSQL, for what is no condition over `relation`."""
    refused = refusal(connection, relation.tables, where)
    if refused is not None:
        raise UsageError(
            f"--where is not a condition over {pipeline.source} and {pipeline.target}: {refused}"
        )
