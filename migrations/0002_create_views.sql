-- depends: 0001_create_queue
--
-- The public SQL interface: what an operator selects from. Columns are only ever added.
set local lock_timeout = '5s';

-- An attempt is in flight while its claim's transaction runs. The attempt is inserted by a later
-- transaction than the claim, so a claim that is not below the snapshot's end comes from another
-- cluster (a restored dump), where pg_xact_status would raise an error.
create view pgembed.in_flight as
select
    pipelines.name as pipeline,
    work.id as work_id,
    work.records,
    work.alone,
    workers.host,
    workers.pid,
    attempts.started_at,
    clock_timestamp() - attempts.started_at as running_for
from pgembed.attempts
join pgembed.work on work.id = attempts.work_id
join pgembed.pipelines on pipelines.id = work.pipeline_id
left join pgembed.workers on workers.id = attempts.worker_id
where case
    when attempts.claim_xid < pg_snapshot_xmax(pg_current_snapshot())
    then pg_xact_status(attempts.claim_xid) = 'in progress'
    else false
end;

comment on view pgembed.in_flight is 'Work items that a worker holds at this moment.';
comment on column pgembed.in_flight.pipeline is 'Its name.';
comment on column pgembed.in_flight.work_id is 'The item.';
comment on column pgembed.in_flight.records is 'How many keys it has.';
comment on column pgembed.in_flight.alone is 'A worker process died over it before.';
comment on column pgembed.in_flight.host is 'The machine that holds it.';
comment on column pgembed.in_flight.pid is 'The worker process that holds it.';
comment on column pgembed.in_flight.started_at is 'Since when it is held.';
comment on column pgembed.in_flight.running_for is 'How long it has been held.';

-- A claim that is known to be rolled back does not count, since its items are claimed anew, and
-- neither does one whose attempt does not show here, since it has yet to read.
create view pgembed.claimed_work as
select work_id
from pgembed.attempts
where case
    when claim_xid < pg_snapshot_xmax(pg_current_snapshot())
    then pg_xact_status(claim_xid) is distinct from 'aborted'
    else false
end;

comment on view pgembed.claimed_work is
    'Work items of claims that may have read their records before this statement began: that a key is among them does not say that its present text will be seen.';
comment on column pgembed.claimed_work.work_id is 'The item.';

-- Rates are over the last minute, or over the time since work began if that is shorter: `seconds`
-- is how long ago the work on the batch began, at most a minute.
create view pgembed.recent_batches as
select
    pipeline_id,
    worker_id,
    committed_at,
    records,
    chunks,
    tokens,
    least(60.0, greatest(1.0, extract(epoch from clock_timestamp() - committed_at)
        + read_seconds + chunk_seconds + embed_seconds + write_seconds)) as seconds
from pgembed.batches
-- Not clock_timestamp(), for which no index can be used.
where committed_at > statement_timestamp() - interval '1 minute'
    and not rolled_up;

comment on view pgembed.recent_batches is 'The commits of the last minute, behind the rates of the other views.';
comment on column pgembed.recent_batches.pipeline_id is 'The pipeline.';
comment on column pgembed.recent_batches.worker_id is 'The worker process; null for a retry.';
comment on column pgembed.recent_batches.committed_at is 'When it was committed.';
comment on column pgembed.recent_batches.records is 'Records that it settled.';
comment on column pgembed.recent_batches.chunks is 'Chunks that it wrote.';
comment on column pgembed.recent_batches.tokens is 'Tokens of its documents.';
comment on column pgembed.recent_batches.seconds is
    'How long ago the work on it began, at most a minute.';

