-- The queue, the ledger and the history of pgembed.
--
-- Producers only ever insert into `work`; a worker holds the rows it has claimed locked in an
-- open transaction and deletes them in the same commit that writes the vectors. There are no
-- foreign keys on the tables that are written for every claim: their locks would serialise
-- workers on one row of `pipelines`.
set local lock_timeout = '5s';

create table pgembed.pipelines (
    id bigint generated always as identity primary key,
    name text not null,
    state text not null default 'active',
    state_reason text,
    source_schema text not null,
    source_table text not null,
    key_columns jsonb not null,
    text_fields text[] not null,
    template text,
    chunk_template text,
    document_columns jsonb not null,
    where_condition text,
    target_schema text not null,
    target_table text not null,
    into_column text,
    target_is_made boolean not null default true,
    target_columns jsonb not null,
    vector_type text not null,
    truncate_dim integer,
    text boolean not null default true,
    chunk_text text,
    ids boolean not null default true,
    copied_columns jsonb not null default '[]',
    foreign_key boolean not null default false,
    view boolean not null default false,
    partition_by text,
    trust_owners boolean not null default false,
    dimensions integer not null,
    model text not null,
    model_revision text,
    model_fingerprint text not null,
    model_files jsonb not null,
    document_prompt text,
    query_prompt text,
    control_tokens boolean not null default false,
    pooling text,
    chunking text not null,
    chunk_tokens integer not null,
    overlap_tokens integer not null,
    max_attempts integer not null default 3,
    priority integer not null default 10,
    index_method text,
    quantize text not null default 'none',
    lexical boolean not null default false,
    generation integer not null default 1,
    successor_of bigint,
    source_identity jsonb,
    ef_search integer,
    ef_search_scan text,
    ef_search_parameters jsonb,
    ef_search_recall double precision,
    index_checked_chunks bigint,
    lexical_weight double precision,
    created_at timestamptz not null default clock_timestamp(),
    constraint pipelines_name_is_unique unique (name),
    constraint pipelines_successor_is_unique unique (successor_of),
    constraint pipelines_name_is_not_empty check (name <> ''),
    constraint pipelines_key_has_columns check (jsonb_array_length(key_columns) > 0),
    constraint pipelines_document_is_of_fields_or_template check ((cardinality(text_fields) > 0) = (template is null)),
    constraint pipelines_column_is_of_source check (into_column is null or (target_schema, target_table, chunking) = (source_schema, source_table, 'none')),
    constraint pipelines_state_is_known check (state in ('active', 'paused')),
    constraint pipelines_vector_type_is_known check (vector_type in ('vector', 'halfvec')),
    constraint pipelines_dimensions_are_positive check (dimensions > 0),
    constraint pipelines_copied_columns_are_a_list check (jsonb_typeof(copied_columns) = 'array'),
    constraint pipelines_partitions_are_known check (partition_by ~ '^(hash|range):'),
    constraint pipelines_truncate_dim_is_kept check (truncate_dim = dimensions),
    constraint pipelines_prompts_are_not_empty check (document_prompt <> '' and query_prompt <> ''),
    constraint pipelines_pooling_is_not_empty check (pooling <> ''),
    constraint pipelines_chunking_is_known check (chunking in ('tokens', 'none')),
    constraint pipelines_chunk_is_positive check (chunk_tokens > 0),
    constraint pipelines_overlap_fits_chunk check (overlap_tokens >= 0 and overlap_tokens < chunk_tokens),
    constraint pipelines_max_attempts_is_positive check (max_attempts > 0),
    constraint pipelines_priority_is_limited check (priority between 1 and 100),
    constraint pipelines_index_is_known check (index_method in ('hnsw', 'ivfflat') and quantize in ('none', 'halfvec', 'binary')),
    constraint pipelines_ef_search_is_of_an_index check ((ef_search is null) = (ef_search_scan is null) and (ef_search is null) = (ef_search_parameters is null) and ef_search between 1 and 1000),
    constraint pipelines_recall_is_a_share check (ef_search_recall between 0 and 1),
    constraint pipelines_lexical_weight_is_a_share check (lexical_weight between 0 and 1),
    constraint pipelines_lexical_is_of_chunks check (not lexical or (into_column is null and text)),
    constraint pipelines_foreign_key_is_told_by_ids check (ids or not foreign_key),
    constraint pipelines_text_is_stored_or_read check (text = (chunk_text is null))
);

-- One pipeline a table of chunks, and one a column of a source.
create unique index pipelines_target_is_unique
    on pgembed.pipelines (target_schema, target_table, coalesce(into_column, ''));

comment on table pgembed.pipelines is
    'One configured embedding job: source table and text, target table, model and chunking.';
comment on column pgembed.pipelines.state is
    'active or paused: a worker claims nothing of a paused one.';
comment on column pgembed.pipelines.max_attempts is
    'Failed attempts after which a record becomes a dead letter.';
comment on column pgembed.pipelines.overlap_tokens is
    'Most tokens that a chunk has in common with the one before it.';
comment on column pgembed.pipelines.state_reason is
    'Why the pipeline is paused: by a person, or the fault that paused it.';
comment on column pgembed.pipelines.key_columns is
    'Columns of the source key, in order, with the types that keys of the queue are cast to. The key of one column is its text, of several a JSON array.';
comment on column pgembed.pipelines.text_fields is
    'Columns that make the document, with a blank line between them; none where there is a template.';
