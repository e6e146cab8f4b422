-- depends: 0001_create_pipelines
--
-- The queue. Producers only ever insert into `work`; a worker holds the rows it has claimed locked in
-- an open transaction and deletes them in the same commit that writes the vectors. There are no
-- foreign keys on the tables that are written for every claim: their locks would serialise workers
-- on one row of `pipelines`.
set local lock_timeout = '5s';

create table pgembed.work (
    id bigint generated always as identity primary key,
    pipeline_id bigint not null,
    keys text[] not null,
    records integer not null,
    first_key text generated always as (keys[1]) stored,
    last_key text generated always as (keys[cardinality(keys)]) stored,
    priority smallint not null default 1,
    known boolean not null default false,
    embed_again boolean not null default false,
    retrying boolean not null default false,
    allow_deletes boolean not null default true,
    alone boolean not null default false,
    deaths integer not null default 0,
    died_of text,
    compare_after text,
    sweep_after text,
    available_at timestamptz not null default clock_timestamp(),
    created_at timestamptz not null default clock_timestamp(),
    delayed boolean generated always as (available_at > created_at) stored,
    constraint work_records_match_keys check (records = cardinality(keys) and records <= 256),
    constraint work_is_keys_or_a_sweep check ((records = 0) = (coalesce(compare_after, sweep_after) is not null)),
    constraint work_deaths_are_counted check (deaths >= 0)
);

-- The claim: one pipeline's items in order. `alone` leads because suspects are claimed apart.
-- What was delayed lies apart: a poll would have to step over all of it.
create index work_claim_order on pgembed.work (pipeline_id, alone, priority, delayed, id);

-- What was delayed, in the order in which it may be claimed.
create index work_delayed on pgembed.work (pipeline_id, alone, priority, available_at, id)
    where delayed;

-- Comparisons that wait: whoever would queue one first looks whether another will do. There are
-- few, and other items cost nothing here.
create index work_comparisons on pgembed.work (pipeline_id) where compare_after is not null;

comment on table pgembed.work is
    'The work-claim table: one row per batch of up to 256 source keys, deleted when it is done.';
comment on column pgembed.work.keys is
    'Keys of source records as text; of a key of several columns, a JSON array.';
comment on column pgembed.work.first_key is
    'Of an item of bulk loading, whose keys are in order: enqueue skips what it cannot hold without unpacking the array.';
comment on column pgembed.work.last_key is 'See first_key.';
comment on column pgembed.work.priority is '0: changes of the source, 1: bulk loading, retries, and what the generation before has settled: a switch waits for these.';
comment on column pgembed.work.known is 'The records have a ledger state already, so they are counted there.';
comment on column pgembed.work.embed_again is 'Embed the records even if nothing about them changed.';
comment on column pgembed.work.retrying is 'The one record of this item failed before.';
comment on column pgembed.work.allow_deletes is
    'Whoever queued this says that what the source does not have has been deleted: its vectors go. Without that, a row that is not there is no evidence, and its vectors stay until that is said.';
comment on column pgembed.work.alone is
    'A worker process died while it held this item: no other claim may run beside it in one process.';
comment on column pgembed.work.deaths is 'Worker processes that died while they held this item or the one it was split from.';
comment on column pgembed.work.died_of is
    'What the last of the deaths was, where no process died: the claim ran out of time.';
comment on column pgembed.work.compare_after is
    'Not null: no keys, but a comparison of the source, behind this key, with the ledger, since something has changed that no key tells of; a sweep follows.';
comment on column pgembed.work.sweep_after is
    'Not null: no keys, but a look through the ledger, behind this key, for what the source has lost, by a TRUNCATE for example.';
comment on column pgembed.work.available_at is 'Not claimed before this moment.';
comment on column pgembed.work.delayed is
    'The item could not be claimed as soon as it was queued: it is claimed in the order of available_at, behind the others of its priority.';

create table pgembed.attempts (
    id bigint generated always as identity primary key,
    work_id bigint not null,
    worker_id bigint not null,
    claim_xid xid8 not null,
    started_at timestamptz not null default clock_timestamp(),
    died_at timestamptz,
    reason text
);

-- The claim counts deaths by item; the commit deletes attempts by item.
create index attempts_by_work on pgembed.attempts (work_id);

comment on table pgembed.attempts is
    'Tries at work items, logged before they start and deleted in the claim''s own commit; a row left behind means a claim that ended without commit.';
comment on column pgembed.attempts.work_id is 'The item, which may be gone already.';
comment on column pgembed.attempts.claim_xid is 'Transaction of the claim; while it runs, the attempt is in flight.';
comment on column pgembed.attempts.died_at is 'Set by the supervisor when its worker process crashed in this attempt, and by a worker whose claim ran out of time with this item a second time; nothing else counts against an item.';
comment on column pgembed.attempts.reason is 'What died_at stands for, where no process crashed.';

create table pgembed.scans (
    pipeline_id bigint primary key,
    selection text not null,
    last_key text,
    queued bigint not null default 0,
    finished boolean not null default false,
    started_at timestamptz not null default clock_timestamp()
);

comment on table pgembed.scans is
    'The cursor of enqueue, one per pipeline: machines that enqueue at once take turns on it, and an interrupted enqueue goes on from it.';
comment on column pgembed.scans.queued is 'How many records it has queued.';
comment on column pgembed.scans.finished is 'The next enqueue begins a new scan.';
comment on column pgembed.scans.selection is 'What the scan looks for; another selection starts from the beginning.';
comment on column pgembed.scans.last_key is 'The scan has covered every key up to this one.';

create table pgembed.adoptions (
    pipeline_id bigint primary key,
    walking text not null default 'source',
    last_key text,
    doubtful text[] not null,
    adopted bigint not null default 0,
    chunks bigint not null default 0,
    empty bigint not null default 0,
    settled bigint not null default 0,
    missing bigint not null default 0,
    wrong_vectors bigint not null default 0,
    text_differs bigint not null default 0,
    cut_off bigint not null default 0,
    gone bigint not null default 0,
    started_at timestamptz not null default clock_timestamp(),
    finished_at timestamptz,
    constraint adoptions_walking_is_known check (walking in ('source', 'target', 'finished')),
    constraint adoptions_end_is_dated check ((walking = 'finished') = (finished_at is not null))
);

comment on table pgembed.adoptions is
    'The cursor of adopt, one per pipeline whose target was there before it, and what was found: numbers of records.';
comment on column pgembed.adoptions.walking is
    'source: its records are looked at in the order of their keys; target: keys of the table are looked up in the source.';
comment on column pgembed.adoptions.last_key is 'Every key up to this one has been looked at.';
comment on column pgembed.adoptions.doubtful is 'Records whose vectors a sample has shown to be wrong: they are embedded again.';
comment on column pgembed.adoptions.chunks is 'Chunks of the adopted records.';
comment on column pgembed.adoptions.settled is 'Records that a worker had embedded before they were looked at.';
comment on column pgembed.adoptions.cut_off is 'Records with a chunk longer than the model reads.';
comment on column pgembed.adoptions.gone is 'Records of the table that the source does not have; a worker deletes their chunks.';