-- In steps of 20 seconds of the clock: commits come in bursts, and a screen draws columns.
create view pgembed.recent_history as
select
    pipelines.name as pipeline,
    batches.worker_id,
    to_timestamp(20 * floor(extract(epoch from committed_at)::double precision / 20)) as step,
    min(committed_at - make_interval(
        secs => read_seconds + chunk_seconds + embed_seconds + write_seconds
    )) as began_at,
    max(committed_at) as last_commit_at,
    count(*) as commits,
    sum(batches.records)::bigint as records,
    sum(failed)::bigint as failed,
    sum(chunks)::bigint as chunks,
    sum(tokens)::bigint as tokens,
    sum(read_seconds) as read_seconds,
    sum(chunk_seconds) as chunk_seconds,
    sum(embed_seconds) as embed_seconds,
    sum(write_seconds) as write_seconds,
    sum(lock_seconds) as lock_seconds
from pgembed.pipelines
join pgembed.batches on batches.pipeline_id = pipelines.id
where committed_at > statement_timestamp() - interval '30 minutes'
    and batches.worker_id is not null
    and not rolled_up
group by 1, 2, 3;

comment on view pgembed.recent_history is
    'The commits of the last half hour by pipeline, worker process and 20 seconds of the clock.';
comment on column pgembed.recent_history.pipeline is 'Its name.';
comment on column pgembed.recent_history.worker_id is 'The worker process.';
comment on column pgembed.recent_history.step is 'When the 20 seconds began.';
comment on column pgembed.recent_history.began_at is 'When the work on the first of the commits began.';
comment on column pgembed.recent_history.last_commit_at is 'When the last of them was made.';
comment on column pgembed.recent_history.commits is 'How many commits.';
comment on column pgembed.recent_history.records is 'Records that were settled.';
comment on column pgembed.recent_history.failed is 'Records whose attempt failed.';
comment on column pgembed.recent_history.chunks is 'Chunks that were written.';
comment on column pgembed.recent_history.tokens is 'Tokens of the documents.';
comment on column pgembed.recent_history.read_seconds is 'Seconds of reading, summed over the loops of all workers; the others likewise.';
comment on column pgembed.recent_history.chunk_seconds is 'Seconds of cutting into chunks.';
comment on column pgembed.recent_history.embed_seconds is 'Seconds at the device, the wait for it included.';
comment on column pgembed.recent_history.write_seconds is 'Seconds of writing, the wait for locks included.';
comment on column pgembed.recent_history.lock_seconds is 'Of these, seconds of waiting for locks.';

create view pgembed.history as
select
    pipelines.name as pipeline,
    minute,
    sum(commits)::bigint as commits,
    sum(records)::bigint as records,
    sum(failed)::bigint as failed,
    sum(dead)::bigint as dead,
    sum(chunks)::bigint as chunks,
    sum(tokens)::bigint as tokens,
    sum(read_seconds) as read_seconds,
    sum(chunk_seconds) as chunk_seconds,
    sum(embed_seconds) as embed_seconds,
    sum(write_seconds) as write_seconds,
    sum(lock_seconds) as lock_seconds
from pgembed.pipelines
-- Of each pipeline by itself, so that the history of one is found by the indexes.
cross join lateral (
    select
        minute, commits, records, failed, dead, chunks, tokens, read_seconds, chunk_seconds,
        embed_seconds, write_seconds, lock_seconds
    from pgembed.minutes
    where minutes.pipeline_id = pipelines.id
        and minute > statement_timestamp() - interval '1 day'
    union all
    select
        date_trunc('minute', committed_at), 1, records, failed, dead, chunks, tokens,
        read_seconds, chunk_seconds, embed_seconds, write_seconds, lock_seconds
    from pgembed.batches
    where batches.pipeline_id = pipelines.id
        and committed_at > date_trunc('minute', statement_timestamp() - interval '1 day')
            + interval '1 minute'
        and not rolled_up
) as made
group by pipelines.name, minute;

comment on view pgembed.history is
    'What was committed of a pipeline in each minute of the last 24 hours; no row for a minute without a commit.';
