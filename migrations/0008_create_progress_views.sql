-- depends: 0007_create_setting_views
--
-- The public SQL interface, in which columns are only ever added: how far pipelines are, and
-- what workers do.
set local lock_timeout = '5s';

create view pgembed.worker_status as
select
    workers.id as worker_id,
    workers.host,
    workers.pid,
    case
        when workers.stopped_at is not null then 'stopped'
        when workers.heartbeat_at < clock_timestamp() - interval '45 seconds' then 'silent'
        else workers.state
    end as state,
    workers.device,
    workers.precision,
    workers.model,
    workers.concurrency,
    workers.version,
    coalesce(recent.records_per_second, 0) as records_per_second,
    coalesce(recent.chunks_per_second, 0) as chunks_per_second,
    workers.memory_bytes,
    workers.started_at,
    workers.heartbeat_at,
    workers.stopped_at,
    workers.stop_reason,
    workers.role,
    (
        select string_agg(pipelines.name || ': ' || reason, '; ' order by pipelines.name)
        from jsonb_each_text(workers.unserved) as unserved (pipeline_id, reason)
        join pgembed.pipelines on pipelines.id = unserved.pipeline_id::bigint
    ) as unserved,
    workers.fp32_chunks,
    served.pipelines,
    workers.records,
    workers.last_commit_at,
    workers.last_error,
    workers.last_error_at,
    workers.leases_lost,
    workers.canary_cosine
from pgembed.workers
-- Summed up once: there may be thousands of workers, and batches of them.
left join (
    select
        worker_id,
        round((sum(records) / max(seconds))::numeric, 1) as records_per_second,
        round((sum(chunks) / max(seconds))::numeric, 1) as chunks_per_second
    from pgembed.recent_batches
    group by worker_id
) as recent on recent.worker_id = workers.id
-- Joined, since most workers work on the same: the planner keeps what it found for them.
cross join lateral (
    select coalesce(array_agg(pipelines.name order by pipelines.id), '{}') as pipelines
    from pgembed.pipelines
    where id in (select unnest(workers.pipeline_ids)) or workers.unserved ? id::text
) as served;

comment on view pgembed.worker_status is
    'Worker processes: what they run on, whether they are heard of, their rates over the last minute.';
comment on column pgembed.worker_status.worker_id is 'Its number, also in its log.';
comment on column pgembed.worker_status.host is 'The machine.';
comment on column pgembed.worker_status.pid is 'The process on it.';
comment on column pgembed.worker_status.state is
    'working, stopping, stopped, or silent: no heartbeat for 45 seconds (lid closed, network cut).';
comment on column pgembed.worker_status.device is 'mps, cuda or cpu.';
comment on column pgembed.worker_status.precision is 'fp16, bf16 or fp32.';
comment on column pgembed.worker_status.model is
    'The one model that this process has loaded.';
comment on column pgembed.worker_status.concurrency is 'Its number of loops.';
comment on column pgembed.worker_status.version is 'Of pgembed.';
comment on column pgembed.worker_status.records_per_second is
    'Records settled over the last minute.';
comment on column pgembed.worker_status.chunks_per_second is
    'Chunks written over the last minute.';
comment on column pgembed.worker_status.memory_bytes is
    'Resident memory, plus what the process holds on its GPU.';
comment on column pgembed.worker_status.started_at is 'When it was ready to work.';
comment on column pgembed.worker_status.heartbeat_at is 'When it was last heard of.';
comment on column pgembed.worker_status.stopped_at is 'When it ended.';
comment on column pgembed.worker_status.stop_reason is
    'Such as drained, stopped, memory limit passed, or how it crashed.';
comment on column pgembed.worker_status.role is 'The database role that it works as.';
comment on column pgembed.worker_status.unserved is
    'Pipelines that it leaves to others, each with the reason: its role lacks a right, its machine lacks the model. Null for none.';

comment on column pgembed.worker_status.fp32_chunks is
    'Chunks of which its precision made no vector, computed again in fp32 on its machine.';
comment on column pgembed.worker_status.pipelines is
    'Those that it works on, and those that it leaves to others.';
comment on column pgembed.worker_status.records is
    'Records that it has settled, as of its last heartbeat.';
comment on column pgembed.worker_status.last_commit_at is
    'When it last committed a claim, as of its last heartbeat.';
comment on column pgembed.worker_status.last_error is
    'Why it last gave a claim back that it did not commit; null for never.';
