"""The SQL of change capture: trigger functions that queue the keys of what a statement changed.

They only ever insert into pgembed.work. Neither the condition of a pipeline nor its document is
evaluated in a user's transaction, where an error of theirs would be the user's; a worker looks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.policy import MAX_ITEM_RECORDS
from pgqueue_embed.settings import Pipeline
from pgqueue_embed.tables import Table

# A writer needs no rights on schema pgembed, and can neither put another function or table in the
# place of one named here nor change how a key is spelled.
FUNCTION = """
create or replace function {function}() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
set datestyle = 'ISO, YMD'
set timezone = 'UTC'
as {body}
"""

BODY = """
begin
{statement};
    return null;
end
"""

# Numbered in whatever order they come: only how many make an item matters.
QUEUED = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known)
    select {pipeline_id}, array_agg(key), count(*), 0, {known}
    from (
        select {key_text} as key, (row_number() over () - 1) / {item_records} as item
        from changed
        where {present}
    ) as numbered
    group by item
"""

# What pgembed.progress counts: a new record is not in the ledger yet, so that its item adds it to
# the total; one that is changed or deleted is. To look that up would cost the user's transaction
# more than it is worth: where it is wrong, so is the total, until a worker has seen the record.
INSERTED = QUEUED.replace("{known}", "false")
DELETED = QUEUED.replace("{known}", "true")

# What a key stood for before and after. A row whose key changed has both of its keys in the list;
# two rows that have swapped keys, and differ in what counts, too. Compared byte by byte: to a
# column's own equality two texts may be equal that are not the same. A key that is new counts as an
# inserted one does.
UPDATED = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known)
    select {pipeline_id}, array_agg(key), count(*), 0, known
    from (
        select
            case when {present_after} then {text_after} else {text_before} end as key,
            {present_before} as known,
            (row_number() over () - 1) / {item_records} as item
        from (select {columns} from before as changed where {present}) as before
        full join (select {columns} from after as changed where {present}) as after
            on {key_before} = {key_after}
        where row({watched_before})::record *<> row({watched_after})::record
            or ({present_before}) <> ({present_after})
    ) as numbered
    group by known, item
"""

# Without the columns to compare, every row counts as changed: a key for each, before and after.
UPDATED_BLINDLY = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known)
    select {pipeline_id}, array_agg(key), count(*), 0, true
    from (
        select key, (row_number() over () - 1) / {item_records} as item
        from (
            select {key_text} as key from before as changed where {present}
            union
            select {key_text} as key from after as changed where {present}
        ) as touched
    ) as numbered
    group by item
"""

# A column that was renamed or dropped must not let a writer's statement fail. The statement that
# names it is not looked at before it is executed.
COMPARING = """
    if (
        select count(*) = {watched_count}
        from pg_attribute
        where attrelid = tg_relid and attname = any({watched_names}) and not attisdropped
    )
    then {compared};
    else {blindly};
    end if
"""

# A worker looks the ledger through, from its beginning, for what the source has lost.
TRUNCATED = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known, sweep_after)
    values ({pipeline_id}, '{{}}', 0, 0, true, '')
"""

# Of an insert, "old" is null; of a delete, "new".
ROW = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known)
    select {pipeline_id}, array_agg(distinct key), count(distinct key), 0, tg_op <> 'INSERT'
    from (
        values
            (case when {present_old} then {text_old} end),
            (case when {present_new} then {text_new} end)
    ) as changed (key)
    where key is not null {and_changed}
    having count(key) > 0
"""

ROW_CHANGED = """
        and (
            tg_op <> 'UPDATE'
            or row({everything_old})::record *<> row({everything_new})::record
        )
"""


ROW_BLINDLY = ROW.replace("{and_changed}", "")


def _comparing(compared: str, blindly: str) -> str:
    return COMPARING.replace("{compared}", compared).replace("{blindly}", blindly)


@dataclass(frozen=True, kw_only=True)
class Event:
    """A trigger that every table of a pipeline's source has.

    `enabled` is in which sessions it fires, by the letter of pg_trigger.tgenabled: those of origin,
    all of them, or those that apply what is replicated.
    """

    name: str
    timing: str
    statement: str
    enabled: str = "O"

    def trigger(self, pipeline: Pipeline) -> str:
        """Return the name of the trigger, the same on every table."""
        return f"pgembed_{pipeline.id}_{self.name}"

    def function(self, pipeline: Pipeline) -> str:
        """Return the name of its function in schema pgembed."""
        return f"capture_{pipeline.id}_{self.name}"


# Logical replication fires triggers of rows, and no statement's but that of TRUNCATE.
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
        statement=_comparing(UPDATED, UPDATED_BLINDLY),
    ),
    Event(
        name="delete",
        timing="after delete on {table} referencing old table as changed for each statement",
        statement=DELETED,
    ),
    Event(
        name="truncate",
        timing="after truncate on {table} for each statement",
        statement=TRUNCATED,
        enabled="A",
    ),
    Event(
        name="row",
        timing="after insert or update or delete on {table} for each row",
        statement=_comparing(ROW.replace("{and_changed}", ROW_CHANGED), ROW_BLINDLY),
        enabled="R",
    ),
)

ENABLE = {"O": "enable trigger", "A": "enable always trigger", "R": "enable replica trigger"}


def create_function(pipeline: Pipeline, event: Event, watched: Sequence[str]) -> sql.Composed:
    """Return the statement that makes the function of a trigger.

    `watched` are the columns that count, besides the key.
    """
    statement = sql.SQL(event.statement).format(**_names(pipeline, watched))
    body = sql.SQL(BODY).format(statement=statement)
    return sql.SQL(FUNCTION).format(
        function=sql.Identifier("pgembed", event.function(pipeline)),
        body=sql.Literal(body.as_string()),
    )


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


def _names(pipeline: Pipeline, watched: Sequence[str]) -> dict[str, sql.Composable]:
    key = pipeline.key
    everything = list(dict.fromkeys((*key.names, *watched)))
    names: dict[str, sql.Composable] = {
        "pipeline_id": sql.Literal(pipeline.id),
        "item_records": sql.Literal(MAX_ITEM_RECORDS),
        "key_text": key.text("changed"),
        "present": key.present("changed"),
        "columns": _listed("changed", everything),
        "watched_names": sql.Literal(list(watched)),
        "watched_count": sql.Literal(len(watched)),
    }
    for alias in ("before", "after", "old", "new"):
        names[f"present_{alias}"] = key.present(alias)
        names[f"text_{alias}"] = key.text(alias)
        names[f"key_{alias}"] = key.of(alias)
        names[f"watched_{alias}"] = _listed(alias, watched)
        names[f"everything_{alias}"] = _listed(alias, everything)
    return names


def _listed(alias: str, names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)