comment on column pgembed.history.pipeline is 'Its name.';
comment on column pgembed.history.minute is 'When the minute began.';
comment on column pgembed.history.commits is 'Commits of workers and retries.';
comment on column pgembed.history.records is 'Records that were settled.';
comment on column pgembed.history.failed is 'Records whose attempt failed, retried or given up on.';
comment on column pgembed.history.dead is 'By how many the dead letters have grown; less than 0 after a retry.';
comment on column pgembed.history.chunks is 'Chunks that were written.';
comment on column pgembed.history.tokens is 'Tokens of the documents, overlaps counted once.';
comment on column pgembed.history.read_seconds is 'Seconds of reading, summed over the loops of all workers; the others likewise.';
comment on column pgembed.history.chunk_seconds is 'Seconds of cutting into chunks.';
comment on column pgembed.history.embed_seconds is 'Seconds at the device, the wait for it included.';
comment on column pgembed.history.write_seconds is 'Seconds of writing, the wait for locks included.';
comment on column pgembed.history.lock_seconds is 'Of these, seconds of waiting for locks.';

create view pgembed.events as
select happened_at, kind, pipeline, worker_id, host, pid, detail
from pgembed.event_log;

comment on view pgembed.events is
    'What happened to pipelines and workers in the last seven days.';
comment on column pgembed.events.happened_at is 'When.';
comment on column pgembed.events.kind is
    'Of a worker: started, restarted (after a crash), stopped, crashed, recovered (heard of again after 45 seconds or more), lease lost. Of a pipeline: paused, resumed, switched (to its next generation).';
comment on column pgembed.events.pipeline is 'Its name then; null for what is of a worker.';
comment on column pgembed.events.worker_id is 'The worker process; null for what is of a pipeline.';
comment on column pgembed.events.host is 'Its machine.';
comment on column pgembed.events.pid is 'The process on it.';
comment on column pgembed.events.detail is 'Why, if that is known.';

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

-- Any index that a search can be ordered by counts, the user's own too: of the vectors themselves by
-- an operator class of the cosine, or of what pgvector makes smaller of them. An access method of
-- another extension calls its operator class by the same name. Of a partitioned table, those of its
-- partitions count as well, but for what is a part of an index of the whole.
create view pgembed.vector_indexes as
select
    pipelines.name as pipeline,
    index.relname::text as index_name,
    amname::text as method,
    indisvalid as is_valid,
    not indisvalid and exists (
        select
        from pg_locks
        where pg_locks.relation in (select relid from pg_partition_tree(target.oid) union select target.oid)
            and database = (select oid from pg_database where datname = current_database())
            and mode = 'ShareUpdateExclusiveLock'
            and granted
    ) as is_building,
    kind.quantize,
    built_with.parameters,
    indpred is null and indrelid = target.oid as is_whole,
    stored.size_bytes,
    stored.live_rows,
    stored.dead_rows,
    case when indpred is null and indrelid <> target.oid then (
        select format('%I.%I', nspname, relname)
        from pg_class
        join pg_namespace on pg_namespace.oid = relnamespace
        where pg_class.oid = indrelid
    ) end as part,
    case
        when (ef_search_scan, ef_search_parameters) = (kind.quantize, built_with.parameters)
        then ef_search_recall
    end as measured_recall
from pgembed.pipelines
join pg_namespace on nspname = target_schema
join pg_class as target on target.relnamespace = pg_namespace.oid and target.relname = target_table
cross join lateral (
    select target.oid as relid
    union all
    select relid from pg_partition_tree(target.oid) where relid <> target.oid
) as part
-- One look-up a table: joined, those of all tables are gone through again for each of them, since
-- they are all called alike, and every index of the database with them.
cross join lateral (
    select attname, attnum
    from pg_attribute
    where attrelid = part.relid and attname = target_columns ->> 'embedding'
    offset 0
) as vectors
cross join lateral (
    select indexrelid, indrelid, indisvalid, indkey, indclass, indexprs, indpred
    from pg_index
    where indrelid = part.relid
    offset 0
) as found
join pg_opclass on pg_opclass.oid = indclass[0]
    and (opcname like '%cosine%' or opcname = 'bit_hamming_ops')