comment on column pgembed.worker_status.last_error_at is 'When that was.';
comment on column pgembed.worker_status.leases_lost is
    'Claims that the server took back from it, or that ran out of time.';

comment on column pgembed.worker_status.canary_cosine is
    'The lowest cosine of known texts to their vectors in fp32 on the CPU, since it computes as it does.';

create view pgembed.progress as
-- What each pipeline has reached: the sums of all signed changes.
with recursive reached as (
    select
        pipeline_id,
        sum(embedded) as embedded,
        sum(empty) as empty,
        sum(dead) as dead,
        sum(chunks) as chunks_written,
        max(committed_at) as last_commit_at
    from pgembed.batches
    group by pipeline_id
),
recent as (
    select
        pipeline_id,
        sum(records) / max(seconds) as records_per_second,
        sum(chunks) / max(seconds) as chunks_per_second,
        sum(tokens) / max(seconds) as tokens_per_second
    from pgembed.recent_batches
    group by pipeline_id
),
-- What is queued. Records with a ledger state are in `reached` too, and counted once. How many
-- records a sweep will find is not known yet: it counts as one, so that something is pending.
queued as (
    select
        pipeline_id,
        sum(greatest(records, 1)) as pending,
        coalesce(sum(records) filter (where not known), 0) as unseen,
        coalesce(sum(records) filter (where retrying), 0) as retrying,
        min(created_at) as oldest_pending_at,
        min(created_at) filter (where priority = 0) as oldest_change_at
    from pgembed.work
    group by pipeline_id
),
-- Looked up once: there may be thousands of workers' rows, and hundreds of pipelines.
live as materialized (
    select served.pipeline_id, count(*) as workers
    from pgembed.workers
    cross join unnest(pipeline_ids) as served (pipeline_id)
    where stopped_at is null and heartbeat_at > statement_timestamp() - interval '45 seconds'
    group by served.pipeline_id
),
flying as (
    select pipeline, sum(records) as in_flight
    from pgembed.in_flight
    group by pipeline
),
-- The tables of each source: itself, and what inherits from it. By name: to_regclass raises an error
-- without the right to use the schema.
family (pipeline_id, oid) as (
    select pipelines.id, pg_class.oid
    from pgembed.pipelines
    join pg_namespace on nspname = source_schema
    join pg_class on relnamespace = pg_namespace.oid and relname = source_table
    where where_condition is null
    union
    select pipeline_id, inhrelid
    from family
    join pg_inherits on inhparent = family.oid
),
-- The server counts rows as they come and go, and begins anew when it has crashed: until it has
-- looked at the table again, what it noted down at the last look is as good.
source as (
    select
        pipeline_id,
        sum(nullif(
            case
                when coalesce(
                    pg_stat_get_last_vacuum_time(pg_class.oid),
                    pg_stat_get_last_autovacuum_time(pg_class.oid),
                    pg_stat_get_last_analyze_time(pg_class.oid),
                    pg_stat_get_last_autoanalyze_time(pg_class.oid)
                ) is null
                then greatest(pg_stat_get_live_tuples(pg_class.oid), reltuples::bigint)
                else pg_stat_get_live_tuples(pg_class.oid)
            end,
            0
        )) as estimated_rows
    from family
    join pg_class on pg_class.oid = family.oid
    group by pipeline_id
    -- Nothing is counted of a view, and of a foreign table not in time.
    having bool_and(relkind in ('r', 'p', 'm'))
),
counted as (
    select
        pipelines.id,
        pipelines.name,
        pipelines.state,
        pipelines.state_reason,
        replaced.name as next_of,
        coalesce(reached.embedded + reached.empty + reached.dead, 0) + coalesce(queued.unseen, 0) as total,
        coalesce(reached.embedded + reached.empty, 0) as done,
        coalesce(queued.pending, 0) as pending,
        coalesce(queued.unseen, 0) as pending_new,
        coalesce(queued.retrying, 0) as retrying,
        coalesce(reached.dead, 0) as dead,
        coalesce(flying.in_flight, 0) as in_flight,
        coalesce(live.workers, 0) as live_workers,
        coalesce(recent.records_per_second, 0)::numeric as records_per_second,
        coalesce(recent.chunks_per_second, 0)::numeric as chunks_per_second,
        coalesce(recent.tokens_per_second, 0)::numeric as tokens_per_second,
        reached.last_commit_at,
        queued.oldest_pending_at,
        queued.oldest_change_at,
        source.estimated_rows
    from pgembed.pipelines
    left join pgembed.pipelines as replaced on replaced.id = pipelines.successor_of
    left join reached on reached.pipeline_id = pipelines.id
    left join recent on recent.pipeline_id = pipelines.id
    left join queued on queued.pipeline_id = pipelines.id
    left join live on live.pipeline_id = pipelines.id
    left join flying on flying.pipeline = pipelines.name
    left join source on source.pipeline_id = pipelines.id
)
select
    name as pipeline,
    state,
    total::bigint,
    done::bigint,
    pending::bigint,
    in_flight::bigint,
    retrying::bigint,
    dead::bigint,
    case
        when total = 0 then 0
        -- Not rounded: 100 is said of what is done, and of nothing else.
        else trunc(100.0 * greatest(done - (pending - pending_new), 0) / total, 1)
    end as percent,
    round(records_per_second, 1) as records_per_second,
    round(chunks_per_second, 1) as chunks_per_second,
    round(tokens_per_second, 0) as tokens_per_second,
    case
        when pending > 0 and records_per_second > 0
        then make_interval(secs => round(pending / records_per_second)::double precision)
    end as eta,
    live_workers,
    last_commit_at,
    oldest_pending_at,
    state_reason,
    next_of,
    pending_new::bigint,
    (pending - pending_new)::bigint as pending_changed,
    -- Statistics are never exact: half a percent says nothing.
    (
        case
            when estimated_rows is null then null
            when estimated_rows - total > estimated_rows / 200 then estimated_rows - total
            else 0
        end
    )::bigint as never_queued,
    oldest_change_at
