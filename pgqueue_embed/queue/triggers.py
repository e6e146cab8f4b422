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
from dataclasses import dataclass

from psycopg import sql

from pgqueue_embed.db.names import Table
from pgqueue_embed.pipeline.columns import OF_A_FUNCTION
from pgqueue_embed.pipeline.key import KEY_TYPES
from pgqueue_embed.pipeline.pipeline import Pipeline
from pgqueue_embed.queue.item_size import MAX_ITEM_RECORDS

# A writer needs no rights on schema pgembed, and can neither put another function or table in the
# place of one named here nor change how a value is spelled.
FUNCTION = """
create or replace function {function}() returns trigger
language plpgsql
security definer
set search_path = pg_catalog, pg_temp
{settings}
as {body}
"""

BODY = """
begin
    {statement};
    return null;
end
"""

# pg_typeof answers for the column as the statement sees it at this moment. The catalogue, read
# under the snapshot of the writer's transaction, might tell of the type that it was of before.
# Without any row there is nothing to queue, and null.
GUARDED = """
declare
    keys_are_plain constant boolean := ({keys_are_plain});
begin
    if keys_are_plain then
        {statement};
    elsif not keys_are_plain then
        perform pgembed.queue_comparison({pipeline_id});
    end if;
    {afterwards}
    return null;
end
"""

# PostgreSQL shows the triggers of a partitioned table no row that a MERGE moves to another
# partition, neither as updated nor as deleted and inserted. Which rows they were is unknown;
# that some were, by the deletions that it counts for the partitions in this transaction (and in
# others of the session in the second before). The statement of a function is told by where it was
# called from, and that of one in SQL not at all.
MOVED_BY_MERGE = """
    declare
        caller text;
    begin
        get diagnostics caller = pg_context;
        if concat_ws(chr(10), current_query(), caller) ~* '(?n)[[:<:]]merge[[:>:]]|^SQL function'
            and (
                select sum(pg_stat_get_xact_tuples_deleted(relid))
                from pg_partition_tree(tg_relid)
            ) > 0
        then
            perform pgembed.queue_comparison({pipeline_id});
        end if;
    end;
"""

# Fired in ordinary sessions it would queue every row of a statement once more: DISABLE TRIGGER ALL
# and ENABLE TRIGGER ALL, of a restore for example, leave it to fire in all of them.
REPLICATED = """
declare
    keys_are_plain boolean;
begin
    if current_setting('session_replication_role') <> 'replica' then
        return null;
    end if;
    keys_are_plain := {keys_are_plain};
    if keys_are_plain then
        {statement};
    else
        perform pgembed.queue_comparison({pipeline_id});
    end if;
    return null;
end
"""

# Numbered in whatever order they come: only how many make an item matters.
QUEUED = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known, allow_deletes)
    select {pipeline_id}, array_agg(key), count(*), 0, {known}, {deleted}
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
# Only of a deleted key it is told that its vectors may go.
INSERTED = QUEUED.replace("{known}", "false").replace("{deleted}", "false")
DELETED = QUEUED.replace("{known}", "true").replace("{deleted}", "true")

# What a key stood for before and after. A row whose key changed has both of its keys in the list;
# two rows that have swapped keys, and differ in what counts, too. Compared byte by byte: to a
# column's own equality two texts may be equal that are not the same. A key that is new counts as an
# inserted one does.
UPDATED = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known, allow_deletes)
    select {pipeline_id}, array_agg(key), count(*), 0, known, deleted
    from (
        select
            case when {present_after} then {text_after} else {text_before} end as key,
            {present_before} as known,
            not ({present_after}) as deleted,
            (row_number() over () - 1) / {item_records} as item
        from (select {columns} from before as changed where {present}) as before
        full join (select {columns} from after as changed where {present}) as after
            on {key_before} = {key_after}
        where {captured_differ}
            or ({present_before}) <> ({present_after})
    ) as numbered
    group by known, deleted, item
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
        select count(*) = {captured_count}
        from pg_attribute
        where attrelid = tg_relid and attname = any({captured_names}) and not attisdropped
    )
    then {compared};
    else {blindly};
    end if
"""

# A worker sweeps the ledger, from its beginning, for what the source has lost.
TRUNCATED = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known, sweep_after)
    values ({pipeline_id}, '{{}}', 0, 0, true, '')
"""

# Of an insert, "old" is null; of a delete, "new".
ROW = """
    insert into pgembed.work (pipeline_id, keys, records, priority, known, allow_deletes)
    select
        {pipeline_id}, array_agg(distinct key), count(distinct key), 0, tg_op <> 'INSERT',
        tg_op = 'DELETE' or count(distinct key) > 1
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
            or {everything_differs}
        )
"""


ROW_BLINDLY = ROW.replace("{and_changed}", "")


def _comparing(compared: str, blindly: str) -> str:
    return COMPARING.replace("{compared}", compared).replace("{blindly}", blindly)


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
        rows="before",
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
        body=BODY,
        enabled="A",
    ),
    Event(
        name="row",
        timing="after insert or update or delete on {table} for each row",
        statement=_comparing(ROW.replace("{and_changed}", ROW_CHANGED), ROW_BLINDLY),
        body=REPLICATED,
        rows="old",
        enabled="R",
    ),
)

ENABLE = {"O": "enable trigger", "A": "enable always trigger", "R": "enable replica trigger"}


def create_function(
    pipeline: Pipeline,
    event: Event,
    captured: Sequence[str],
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


def _names(
    pipeline: Pipeline, captured: Sequence[str], comparison: str
) -> dict[str, sql.Composable]:
    key = pipeline.key
    everything = list(dict.fromkeys((*key.names, *captured)))
    names: dict[str, sql.Composable] = {
        "pipeline_id": sql.Literal(pipeline.id),
        "item_records": sql.Literal(MAX_ITEM_RECORDS),
        "key_text": key.plain_text("changed"),
        "present": key.present("changed"),
        "columns": _listed("changed", everything),
        "captured_differ": _differ(comparison, "before", "after", captured),
        "everything_differs": _differ(comparison, "old", "new", everything),
        "captured_names": sql.Literal(list(captured)),
        "captured_count": sql.Literal(len(captured)),
    }
    for alias in ("before", "after", "old", "new"):
        names[f"present_{alias}"] = key.present(alias)
        names[f"text_{alias}"] = key.plain_text(alias)
        names[f"key_{alias}"] = key.of(alias)
    return names


def _listed(alias: str, names: Sequence[str]) -> sql.Composable:
    return sql.SQL(", ").join(sql.Identifier(alias, name) for name in names)
