"""The SQL of change capture: trigger functions that queue the keys of what a statement changed.

They only ever insert into pgembed.work. Neither the condition of a pipeline nor its document is
evaluated in a user's transaction, where an error of theirs would be the user's; a worker looks.

They act with the rights of whoever made them, so that writers need none, and the table may belong
to another role, which can give a column any type at any time. So they evaluate nothing that a type
may bring code for. Columns are compared byte by byte. Keys are turned into text and compared with
`=`, which for a type that a user has made may call a cast or operator of that user: each firing
looks first, and queues a comparison of everything if a column of the key is of none of PostgreSQL's
own key types.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.pipeline.columns import OF_A_FUNCTION
from pgqueue_embed.pipeline.key import KEY_TYPES
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.captured_columns import Captured, derived_from
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS
from pgqueue_embed.queue.trigger_statements import (
    AND_AS_DERIVED,
    BODY,
    DELETED,
    EVERY_ROW,
    FUNCTION,
    GUARDED,
    INSERTED,
    MOVED_BY_MERGE,
    OR_KEYS_MOVED,
    REPLICATED,
    ROW,
    ROW_BLINDLY,
    ROW_CHANGED,
    TRUNCATED,
    UPDATED,
    UPDATED_BLINDLY,
    comparing,
)


@dataclass(frozen=True, kw_only=True)
class Event:
    """A trigger that every table of a pipeline's source has.

    `rows` is where its function finds the changed rows, `enabled` in which sessions it fires, by
    the letter of pg_trigger.tgenabled: those of origin, all of them, or those that apply what is
    replicated.
    """

    name: str
    timing: str
    statement: str
    body: str = GUARDED
    rows: str = "changed"
    enabled: str = "O"

    def trigger(self, pipeline: Pipeline) -> str:
        """Return the name of the trigger, the same on every table."""
        return f"pgembed_{pipeline.id}_{self.name}"

    def function(self, pipeline: Pipeline) -> str:
        """Return the name of its function in schema pgembed."""
        return f"capture_{pipeline.id}_{self.name}"


# Logical replication fires triggers of rows, and no statement's but that of TRUNCATE.
ROWS_REPLICATED = Event(
    name="row",
    timing="after insert or update or delete on {table} for each row",
    statement=comparing(ROW.replace("{and_changed}", ROW_CHANGED), ROW_BLINDLY),
    body=REPLICATED,
    rows="old",
    enabled="R",
)

TRUNCATION = Event(
    name="truncate",
    timing="after truncate on {table} for each statement",
    statement=TRUNCATED,
    body=BODY,
    enabled="A",
)

EVENTS = (
    Event(
        name="insert",
        timing="after insert on {table} referencing new table as changed for each statement",
        statement=INSERTED,
    ),
    Event(
        name="update",
        timing="after update on {table} referencing old table as before new table as after"
        " for each statement",
        statement=comparing(UPDATED, UPDATED_BLINDLY),
        rows="before",
    ),
    Event(
        name="delete",
        timing="after delete on {table} referencing old table as changed for each statement",
        statement=DELETED,
    ),
    TRUNCATION,
    ROWS_REPLICATED,
)

# Where the source is a partition, or inherits from another table, a statement that names that one
# fires triggers of that one alone, but for those of rows and of TRUNCATE.
EVENTS_OF_A_PART = (TRUNCATION, replace(ROWS_REPLICATED, body=EVERY_ROW, enabled="A"))

ENABLE = {"O": "enable trigger", "A": "enable always trigger", "R": "enable replica trigger"}


def create_function(
    pipeline: Pipeline,
    event: Event,
    captured: Captured,
    *,
    server_version: int,
    partitioned: bool,
) -> sql.Composed:
    """Return the statement that makes the function of a trigger.

    `captured` are the columns that count, besides the key. It knows what the server of that version
    does, and of a `partitioned` table what there is to know besides.
    """
    names = _names(pipeline, captured, DIFFER if server_version >= TOAST_VERSION else DIFFER_ALL)
    afterwards = MOVED_BY_MERGE if event.name == "update" and partitioned else ""
    body = sql.SQL(event.body).format(
        afterwards=sql.SQL(afterwards).format(pipeline_id=names["pipeline_id"]),
        statement=sql.SQL(event.statement).format(**names),
        keys_are_plain=_keys_are_plain(pipeline, event.rows),
        pipeline_id=names["pipeline_id"],
    )
    return sql.SQL(FUNCTION).format(
        function=sql.Identifier("pgembed", event.function(pipeline)),
        settings=OF_A_FUNCTION,
        body=sql.Literal(body.as_string()),
    )


PLAIN = """(
        pg_typeof({0}) = any({1}::regtype[])
        or pgembed.base_type(pg_typeof({0})) = any({1}::regtype[])
    )"""


def _keys_are_plain(pipeline: Pipeline, rows: str) -> sql.Composable:
    """Return the condition that the columns of the key are of types without any code of a user's.

    A domain over one brings none either: PostgreSQL takes no cast of a domain, and its checks are
    for what is written. The types have the same numbers in every database.
    """
    types = sql.Literal("{" + ",".join(f'"{name}"' for name in KEY_TYPES) + "}")
    columns = [sql.Identifier(rows, name) for name in pipeline.key.names]
    plain = sql.SQL(" and ").join(sql.SQL(PLAIN).format(column, types) for column in columns)
    if rows == "old":
        return plain
    return sql.SQL("select {} from {} limit 1").format(plain, sql.Identifier(rows))


def create_trigger(pipeline: Pipeline, event: Event, table: Table) -> sql.Composed:
    """Return the statement that makes the trigger on one table."""
    return sql.SQL("create trigger {trigger} {timing} execute function {function}()").format(
        trigger=sql.Identifier(event.trigger(pipeline)),
        timing=sql.SQL(event.timing).format(table=table.identifier),
        function=sql.Identifier("pgembed", event.function(pipeline)),
    )


def enable_trigger(pipeline: Pipeline, event: Event, table: Table) -> sql.Composed:
    """Return the statement that lets the trigger fire in the sessions that it is for."""
    return sql.SQL("alter table {table} {enable} {trigger}").format(
        table=table.identifier,
        enable=sql.SQL(ENABLE[event.enabled]),
        trigger=sql.Identifier(event.trigger(pipeline)),
    )


# Byte by byte. A long value that no statement has assigned is stored once for both versions of its
# row; comparing where it is stored spares reading 60 kB twice to find nothing.
TOAST_VERSION = 170_000
DIFFER = """case
                when pg_column_toast_chunk_id({before}) = pg_column_toast_chunk_id({after})
                then false
                else row({before})::record *<> row({after})::record
            end"""
DIFFER_ALL = "row({before})::record *<> row({after})::record"


def _differ(comparison: str, before: str, after: str, names: Sequence[str]) -> sql.Composable:
    """Return the condition that one of the columns `names` is not what it was."""
    differences: list[sql.Composable] = [
        sql.SQL(comparison).format(
            before=sql.Identifier(before, name), after=sql.Identifier(after, name)
        )
        for name in names
    ]
    return sql.SQL("({})").format(sql.SQL(" or ").join(differences or [sql.SQL("false")]))


def _names(pipeline: Pipeline, captured: Captured, comparison: str) -> dict[str, sql.Composable]:
    key = pipeline.key
    everything = list(dict.fromkeys((*key.names, *captured.names)))
    names: dict[str, sql.Composable] = {
        "or_keys_moved": sql.SQL(""),
        "pipeline_id": sql.Literal(pipeline.id),
        "item_records": sql.Literal(MAX_ITEM_RECORDS),
        "key_text": key.plain_text("changed"),
        "present": key.present("changed"),
        "columns": _listed("changed", everything),
        "captured_differ": _differ(comparison, "before", "after", captured.names),
        "everything_differs": _differ(comparison, "old", "new", everything),
        "captured_names": sql.Literal(list(captured.names)),
        "captured_count": sql.Literal(len(captured.names)),
        "and_as_derived": sql.SQL(""),
    }
    for alias in ("before", "after", "old", "new"):
        names[f"present_{alias}"] = key.present(alias)
        names[f"text_{alias}"] = key.plain_text(alias)
        names[f"key_{alias}"] = key.of(alias)
    if captured.derived_from:
        names["and_as_derived"] = sql.SQL(AND_AS_DERIVED).format(
            derived_now=derived_from(captured, sql.SQL("tg_relid")),
            derived_from=sql.Literal(captured.derived_from),
        )
    if pipeline.spec.foreign_key:
        names["key_changed"] = key.of("changed")
        names["or_keys_moved"] = sql.SQL(OR_KEYS_MOVED).format(**names)
    return names


def _listed(alias: str, names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)