from counted;

comment on view pgembed.progress is
    'One row per pipeline: how far it is, how fast it goes, what is left. Rates are over the last minute.';
comment on column pgembed.progress.pipeline is 'Its name.';
comment on column pgembed.progress.state is 'active or paused.';
comment on column pgembed.progress.total is
    'Records that have a ledger state or wait in the queue; what was never queued is not in it.';
comment on column pgembed.progress.done is
    'Records embedded, or empty and so without vectors; those that are pending again included.';
comment on column pgembed.progress.pending is
    'Records that wait in the queue, those in flight and those waiting for a retry included. One that changed twice counts twice, the sweep that a TRUNCATE leaves once.';
comment on column pgembed.progress.in_flight is
    'Pending records that a worker holds at this moment.';
comment on column pgembed.progress.retrying is 'Pending records that failed before.';
comment on column pgembed.progress.dead is 'Records given up on; see pgembed.dead_letters.';
comment on column pgembed.progress.percent is
    'Of total, what is done and not pending again. A dead letter is not done.';
comment on column pgembed.progress.records_per_second is
    'Records that were settled over the last minute: written, found unchanged, forgotten or given up on.';
comment on column pgembed.progress.chunks_per_second is
    'Chunks written over the last minute.';
comment on column pgembed.progress.tokens_per_second is
    'Tokens of the documents over the last minute, overlaps counted once.';
comment on column pgembed.progress.eta is
    'Time left: pending at records_per_second; null when nothing is pending or nothing moves.';
comment on column pgembed.progress.live_workers is
    'Worker processes of this pipeline that were heard of in the last 45 seconds.';
comment on column pgembed.progress.last_commit_at is
    'The last commit of a worker or of a retry.';
comment on column pgembed.progress.oldest_pending_at is
    'When the oldest waiting item was queued.';
comment on column pgembed.progress.state_reason is 'Why it is paused.';
comment on column pgembed.progress.next_of is
    'The pipeline that this one is the next generation of, until it takes its place.';
comment on column pgembed.progress.pending_new is
    'Pending records that have no ledger state yet. Total is done, dead and these.';
comment on column pgembed.progress.pending_changed is
    'Pending records that have one: they wait again, and are counted as done or dead, too.';
comment on column pgembed.progress.never_queued is
    'About how many rows the source has besides total, as PostgreSQL''s statistics have it: an estimate, with 0 for a difference of half a percent. Null where they do not tell: of a view, of a foreign table, of a pipeline with --where.';
comment on column pgembed.progress.oldest_change_at is
    'When the oldest change of the source that waits was captured, or a record was put first by pgembed.enqueue; null where none waits.';
