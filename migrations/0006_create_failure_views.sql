-- depends: 0005_create_activity_views
--
-- The public SQL interface, in which columns are only ever added: what has failed.
set local lock_timeout = '5s';

create view pgembed.dead_letters as
select
    pipelines.name as pipeline,
    coalesce(records.long_key, records.key) as key,
    records.attempts,
    records.last_error,
    records.dead_at,
    records.error_kind,
    records.pipeline_id
from pgembed.records
join pgembed.pipelines on pipelines.id = records.pipeline_id
where records.dead_at is not null;

comment on view pgembed.dead_letters is
    'Records given up on, with their last error; `pgembed retry` puts them back into the queue.';
comment on column pgembed.dead_letters.pipeline is 'Its name.';
comment on column pgembed.dead_letters.key is 'The record''s key, as text.';
comment on column pgembed.dead_letters.attempts is 'How often its present text was tried.';
comment on column pgembed.dead_letters.last_error is
    'What the last attempt failed with, one line.';
comment on column pgembed.dead_letters.dead_at is 'When it was given up on.';
comment on column pgembed.dead_letters.error_kind is
    'The error without what differs from record to record; see pgembed.failure_groups.';
comment on column pgembed.dead_letters.pipeline_id is
    'Its number in pgembed.settings: by that, the newest of many are found at once.';

-- The example is looked up for what is shown alone: beneath a LIMIT, for twenty of many thousands.
create view pgembed.failure_groups as
select
    pipelines.name as pipeline,
    grouped.error_kind as error,
    grouped.failures,
    (
        select coalesce(long_key, key)
        from pgembed.records
        where records.pipeline_id = pipelines.id
            and records.error_kind = grouped.error_kind
            and dead_at is not null
        limit 1
    ) as example_key
from pgembed.pipelines
join (
    select pipeline_id, error_kind, count(*) as failures
    from pgembed.records
    where dead_at is not null and error_kind is not null
    group by pipeline_id, error_kind
) as grouped on grouped.pipeline_id = pipelines.id;

comment on view pgembed.failure_groups is
    'The dead letters of each pipeline by what their errors have in common.';
comment on column pgembed.failure_groups.pipeline is 'Its name.';
comment on column pgembed.failure_groups.error is
    'The error without what differs from record to record: N stands for numbers, … for a quoted value.';
comment on column pgembed.failure_groups.failures is 'How many dead letters have it.';
comment on column pgembed.failure_groups.example_key is
    'The key of one of them; see pgembed.dead_letters.';
