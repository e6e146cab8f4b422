-- How pipelines are set up, and how they stand.
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
    ef_search_k bigint,
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
    constraint pipelines_ef_search_is_of_an_index check ((ef_search is null) = (ef_search_scan is null) and (ef_search is null) = (ef_search_parameters is null) and (ef_search is null) = (ef_search_k is null) and ef_search between 1 and 1000),
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
comment on column pgembed.pipelines.ef_search_k is
    'For how many nearest chunks that was found enough; of more, searches take no less than where nobody has measured.';
comment on column pgembed.pipelines.ef_search_recall is
    'The share of the nearest chunks that pgembed evaluate found with it then, 0 to 1.';
comment on column pgembed.pipelines.index_checked_chunks is
    'How many chunks had been written when its index was built, or was last found good enough by a worker, which measures it again once half as many were written since as there are; null if none has.';
comment on column pgembed.pipelines.source_identity is
    'Where changes are captured: which tables, files and columns the source was made of when it was last looked at; see pgembed.source_identity.';
