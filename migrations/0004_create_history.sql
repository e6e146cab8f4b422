-- depends: 0003_create_ledger
--
-- Which workers there are, what they have committed, and what has happened.
set local lock_timeout = '5s';

create table pgembed.workers (
    id bigint generated always as identity primary key,
    host text not null,
    pid integer not null,
    device text not null,
    precision text not null,
    model text not null,
    version text not null,
    concurrency integer not null,
    pipeline_ids bigint[] not null,
    role text not null default current_user,
    unserved jsonb not null default '{}',
    memory_bytes bigint,
    fp32_chunks bigint not null default 0,
    state text not null default 'working',
    started_at timestamptz not null default clock_timestamp(),
    heartbeat_at timestamptz not null default clock_timestamp(),
    stopped_at timestamptz,
    stop_reason text,
    records bigint not null default 0,
    leases_lost integer not null default 0,
    last_commit_at timestamptz,
    last_error text,
    last_error_at timestamptz,
    canary_cosine double precision,
    constraint workers_canary_cosine_is_one check (canary_cosine between -1 and 1),
    constraint workers_unserved_is_an_object check (jsonb_typeof(unserved) = 'object')
);

-- Most work on the same pipelines, which a sample of so long values does not show: the planner then
-- keeps what it has found for one of them.
alter table pgembed.workers alter column pipeline_ids set (n_distinct = 10);

-- Those that run, among thousands that have.
create index workers_running on pgembed.workers (heartbeat_at) where stopped_at is null;

-- Those that stopped lately.
create index workers_stopped on pgembed.workers (stopped_at) where stopped_at is not null;

comment on table pgembed.workers is
    'Worker processes, for people to look at: no correctness depends on a heartbeat.';
comment on column pgembed.workers.pipeline_ids is 'The pipelines that it works on.';
comment on column pgembed.workers.role is 'The role that it works as.';
comment on column pgembed.workers.unserved is
    'Pipelines that it leaves to others, with the reason by the pipeline''s id: a right that its role lacks, a model that its machine lacks.';
comment on column pgembed.workers.state is
    'What the process says of itself: working or stopping; stopped when it has signed off. See pgembed.worker_status.';
comment on column pgembed.workers.heartbeat_at is 'When it last said that it lives.';
comment on column pgembed.workers.fp32_chunks is
    'Chunks that it has computed again in fp32; see pgembed.batches.';
comment on column pgembed.workers.memory_bytes is 'Resident memory and device memory of the process.';
comment on column pgembed.workers.canary_cosine is
    'The lowest cosine of known texts, computed as it computes, to their vectors in fp32 on the CPU.';
comment on column pgembed.workers.records is
    'Records that it has settled, as of its last heartbeat.';
comment on column pgembed.workers.leases_lost is
    'Claims that the server took back from it, or that ran out of time.';
comment on column pgembed.workers.last_error is
    'Why it gave back its last claim that was not committed.';

create table pgembed.batches (
    id bigint generated always as identity primary key,
    pipeline_id bigint not null,
    worker_id bigint,
    committed_at timestamptz not null default clock_timestamp(),
    records bigint not null default 0,
    embedded bigint not null default 0,
    empty bigint not null default 0,
    dead bigint not null default 0,
    unchanged bigint not null default 0,
    failed bigint not null default 0,
    chunks bigint not null default 0,
    tokens bigint not null default 0,
    unknown_tokens bigint not null default 0,
    cache_hits bigint not null default 0,
    reused bigint not null default 0,
    fp32_chunks bigint not null default 0,
    read_seconds double precision not null default 0,
    chunk_seconds double precision not null default 0,
    embed_seconds double precision not null default 0,
    write_seconds double precision not null default 0,
    lock_seconds double precision not null default 0,
    rolled_up boolean not null default false
);

-- The rates of the last minute, the last commit and the roll-up of old rows.
create index batches_by_time on pgembed.batches (pipeline_id, committed_at);

comment on table pgembed.batches is
    'One row per commit, never changed; progress and rates are sums over it.';
comment on column pgembed.batches.worker_id is
    'The worker process; null for a retry and for a sum of older rows.';
comment on column pgembed.batches.records is
    'Records that were settled: written, found unchanged, forgotten or given up on.';
comment on column pgembed.batches.unchanged is 'Records that needed nothing.';
comment on column pgembed.batches.tokens is
    'Of the documents that were read, overlaps counted once.';
comment on column pgembed.batches.unknown_tokens is
    'Those of them that the model does not know.';
comment on column pgembed.batches.embed_seconds is
    'From the first chunk to the last vector, the wait for the device included.';
comment on column pgembed.batches.lock_seconds is
    'Of write_seconds, those in which others held what it had to lock.';
comment on column pgembed.batches.embedded is 'Signed change of the number of records in state embedded; empty and dead likewise.';
comment on column pgembed.batches.chunks is 'Chunks written by this commit.';
comment on column pgembed.batches.cache_hits is
    'Chunks whose text the worker process had embedded before.';
comment on column pgembed.batches.reused is
    'Chunks of changed records that keep the vector which the target had of the same text.';
comment on column pgembed.batches.fp32_chunks is
    'Chunks of which the worker''s precision made no vector, since a number grew too large for it: computed again in fp32 on the same machine.';
comment on column pgembed.batches.failed is 'Records whose attempt failed, retried or given up on.';
comment on column pgembed.batches.rolled_up is 'A sum of older rows that were folded into this one.';

create table pgembed.minutes (
    pipeline_id bigint not null,
    minute timestamptz not null,
    commits bigint not null,
    records bigint not null,
    failed bigint not null,
    dead bigint not null,
    chunks bigint not null,
    tokens bigint not null,
    read_seconds double precision not null,
    chunk_seconds double precision not null,
    embed_seconds double precision not null,
    write_seconds double precision not null,
    lock_seconds double precision not null
);

-- A pipeline's day, in order, and what of it is older than that.
create index minutes_by_time on pgembed.minutes (pipeline_id, minute);

comment on table pgembed.minutes is
    'Folded rows of pgembed.batches by the minute, kept for a day: 1,440 rows a pipeline at most, 0.2 MB. What is not folded yet is in pgembed.batches still; pgembed.history has both.';

create table pgembed.event_log (
    id bigint generated always as identity primary key,
    happened_at timestamptz not null default clock_timestamp(),
    kind text not null,
    pipeline text,
    worker_id bigint,
    host text,
    pid integer,
    detail text,
    constraint event_log_kind_is_known check (kind in (
        'started', 'restarted', 'stopped', 'crashed', 'recovered', 'lease lost',
        'paused', 'resumed', 'switched'
    ))
);

-- The latest, and those that are old enough to go.
create index event_log_by_time on pgembed.event_log (happened_at);

comment on table pgembed.event_log is
    'What happened to pipelines and workers, written by triggers on their tables and kept for seven days; see pgembed.events.';
comment on column pgembed.event_log.pipeline is 'Its name then; null for what is of a worker.';
comment on column pgembed.event_log.worker_id is 'The worker process; null for what is of a pipeline.';