comment on column pgembed.pipelines.template is
    'Makes the document out of columns, such as ''$title: $text''; null where text_fields make it.';
comment on column pgembed.pipelines.chunk_template is
    'What the model reads for a chunk, such as ''$title\n$chunk''; null for the chunk alone. Never stored with the chunks.';
comment on column pgembed.pipelines.document_columns is
    'All columns of the source that take part in the document or the chunk template, with their types.';
comment on column pgembed.pipelines.where_condition is
    'SQL over the source: only rows for which it is true are records.';
comment on column pgembed.pipelines.target_table is
    'Table of the chunks and vectors; the source itself where into_column names a column of it.';
comment on column pgembed.pipelines.into_column is
    'Column of the source that holds the vectors; null where they have a table of their own.';
comment on column pgembed.pipelines.target_is_made is
    'The target was made with the pipeline, and may be dropped with it; one that was there is emptied.';
comment on column pgembed.pipelines.target_columns is
    'Name of each column of the target table, by its meaning; fulltext_id is a list, one name for each column of the key.';
comment on column pgembed.pipelines.truncate_dim is
    'How many of the first dimensions of the model''s vectors are kept; null for all.';
comment on column pgembed.pipelines.text is
    'The target table stores the texts of chunks; else only where they stand in the document.';
comment on column pgembed.pipelines.chunk_text is
    'The SQL that reads the text of a chunk, a row called target, from the source; null where it is stored.';
comment on column pgembed.pipelines.ids is
    'The target table has the columns id and chunk_id; else chunks are told apart by their key and number alone.';
comment on column pgembed.pipelines.copied_columns is
    'Columns of the source that are copied into each chunk''s row, with their types; part of the record''s hash.';
comment on column pgembed.pipelines.foreign_key is
    'The target table refers to the source: who deletes a record deletes its vectors.';
comment on column pgembed.pipelines.view is
    'There is a view of the target table joined with the source, called after the table: <target>_view.';
comment on column pgembed.pipelines.partition_by is
    'How the target table is parted by the key: ''hash:16'' or ''range:year:2024,2025''; null for one table.';
comment on column pgembed.pipelines.trust_owners is
    'Code that belongs to the owners of the tables, such as functions of a view, may run with the rights of whoever works on the pipeline.';
comment on column pgembed.pipelines.dimensions is
    'Of the vectors in the target table.';
comment on column pgembed.pipelines.model_fingerprint is
    'SHA-256 over weights, tokenizer and configuration; a worker with another model refuses to claim.';
comment on column pgembed.pipelines.model_files is
    'SHA-256 of each file behind the fingerprint, to name the one that differs.';
comment on column pgembed.pipelines.document_prompt is
    'What the model reads before each chunk, ''\n'' for a line break; null for the prompt that its files name, ''none'' for no prompt.';
comment on column pgembed.pipelines.query_prompt is
    'What the model reads before a search query; see document_prompt.';
comment on column pgembed.pipelines.control_tokens is
    'Control tokens that a text spells, such as [SEP], are read as what they are, and not as text.';
comment on column pgembed.pipelines.pooling is
    'How the vectors of tokens become one, for a model whose files do not say it; null where they do.';
comment on column pgembed.pipelines.chunking is
    'tokens: documents are cut into chunks; none: a document is one chunk, and dead if it is longer than the model reads.';
comment on column pgembed.pipelines.chunk_tokens is
    'Most tokens of a chunk with what the chunk template puts around it, special tokens not counted.';
comment on column pgembed.pipelines.priority is
    'Share of a worker''s time among the pipelines that have work: one of 20 gets twice what one of 10 gets.';
comment on column pgembed.pipelines.generation is
    'Counts changes of configuration that alter vectors; part of what makes a record unchanged.';
comment on column pgembed.pipelines.successor_of is
    'Pipeline that this one is the next generation of: while that one is there, searches use its vectors; once it is gone, this one has taken its name and its table''s name.';

comment on column pgembed.pipelines.index_method is
    'Kind of the vector index that workers build once the queue has drained; null for none.';
comment on column pgembed.pipelines.quantize is
    'What that index is to hold: none for the vectors themselves, halfvec or binary.';
comment on column pgembed.pipelines.lexical is
    'Workers build an index of the chunks'' words once the queue has drained, which hybrid searches take.';
comment on column pgembed.pipelines.lexical_weight is
    'Weight of words beside vectors in hybrid searches, 0 to 1, that pgembed evaluate has found; null for 0.5.';
comment on column pgembed.pipelines.ef_search is
    'The hnsw.ef_search that pgembed evaluate has found enough for its searches; null for the usual one.';
comment on column pgembed.pipelines.ef_search_scan is
    'What the index held that it was found for, as pgembed.vector_indexes.quantize says; of another one it means nothing.';
comment on column pgembed.pipelines.ef_search_parameters is
    'What that index was built with, as pgembed.vector_indexes.parameters says; by one that is built otherwise, searches do not use it.';
comment on column pgembed.pipelines.ef_search_recall is
    'The share of the nearest chunks that pgembed evaluate found with it then, 0 to 1.';
comment on column pgembed.pipelines.index_checked_chunks is
    'How many chunks had been written when its index was built, or was last found good enough by a worker, which measures it again once half as many were written since as there are; null if nobody has.';
comment on column pgembed.pipelines.source_identity is
    'Where changes are captured: which tables, files and columns the source was made of when it was last looked at; see pgembed.source_identity.';

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
