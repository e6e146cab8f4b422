-- depends: 0002_create_queue
--
-- What has become of each record.
set local lock_timeout = '5s';

-- An index takes some 2,700 bytes, and a key that fits the source's may be longer as text. The result
-- for a long key is longer than 500 bytes, and so never that for another one. Written so that the
-- planner puts the expression in the function's place.
create function pgembed.ledger_key(key text)
returns text
language sql
stable
parallel safe
as $function$
    select case
        when pg_catalog.octet_length(key) operator(pg_catalog.<=) 500 then key
        else pg_catalog.left(key, 437) operator(pg_catalog.||) pg_catalog.encode(
            pg_catalog.sha256(pg_catalog.convert_to(key, 'UTF8')), 'hex'
        )
    end
$function$;

comment on function pgembed.ledger_key is
    'A key of the queue as it is in the ledger: itself, or the beginning and the SHA-256 of one that is longer than 500 bytes.';

create table pgembed.records (
    pipeline_id bigint not null,
    key text collate "C" not null,
    long_key text collate "C",
    state text,
    generation integer,
    document_hash bytea,
    chunks integer not null default 0,
    attempts integer not null default 0,
    failed_hash bytea,
    last_error text,
    embedded_at timestamptz,
    worker_id bigint,
    dead_at timestamptz,
    error_kind text generated always as (
        regexp_replace(
            regexp_replace(left(last_error, 200), ': ".*', ': …'),
            '\m[0-9]+([.][0-9]+)*\M',
            'N',
            'g'
        )
    ) stored,
    constraint records_pkey primary key (pipeline_id, key),
    constraint records_long_key_is_longer check (octet_length(long_key) > 500),
    constraint records_state_is_known check (state in ('embedded', 'empty', 'dead')),
    constraint records_chunks_match_state check (chunks >= 0 and (chunks = 0 or state = 'embedded')),
    constraint records_dead_is_dated check ((state is not distinct from 'dead') = (dead_at is not null)),
    constraint records_dead_has_an_error check (dead_at is null or last_error is not null)
) with (fillfactor = 85);

-- The dead letters. On dead_at and not on state: a column that changes for every record would
-- cost each of them a heap-only update.
create index records_dead on pgembed.records (pipeline_id, dead_at) where dead_at is not null;

-- The walk through all of them, slice by slice.
create index records_dead_by_key on pgembed.records (pipeline_id, key) where dead_at is not null;

-- How many there are of each kind: equal entries are stored once, so that it takes little. It is of
-- all the dead, but not by a condition that the walk has: being small, it would be taken for that,
-- and all that is left read and sorted for each slice.
create index records_dead_by_kind on pgembed.records (pipeline_id, error_kind)
    where dead_at is not null and error_kind is not null;

comment on table pgembed.records is
    'The ledger: one row per record that a worker has seen. Locked in key order before a write, it is also the mutex of the record.';
comment on column pgembed.records.key is
    'The record''s key as it is in pgembed.work; of a long one, what pgembed.ledger_key makes of it.';
comment on column pgembed.records.long_key is
    'The whole key, if it is longer than 500 bytes; else null.';
comment on column pgembed.records.generation is
    'Of the configuration behind the state; see pipelines.generation.';
comment on column pgembed.records.chunks is 'How many the target has of the record.';
comment on column pgembed.records.last_error is
    'What the last attempt at the document of failed_hash failed with.';
comment on column pgembed.records.error_kind is
    'last_error without what differs from record to record: its numbers are N, a quoted value behind a colon is …, and it ends after 200 characters.';
comment on column pgembed.records.embedded_at is
    'When the state embedded or empty was reached.';
comment on column pgembed.records.worker_id is
    'The worker process that reached it; null for what adopt found. Its row in pgembed.workers may be gone.';
comment on column pgembed.records.dead_at is
    'When the record was given up on; null unless it is dead.';
comment on column pgembed.records.state is 'embedded, empty (no text), dead (given up on), or null while no verdict is reached.';
comment on column pgembed.records.document_hash is 'SHA-256 of the document behind the state, computed by the server.';
comment on column pgembed.records.attempts is 'Failed attempts at the document of failed_hash; starts again when the text changes.';
comment on column pgembed.records.failed_hash is 'SHA-256 of the document that failed last.';
