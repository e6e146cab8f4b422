"""A slice of a first enqueue: where ledger and queue have nothing of a slice, all of it is queued.

That there is nothing is looked at by the statement that queues, under the snapshot in which it
reads the source. What a trigger, a claim or another producer commits later, a comparison by that
statement would not see either; and a claim that may have read a record of the slice has its item in
that snapshot until it commits, and in the ledger from then on.
"""

from __future__ import annotations

# Items of bulk loading hold their keys in key order: those that end before the slice, such as the
# ones that this scan has queued, hold none of it. Without a row, nothing was queued: there is
# something to compare the slice with.
QUEUE_FIRST_SLICE = """
with begun as materialized (
    select
        exists (select from pgembed.records where pipeline_id = %(pipeline_id)s)
        or exists (
            select from pgembed.work where pipeline_id = %(pipeline_id)s and priority = 0
        ) as is_so
),
slice as materialized (
    select
        {source_key_columns},
        (row_number() over (order by {source_order}) - 1) / %(item_records)s as item
    from {source} as source
    where not (select is_so from begun) and {source_present} {after}
    order by {source_order}
    limit least(%(first_slice_records)s, %(room)s)
),
first as (
    select * from slice where item = 0 order by {slice_order} limit 1
),
reached as materialized (
    select exists (
        select
        from first, pgembed.work
        where work.pipeline_id = %(pipeline_id)s and {last_of_item} >= {first_key}
    ) as is_so
),
queued as (
    insert into pgembed.work (pipeline_id, keys, records, known, embed_again, allow_deletes)
    select
        %(pipeline_id)s,
        array_agg({slice_key_text} order by {slice_order}),
        count(*),
        false,
        %(everything)s,
        false
    from slice
    where not (select is_so from reached)
    group by item
    order by item
    returning id, records, last_key
),
total as (
    select coalesce(sum(records), 0) as records from queued
)
select
    records,
    records,
    (select last_key from queued order by id desc limit 1),
    records < %(first_slice_records)s,
    {keys_that_occur_twice}
from total, begun, reached
where not begun.is_so and not reached.is_so
"""