join pg_namespace as extension on extension.oid = opcnamespace
cross join lateral (
    select relname, relam, reloptions, relispartition
    from pg_class
    where pg_class.oid = indexrelid
    offset 0
) as index
join pg_am on pg_am.oid = index.relam
cross join lateral (
    values
        ('none', opcname like '%cosine%' and indkey[0] = attnum),
        (
            'halfvec',
            opcname = 'halfvec_cosine_ops' and pg_get_expr(indexprs, indrelid) in (
                format('(%I)::halfvec(%s)', attname, dimensions),
                format('(%I)::%I.halfvec(%s)', attname, extension.nspname, dimensions)
            )
        ),
        (
            'binary',
            opcname = 'bit_hamming_ops' and pg_get_expr(indexprs, indrelid) in (
                format('(binary_quantize(%I))::bit(%s)', attname, dimensions),
                format('(%I.binary_quantize(%I))::bit(%s)', extension.nspname, attname, dimensions)
            )
        )
) as kind (quantize, is_of_it)
-- An index of the whole is stored with the partitions, each of which has its own.
cross join lateral (
    select
        sum(pg_relation_size(indexrelid))::bigint as size_bytes,
        sum(pg_stat_get_live_tuples(indrelid))::bigint as live_rows,
        sum(pg_stat_get_dead_tuples(indrelid))::bigint as dead_rows
    from (
        select indexrelid
        union all
        select relid from pg_partition_tree(indexrelid) where relid <> indexrelid
    ) as piece (relid)
    cross join lateral (
        select indexrelid, indrelid
        from pg_index
        join pg_class on pg_class.oid = indexrelid
        where indexrelid = piece.relid and relkind = 'i'
        offset 0
    ) as stored_piece
) as stored
cross join lateral (
    select coalesce(jsonb_object_agg(split_part(option, '=', 1), split_part(option, '=', 2)), '{}')
    from unnest(index.reloptions) as option
) as built_with (parameters)
where kind.is_of_it and not index.relispartition;

comment on view pgembed.vector_indexes is 'The vector indexes of the pipelines'' targets.';
comment on column pgembed.vector_indexes.pipeline is 'Its name.';
comment on column pgembed.vector_indexes.index_name is 'The index.';
comment on column pgembed.vector_indexes.method is 'hnsw, ivfflat or that of another extension.';
comment on column pgembed.vector_indexes.is_valid is
    'A search can use it; false while it is built, and if that was cut short.';
comment on column pgembed.vector_indexes.is_building is
    'It is not valid, and a session holds the lock on the table that a build takes, and a vacuum.';
comment on column pgembed.vector_indexes.quantize is
    'What is indexed: none for the vectors themselves, halfvec for 16 bits and binary for one bit of each dimension.';
comment on column pgembed.vector_indexes.parameters is 'What it was built with, such as {"m": "16"}.';
comment on column pgembed.vector_indexes.is_whole is
    'It is of all vectors, and not of those that a condition lets in or of one partition.';
comment on column pgembed.vector_indexes.size_bytes is 'Its size on the disk; 0 while it is empty.';
comment on column pgembed.vector_indexes.live_rows is
    'Rows of its table, as PostgreSQL''s statistics have them.';
comment on column pgembed.vector_indexes.dead_rows is
    'Rows that are gone, and that the next vacuum takes out of the table and of the whole index.';
comment on column pgembed.vector_indexes.part is
    'The partition of all of whose vectors it is; null for an index of the whole, parts of which are not listed, or of what a condition lets in.';
comment on column pgembed.vector_indexes.measured_recall is
    'The share of the nearest chunks that pgembed evaluate found by it, with the ef_search that it kept; null if that was measured of another index.';

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

