-- depends: 0004_create_history
--
-- The public SQL interface, in which columns are only ever added: what is done now, and
-- what was.
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
