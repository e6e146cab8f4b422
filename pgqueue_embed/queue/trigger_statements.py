"""The SQL of the functions that triggers of capture call; what fills it is in triggers.py."""

from __future__ import annotations

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
# called from, and that of one in SQL not at all. Nor is that which a background worker executes, or
# EXECUTE by a name: of that, PostgreSQL tells what the session has prepared.
MOVED_BY_MERGE = """
    declare
        caller text;
    begin
        get diagnostics caller = pg_context;
        caller := concat_ws(chr(10), coalesce(current_query(), 'merge?'), caller);
        if (
                caller ~* '(?n)[[:<:]]merge[[:>:]]|^SQL function'
                or caller ~* '[[:<:]]execute[[:>:]]'
                and exists (
                    select from pg_prepared_statements where statement ~* '[[:<:]]merge[[:>:]]'
                )
            )
            and (
                not current_setting('track_counts')::boolean
                or (
                    select sum(pg_stat_get_xact_tuples_deleted(relid))
                    from pg_partition_tree(tg_relid)
                ) > 0
            )
        then
            perform pgembed.queue_comparison({pipeline_id});
        end if;
    end;
"""

EVERY_ROW = """
declare
    keys_are_plain boolean;
begin
    keys_are_plain := {keys_are_plain};
    if keys_are_plain then
        {statement};
    else
        perform pgembed.queue_comparison({pipeline_id});
    end if;
    return null;
end
"""

# Fired in ordinary sessions it would queue every row of a statement once more: DISABLE TRIGGER ALL
# and ENABLE TRIGGER ALL, of a restore for example, leave it to fire in all of them.
REPLICATED = EVERY_ROW.replace(
    "begin",
    """begin
    if current_setting('session_replication_role') <> 'replica' then
        return null;
    end if;""",
)

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
            {or_keys_moved}
    ) as numbered
    group by known, deleted, item
"""

# A foreign key takes the chunks of a row along with its key, to one that another row had just left:
# they are not that row's, even if its text is. A key is unique at every moment, so that one is
# taken over only in a statement that ends with a key which was not there before.
OR_KEYS_MOVED = """
            or exists (
                select
                from after as changed
                where {present}
                    and not exists (select from before where {key_before} = {key_changed})
            )
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
# names it is not looked at before it is executed. A snapshot for the whole transaction may be of
# before; what an object is called, PostgreSQL tells as of now. A column that is virtual now has no
# value to compare. Where a virtual one had another expression when the columns were listed, or a
# condition that uses the row as a whole had other columns, more may count than these.
COMPARING = """
    if (
        select count(*) = {captured_count}
        from pg_attribute
        where attrelid = tg_relid
            and attname = any({captured_names})
            and not attisdropped
            and attgenerated <> 'v'
            and (
                current_setting('transaction_isolation') = 'read committed'
                or attname = (
                    pg_identify_object_as_address('pg_class'::regclass, attrelid, attnum)
                ).object_names[3]
            )
    ) {and_as_derived}
    then {compared};
    else {blindly};
    end if
"""

AND_AS_DERIVED = """
    and current_setting('transaction_isolation') = 'read committed'
    and ({derived_now}) = {derived_from}
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


def comparing(compared: str, blindly: str) -> str:
    """Return `compared`, which names the captured columns, and `blindly` where one is not there."""
    return COMPARING.replace("{compared}", compared).replace("{blindly}", blindly)