-- How pipelines are set up, for people who look: without a right to the table, which has the digests
-- of the model's files and the types that workers need, too.
create view pgembed.settings as
select
    pipelines.name as pipeline,
    replaced.name as next_of,
    pipelines.generation,
    pipelines.source_schema,
    pipelines.source_table,
    (
        select array_agg(part ->> 'name' order by place)
        from jsonb_array_elements(pipelines.key_columns) with ordinality as listed (part, place)
    ) as key_columns,
    pipelines.text_fields,
    pipelines.template,
    pipelines.chunk_template,
    pipelines.where_condition,
    pipelines.target_schema,
    pipelines.target_table,
    pipelines.into_column,
    pipelines.model,
    pipelines.model_revision,
    pipelines.model_fingerprint,
    pipelines.dimensions,
    pipelines.vector_type,
    pipelines.text,
    pipelines.document_prompt,
    pipelines.query_prompt,
    pipelines.chunking,
    pipelines.chunk_tokens,
    pipelines.overlap_tokens,
    pipelines.max_attempts,
    pipelines.priority,
    pipelines.index_method,
    pipelines.quantize,
    pipelines.lexical,
    pipelines.ef_search,
    pipelines.lexical_weight,
    pipelines.created_at,
    pipelines.id as pipeline_id
from pgembed.pipelines
left join pgembed.pipelines as replaced on replaced.id = pipelines.successor_of;

comment on view pgembed.settings is 'How each pipeline is set up.';
comment on column pgembed.settings.pipeline is 'Its name.';
comment on column pgembed.settings.next_of is
    'The pipeline that this one is the next generation of, until it takes its place.';
comment on column pgembed.settings.generation is
    'Raised whenever what is embedded of a record became another thing.';
comment on column pgembed.settings.source_schema is 'Schema of the table or view with the text.';
comment on column pgembed.settings.source_table is 'The table or view with the text.';
comment on column pgembed.settings.key_columns is 'The columns of its key, in order.';
comment on column pgembed.settings.text_fields is
    'Columns that make the document; none where there is a template.';
comment on column pgembed.settings.template is 'Makes the document out of columns; null for none.';
comment on column pgembed.settings.chunk_template is
    'What the model reads for a chunk; null for the chunk alone.';
comment on column pgembed.settings.where_condition is
    'SQL over the source: only rows for which it is true are records.';
comment on column pgembed.settings.target_schema is 'Schema of the table with the vectors.';
comment on column pgembed.settings.target_table is 'The table with the vectors.';
comment on column pgembed.settings.into_column is
    'Column of the source that holds the vectors; null where they have a table of their own.';
comment on column pgembed.settings.model is 'The model''s name or folder.';
comment on column pgembed.settings.model_revision is 'Its revision on the hub, if it came from there.';
comment on column pgembed.settings.model_fingerprint is 'SHA-256 over its files.';
comment on column pgembed.settings.dimensions is 'Length of a vector.';
comment on column pgembed.settings.vector_type is 'vector or halfvec.';
comment on column pgembed.settings.text is
    'The target stores the texts of chunks; else only where they stand in the document.';
comment on column pgembed.settings.document_prompt is 'What the model reads before a text; null for nothing.';
comment on column pgembed.settings.query_prompt is 'What it reads before a query; null for nothing.';
comment on column pgembed.settings.chunking is 'tokens, or none for one chunk a record.';
comment on column pgembed.settings.chunk_tokens is 'Most tokens of a chunk.';
comment on column pgembed.settings.overlap_tokens is
    'Most tokens that a chunk has in common with the one before it.';
comment on column pgembed.settings.max_attempts is
    'Failed attempts after which a record becomes a dead letter.';
comment on column pgembed.settings.priority is
    'Share of a worker''s time: one of 20 gets twice what one of 10 gets.';
comment on column pgembed.settings.index_method is
    'The vector index that workers build once nothing is pending; null for none.';
comment on column pgembed.settings.quantize is 'What that index makes smaller of the vectors: none, halfvec or binary.';
comment on column pgembed.settings.lexical is
    'Workers build an index of the chunks'' words once nothing is pending.';
comment on column pgembed.settings.lexical_weight is
    'Weight of words in hybrid searches that pgembed evaluate has found; null for 0.5.';
comment on column pgembed.settings.ef_search is
    'The hnsw.ef_search that pgembed evaluate has found enough; null where it was not asked.';
comment on column pgembed.settings.created_at is 'When the pipeline was made.';
comment on column pgembed.settings.pipeline_id is 'Its number, which a renamed one keeps.';
